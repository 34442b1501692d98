"""Event files come from anywhere: whatever they hold, the answer is a reason, and other runs go on."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from board import LOADERS, ROUTES, Board, Frame, board
from forged import forge, metadata, proto, repeated, text, texts
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_STRING
from written import run

# What metadata may say wrongly, and a word of the reason.
METADATA: dict[str, tuple[str, bytes, str]] = {
    "empty": ("globals", b"", "JSON"),
    "binary": ("globals", b"\xff\xfe\0", "JSON"),
    "half": ("layers", metadata("layers")[:40], "JSON"),
    "deep": ("globals", b"[" * 200_000, "JSON"),
    "list": ("globals", b"[]", "object"),
    "newer": ("layers", metadata("layers", version=2), "`version`"),
    "no version": ("layers", metadata("layers", version=...), "`version`"),
    "kind": ("layers", metadata("layers", kind="<script>"), "`kind`"),
    "kind list": ("layers", metadata("layers", kind=["layers"]), "`kind`"),
    "negative optimizer": ("events", metadata("events", optimizer=-1), "`optimizer`"),
    "true optimizer": ("events", metadata("events", optimizer=True), "`optimizer`"),
    "huge optimizer": ("events", metadata("events", optimizer=10**30), "`optimizer`"),
    "optimizer name": ("events", metadata("events", optimizer_name=None), "`optimizer_name`"),
    "no rows": ("layers", metadata("layers", rows=...), "`rows`"),
    "empty rows": ("layers", metadata("layers", rows=[], owners=[], dims=[], estimated=[]), "`rows`"),
    "same rows": ("layers", metadata("layers", rows=["a", "a"]), "`rows`"),
    "row numbers": ("layers", metadata("layers", rows=[1, 2]), "`rows`"),
    "one owner": ("layers", metadata("layers", owners=["a"]), "`owners`"),
    "dims": ("layers", metadata("layers", dims=[1, "2"]), "`dims`"),
    "estimated": ("layers", metadata("layers", estimated="no"), "`estimated`"),
    "no stats": ("layers", metadata("layers", stats=[]), "`stats`"),
    "stat texts": ("layers", metadata("layers", stats=["before"]), "`stats`"),
    "fold": ("layers", metadata("layers", stats=[{"name": "before", "fold": "eval"}]), "`stats`"),
    "sides": ("hist", metadata("hist", sides={"before": 1}), "`sides`"),
    "columns": ("hist", metadata("hist", columns=["a", "b", "c"]), "`columns`"),
    "low": ("hist", metadata("hist", low=1e300), "`low`"),
    "huge": ("hist", metadata("hist", rows=[str(i) for i in range(130_000)]), "numbers in a record"),
    "names": ("globals", metadata("globals", names="grad_norm_before"), "`names`"),
}

# Records that are not what good metadata promise: the kind, the record, its step, and a word of the reason.
RECORDS: dict[str, tuple[str, TensorProto, int, str]] = {
    "fewer rows": ("layers", proto(1, 5), 0, "(2, 5)"),
    "transposed": ("layers", proto(5, 2), 0, "(2, 5)"),
    "too few numbers": ("layers", proto(2, 5, numbers=3), 0, "40 bytes"),
    "not whole numbers": ("layers", TensorProto(dtype=DT_FLOAT, tensor_content=b"123"), 0, "(2, 5)"),
    "negative size": ("layers", proto(-2, -5, numbers=10), 0, "(2, 5)"),
    "huge size": ("layers", proto(2**40, 2**40, numbers=1), 0, "(2, 5)"),
    "one number many times": ("layers", repeated(2**40, 2**10), 0, "(2, 5)"),
    "one number for all": ("layers", repeated(2, 5), 0, "40 bytes"),
    "one text many times": ("events", texts(2**40), 0, "one text"),
    "text of bytes": ("events", TensorProto(dtype=DT_STRING, tensor_content=b"[]"), 0, "one text"),
    "double": ("globals", proto(15, numbers=30, dtype=DT_DOUBLE), 0, "float32"),
    "text for numbers": ("globals", text("[1, 2]"), 0, "float32"),
    "no such type": ("globals", TensorProto(dtype=77, tensor_content=b"1234"), 0, "type 77"),
    "scalar": ("hist", proto(), 0, "(2, 2, 67)"),
    "negative step": ("globals", proto(15), -5, "`step in calib/globals"),
    "numbers for text": ("events", proto(3), 0, "one text"),
    "not JSON": ("events", text('[{"step": 1'), 0, "JSON"),
    "not UTF-8": ("events", text(b"\xff\xff"), 0, "JSON"),
    "object": ("events", text("{}"), 0, "a list"),
    "event text": ("events", text('["dead"]'), 0, "`event`"),
    "event step": ("events", text('[{"step": -1, "kind": "dead", "text": ""}]'), 0, "`event`"),
    "event value": (
        "events",
        text('[{"step": 1, "kind": "dead", "text": "", "value": 1%s}]' % ("0" * 400)),
        0,
        "`event`",
    ),
    "event layer": ("events", text('[{"step": 1, "kind": "dead", "text": "", "layer": {}}]'), 0, "`event`"),
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, (kind, content, _) in METADATA.items():
        forge(folder / "metadata" / name, f"calib/{kind}", content, proto(2, 5))
    for name, (kind, value, step, _) in RECORDS.items():
        forge(folder / "records" / name, f"calib/{kind}", metadata(kind), value, step)
    run(folder / "good", 3)
    return folder


@pytest.fixture(scope="module", params=LOADERS)
def tab(request: pytest.FixtureRequest, logs: Path) -> Iterator[Board]:
    with board(logs, request.param) as tab:
        tab.until(lambda tab: len(tab.runs()) == len(METADATA) + len(RECORDS) + 1)
        yield tab


QUERIES: dict[str, Callable[[Board, str], Any]] = {
    "globals": lambda tab, run: tab.ask("globals", run=run),
    "layers": lambda tab, run: tab.ask("layers", run=run, stat="before"),
    "node": lambda tab, run: tab.ask("node", run=run, path=""),
    "hist": lambda tab, run: tab.ask("hist", run=run, path=""),
    "events": lambda tab, run: tab.ask("events", run=run),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_are_wrong_are_named_with_a_reason(tab: Board, name: str) -> None:
    kind, _, word = METADATA[name]
    found = tab.runs()[f"metadata/{name}"]
    (problem,) = found["problems"]
    assert f"'calib/{kind}'" in problem
    assert word in problem
    assert len(problem) < 500
    if kind != "events":
        answer = QUERIES[kind](tab, f"metadata/{name}")
        assert (answer.status_code, word in answer.json["error"]) == (400, True)
    assert tab.json("events", run=f"metadata/{name}")["events"]  # the tag beside it is readable


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_are_not_what_they_should_be_are_refused(tab: Board, name: str) -> None:
    kind, _, _, word = RECORDS[name]
    answer = QUERIES[kind](tab, f"records/{name}")
    assert answer.status_code == 400
    assert word in answer.json["error"]
    assert "Traceback" not in answer.text


def test_a_good_run_beside_them_is_served(tab: Board) -> None:
    assert tab.frame("globals", run="good").header["steps"] == [0, 1, 2]
    assert tab.runs()["good"]["problems"] == []


OUTSIDE = (
    "../loader.py",
    "..%2floader.py",
    "%2e%2e/contract.py",
    "static/index.js",
    "/etc/passwd",
    "index.js/..",
    "",
    "%00",
)


@pytest.mark.parametrize(
    "name", [*OUTSIDE, "index.js%00", "Index.js", "nothing.js", "....//loader.py", "..\\loader.py"]
)
def test_no_path_leads_out_of_the_folder_of_the_tab(tab: Board, name: str) -> None:
    answer = tab.client.get(ROUTES + name)
    assert answer.status_code == 404
    assert b"import" not in answer.data


def test_a_file_that_stops_anywhere_gives_what_it_has(tmp_path: Path) -> None:
    """Cut at any byte, or with a byte changed: a prefix of the rows, or a reason."""
    run(tmp_path / "whole", 12, every_hist=4)
    (whole,) = (tmp_path / "whole").iterdir()
    data, dice = whole.read_bytes(), random.Random(0)
    for i in range(12):
        at = dice.randrange(len(data))
        changed = bytes([*data[:at], data[at] ^ 0x55, *data[at + 1 :]]) if i % 4 == 3 else data[:at]
        (tmp_path / f"cut{i}").mkdir()
        (tmp_path / f"cut{i}" / whole.name).write_bytes(changed)
    for loader in LOADERS:
        with board(tmp_path, loader) as tab:
            tab.until(lambda tab: "whole" in tab.runs() and len(tab.runs()) > 8)
            answers = [QUERIES[kind](tab, name) for name in tab.runs() for kind in ("globals", "layers", "hist")]
            assert {answer.status_code for answer in answers} <= {200, 400, 404}
            lengths = [
                len(Frame.read(answer.data).header["steps"]) for answer in answers[::3] if answer.status_code == 200
            ]
            assert (min(lengths) < 12, max(lengths)) == (True, 12)
