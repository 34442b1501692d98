"""Small files that promise much: refused by name, in little memory and time, and what stands beside them is served."""

import argparse
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from board import LOADERS, Board, board
from forged import forge, metadata, proto, put, repeated, texts
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from werkzeug.test import Client, TestResponse
from written import GLOBAL_NAMES, event, events, layers, run, totals, writer

from lightning_calib.tensorboard.plugin import GradientsPlugin

MUCH = 2**28  # numbers; expanded 1 GiB, of texts 2 GiB
MIB = 2**20
WIDE = [str(i) for i in range(250)]  # three axes of it are 64 MB in each record, of which the metadata say little
BOMBS: dict[str, tuple[str, bytes, TensorProto, str]] = {
    "layers": ("layers", metadata("layers"), repeated(MUCH), "float32 of shape (2, 5)"),
    "globals": ("globals", metadata("globals"), repeated(MUCH), f"float32 of shape ({len(GLOBAL_NAMES)},)"),
    "hist": ("hist", metadata("hist"), repeated(2**14, 2**14), "float32 of shape (2, 2, 67)"),
    "events": ("events", metadata("events"), texts(MUCH), "one text"),
    "as promised": (
        "hist",
        metadata("hist", rows=WIDE, sides=WIDE, columns=["zero", "nonfinite", "top", *WIDE]),
        repeated(250, 250, 253),
        "63250000 bytes of numbers",
    ),
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    for name, (kind, content, value, _) in BOMBS.items():
        forge(folder / "bombs" / name, f"calib/{kind}", content, value)
    run(folder / "good", 3)
    beside(folder / "beside")
    return folder


def beside(folder: Path) -> None:
    """A run whose globals and whose events of the second optimizer are bombs; all else is good."""
    with writer(folder) as out:
        out.write([layers(["a.weight", "b.weight"], torch.ones(2, 5)), events([event(0, "dead", "text")])], 0)
        which: dict[str, Any] = {"suffix": "/1", "optimizer": 1, "optimizer_name": "SGD"}
        out.write([totals(torch.ones(len(GLOBAL_NAMES)), **which)], 0)
        put(out, "calib/globals", metadata("globals"), repeated(MUCH))
        put(out, "calib/events/1", metadata("events", optimizer=1), texts(MUCH))


@pytest.fixture(scope="module", params=LOADERS)
def tab(request: pytest.FixtureRequest, logs: Path) -> Iterator[Board]:
    with board(logs, request.param) as tab:
        tab.until(lambda tab: len(tab.runs()) == len(BOMBS) + 2)
        yield tab


def ask(tab: Board, kind: str, name: str, **more: Any) -> TestResponse:
    need = {"layers": {"stat": "before"}, "hist": {"path": ""}}.get(kind, {})
    return tab.ask(kind, run=name, **need, **more)


@pytest.mark.parametrize("name", BOMBS)
def test_a_record_that_promises_much_is_refused_before_it_is_expanded(tab: Board, name: str) -> None:
    kind, _, _, rule = BOMBS[name]
    tracemalloc.start()
    start = time.perf_counter()
    try:
        answer = ask(tab, kind, f"bombs/{name}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 400
    assert f"`calib/{kind} of run 'bombs/{name}' at step 0` must be {rule}, got " in answer.json["error"]
    assert peak < 8 * MIB  # under 1; expanded it was 1,024 and more
    assert time.perf_counter() - start < 5.0  # 0.05 s; expanded it was 5 s and more


def test_a_bad_tag_hides_neither_the_other_kinds_nor_the_other_runs(tab: Board) -> None:
    assert f"float32 of shape ({len(GLOBAL_NAMES)},)" in ask(tab, "globals", "beside").json["error"]
    assert ask(tab, "layers", "beside").status_code == 200
    answer = tab.json("events", run="beside")
    assert [each["kind"] for each in answer["events"]] == ["dead"]
    assert [problem.partition(" must be ")[0] for problem in answer["problems"]] == [
        "`calib/events/1 of run 'beside' at step 0`"
    ]
    assert tab.frame("globals", run="beside", optimizer=1).header["steps"] == [0]
    assert ask(tab, "events", "beside", optimizer=1).status_code == 400
    assert tab.frame("globals", run="good").header["steps"] == [0, 1, 2]


def test_numbers_may_be_written_one_by_one(tmp_path: Path) -> None:
    value = proto(2, 5)
    listed = TensorProto(dtype=value.dtype, tensor_shape=value.tensor_shape, float_val=range(10))
    forge(tmp_path / "listed", "calib/layers", metadata("layers"), listed)
    for loader in LOADERS:
        with board(tmp_path, loader) as tab:
            tab.until(lambda tab: tab.runs())
            assert tab.frame("layers", run="listed", stat="after").values.tolist() == [[1.0], [6.0]]


class Expands:
    """A data provider of somebody else's, that gives expanded records only."""

    def __init__(self, provider: Any) -> None:
        self.list_tensors, self.read_tensors = provider.list_tensors, provider.read_tensors


def test_another_data_provider_is_told_of_and_its_records_are_checked_when_expanded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forge(tmp_path / "bad", "calib/layers", metadata("layers"), repeated(5, 2))
    run(tmp_path / "good", 3)
    with board(tmp_path, "python") as tab:
        provider = tab.ingester.data_provider
        GradientsPlugin(argparse.Namespace(data_provider=provider))
        assert caplog.messages == []
        routes = GradientsPlugin(argparse.Namespace(data_provider=Expands(provider))).get_plugin_apps()
        (told,) = caplog.messages
        assert "Expands" in told
        bad = Client(routes["/layers"]).get("/?run=bad&stat=before")
        assert bad.json["error"].endswith("got ('float32', (5, 2))")
        assert Client(routes["/globals"]).get("/?run=good").status_code == 200
