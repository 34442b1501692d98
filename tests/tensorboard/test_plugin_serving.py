"""What was written is what the tab is given, with either of TensorBoard's loaders."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from board import LOADERS, Board, board
from written import GLOBAL_NAMES, NAMES, append, event, events, layers, norms, odd_names, resumed, run, totals, writer

from lightning_calib.tensorboard.contract import ABSENT, HISTOGRAM_COLUMNS, LOW_EXPONENT, SIDES, STATISTICS

STEPS = 60
LONG = 3000
ODD_RUN = "odd & näme #1 <b>"
ODD = odd_names()


def long(folder: Path) -> None:
    """As many records as a logger may write before anything thins them, of one number each."""
    with writer(folder) as out:
        for step in range(LONG):
            record = layers(["w"], torch.full((1, 5), float(step)))
            out.write([record, totals(torch.full((len(GLOBAL_NAMES),), float(step)))], step)


def same_step(folder: Path) -> None:
    """Four events of one step, and one that happened earlier than it was written."""
    found = [
        event(7, "spike", f"number {i}", value=value) for i, value in enumerate((1.5, math.nan, math.inf, -math.inf))
    ]
    with writer(folder) as out:
        out.write([events(found)], 7)
        out.write([events([event(3, "dead", "late <b>news</b>", "a.weight", 2)])], 9)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    run(folder, STEPS)  # the root is a run too
    run(folder / "two", STEPS, optimizers=2)
    run(folder / "nested" / "deeper" / ODD_RUN, STEPS, ODD)
    run(folder / "run10", 4, every_hist=0)
    run(folder / "run9", 4, every_hist=0)
    resumed(folder / "resumed")
    long(folder / "long")
    same_step(folder / "same step")
    with writer(folder / "foreign") as out:
        out.experiment.add_scalar("loss", 1.0, 0)
    return folder


@pytest.fixture(scope="module", params=LOADERS)
def tab(request: pytest.FixtureRequest, logs: Path) -> Iterator[Board]:
    last = {".": STEPS, "two": STEPS, "long": LONG, "resumed": 120, "same step": 10, "run10": 4, "run9": 4}
    last[f"nested/deeper/{ODD_RUN}"] = STEPS

    def reached(tab: Board) -> bool:
        ends = {name: {each["last_step"] for each in found["optimizers"]} for name, found in tab.runs().items()}
        return ends == {name: {end - 1} for name, end in last.items()}

    with board(logs, request.param) as tab:
        tab.until(reached)
        yield tab


def test_the_tab_is_shown_under_its_name(tab: Board) -> None:
    listed = tab.get("/data/plugins_listing").json["lightning_calib"]
    assert (listed["enabled"], listed["tab_name"]) == (True, "Gradients")
    assert listed["loading_mechanism"]["module_path"] == "/data/plugin/lightning_calib/index.js"


def test_runs_come_with_all_that_they_have_the_newest_first(tab: Board) -> None:
    names = list(tab.runs())
    assert names == ["same step", "long", "resumed", "run9", "run10", f"nested/deeper/{ODD_RUN}", "two", "."]
    assert tab.runs()["two"] == {
        "run": "two",
        "started": tab.runs()["two"]["started"],
        "optimizers": [
            {"optimizer": k, "name": name, "kinds": ["layers", "globals", "hist", "events"], "last_step": STEPS - 1}
            for k, name in enumerate(("AdamW", "SGD"))
        ],
        "problems": [],
    }


def test_no_record_is_dropped(tab: Board) -> None:
    total, layer = tab.frame("globals", run="long"), tab.frame("layers", run="long", stat="peak")
    for found in (total, layer):
        assert (found.header["steps"], found.header["thinned"]) == (list(range(LONG)), False)
    assert total.header["names"] == list(GLOBAL_NAMES)
    np.testing.assert_array_equal(total.values[:, 3], np.arange(LONG))
    np.testing.assert_array_equal(layer.values[0], np.arange(LONG))
    assert np.all(np.diff(total.header["walls"]) >= 0)


@pytest.mark.parametrize("index", range(len(STATISTICS)), ids=list(STATISTICS))
def test_layers_are_the_numbers_that_were_written(tab: Board, index: int) -> None:
    stat = list(STATISTICS)[index]
    found = tab.frame("layers", run=".", stat=stat)
    expected = torch.stack([norms(NAMES, step, STEPS)[:, index] for step in range(STEPS)], dim=1)
    np.testing.assert_array_equal(found.values, expected.numpy())  # NaN, inf and -1 in their places
    assert np.isnan(found.values).any() == (stat in ("before", "after", "peak"))
    assert found.header["rows"] == list(NAMES)
    assert found.header["owners"][:2] == ["embed", "encoder.0.norm1"]
    assert (found.header["dims"][:2], found.header["estimated"][:2]) == ([2, 1], [True, False])
    assert found.header["stats"] == [{"name": name, "fold": fold} for name, fold in STATISTICS.items()]
    assert (found.header["stat"], found.header["fold"]) == (stat, STATISTICS[stat])


def test_each_optimizer_has_its_own_layers(tab: Board) -> None:
    for k in (0, 1):
        found = tab.frame("layers", run="two", optimizer=k, stat="weight")
        assert found.header["rows"] == list(NAMES[k::2])
        np.testing.assert_array_equal(found.values[:, 5], norms(NAMES[k::2], 5, STEPS)[:, 3].numpy())


def test_a_module_is_folded_from_its_tensors(tab: Board) -> None:
    found = tab.frame("node", run=".", path="encoder.1")
    rows = [i for i, name in enumerate(NAMES) if name.startswith("encoder.1.")]
    assert found.header["rows"] == [NAMES[i] for i in rows]
    for step in (5, STEPS // 2):
        value = norms(NAMES, step, STEPS)[rows].double()
        assert found.row("before")[step] == pytest.approx(value[:, 0].norm().item(), rel=1e-6)
        assert found.row("peak")[step] == pytest.approx(value[:, 2].max().item(), rel=1e-6)
    assert np.isnan(tab.frame("node", run=".", path="encoder.0").row("before")[2 * STEPS // 3])
    frozen = tab.frame("node", run=".", path="embed")
    assert (frozen.row("before")[0], frozen.row("weight")[0]) == (ABSENT, 3.0)
    assert tab.frame("node", run=".", path="").header["rows"] == list(NAMES)


def test_histograms_are_summed_over_a_module(tab: Board) -> None:
    whole = tab.frame("hist", run=".", path="")
    assert (whole.header["sides"], whole.header["columns"]) == (list(SIDES), list(HISTOGRAM_COLUMNS))
    assert (whole.header["low"], whole.header["steps"]) == (LOW_EXPONENT, list(range(0, STEPS, 10)))
    parts = [tab.frame("hist", run=".", path=path).values for path in whole.header["rows"]]
    counts = [i for i in range(len(HISTOGRAM_COLUMNS)) if i != 2]
    np.testing.assert_array_equal(whole.values[..., counts], sum(part[..., counts] for part in parts))
    np.testing.assert_array_equal(whole.values[..., 2], np.max([part[..., 2] for part in parts], axis=0))
    assert "no hist records" in tab.refusal(404, "hist", run="long", path="")
    assert "`path` must be" in tab.refusal(404, "hist", run=".", path="decoder")


def test_events_of_one_step_are_all_there_in_the_order_of_their_own_steps(tab: Board) -> None:
    found = tab.json("events", run="same step")["events"]
    assert found[0] == {"step": 3, "kind": "dead", "text": "late <b>news</b>", "layer": "a.weight", "value": 2}
    assert [each["text"] for each in found[1:]] == [f"number {i}" for i in range(4)]
    assert [each["value"] for each in found[1:]] == [1.5, "NaN", "Infinity", "-Infinity"]
    assert tab.json("events", run="long") == {"events": [], "problems": []}


def test_odd_names_go_through_unchanged(tab: Board) -> None:
    name = f"nested/deeper/{ODD_RUN}"
    found = tab.frame("layers", run=name, stat="weight")
    assert found.header["rows"] == ODD
    for index, row in enumerate(ODD):
        own = tab.frame("node", run=name, path=row)
        assert own.header["rows"] == [row]
        np.testing.assert_array_equal(own.row("weight"), found.values[index])


def test_a_run_resumed_with_other_layers_is_one_story(tab: Board) -> None:
    found = tab.frame("layers", run="resumed", stat="after")
    assert found.header["steps"] == list(range(120))
    assert tab.frame("globals", run="resumed").header["steps"] == list(range(120))
    rows = found.header["rows"]
    assert rows[:2] == ["embed.weight", "encoder.0.norm1.weight"]
    assert rows[-4:] == ["head.weight", "head.bias", "probe.weight", "probe.bias"]  # the newest order, others fill in
    seam = 60 - 12  # it was resumed from this step, although it had come to 60
    for old in ("embed.weight", "head.weight"):
        values = found.row(old)
        assert (values[30:seam] >= 0).all()
        assert (values[seam:] == ABSENT).all()
    np.testing.assert_array_equal(found.row("probe.weight")[:seam], ABSENT)
    second = (*NAMES[1:-2], "probe.weight", "probe.bias")
    kept = found.row("encoder.2.mlp.2.weight")
    assert kept[seam - 1] == norms(NAMES, seam - 1, 120)[NAMES.index("encoder.2.mlp.2.weight"), 1]
    assert kept[seam + 1] == norms(second, seam + 1, 120)[second.index("encoder.2.mlp.2.weight"), 1]
    assert tab.frame("node", run="resumed", path="embed").row("weight")[seam] == ABSENT
    assert tab.frame("hist", run="resumed", path="").header["steps"] == list(range(0, 120, 10))


def test_a_request_without_what_it_needs_is_told_so(tab: Board) -> None:
    assert "`run` must be given" in tab.refusal(400, "globals")
    assert "`stat` must be given" in tab.refusal(400, "layers", run=".")
    assert "`path` must be given" in tab.refusal(400, "node", run=".")
    assert "'gone'" in tab.refusal(404, "globals", run="gone")
    assert "'foreign'" in tab.refusal(404, "events", run="foreign")
    assert "must be one of [0, 1]" in tab.refusal(404, "globals", run="two", optimizer=2)
    assert "whole number" in tab.refusal(400, "globals", run="two", optimizer="-1")
    assert "before, after, peak, weight, update, got 'x'" in tab.refusal(404, "layers", run=".", stat="x")
    assert "'encoder.9'" in tab.refusal(404, "node", run=".", path="encoder.9")
    assert tab.client.post("/data/plugin/lightning_calib/runs").status_code == 405
    assert tab.client.head("/data/plugin/lightning_calib/runs").status_code == 200


@pytest.mark.parametrize("loader", LOADERS)
def test_rows_that_are_appended_arrive(tmp_path: Path, loader: str) -> None:
    with writer(tmp_path) as out:
        append(out, range(20))
        out.experiment.flush()
        with board(tmp_path, loader) as tab:
            tab.until(lambda tab: "." in tab.runs() and len(tab.frame("globals", run=".").values) == 20)
            append(out, range(20, 50))
            out.experiment.flush()
            tab.until(lambda tab: tab.frame("globals", run=".").header["steps"] == list(range(50)))
            assert tab.frame("layers", run=".", stat="before").values.shape == (len(NAMES), 50)


def test_steps_that_were_written_again_are_there_once_even_if_the_loader_keeps_both(tmp_path: Path) -> None:
    for span in (range(10), range(6, 12)):
        with writer(tmp_path) as out:
            append(out, span, steps=12)
    with board(tmp_path, "python", "--purge_orphaned_data=false") as tab:
        tab.reload()
        assert tab.frame("layers", run=".", stat="before").header["steps"] == list(range(12))
        assert [each["step"] for each in tab.json("events", run=".")["events"]] == [1, 6, 8, 8, 11]


def test_two_records_of_events_of_one_step_are_both_there_if_the_loader_keeps_both(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        for kind in ("spike", "summary"):
            out.write([events([event(7, kind, "")])], 7)
    with board(tmp_path, "python") as tab:
        assert [each["kind"] for each in tab.json("events", run=".")["events"]] == ["spike", "summary"]


@pytest.mark.parametrize("loader", LOADERS)
def test_without_data_there_is_no_tab(tmp_path: Path, loader: str) -> None:
    with board(tmp_path, loader) as tab:
        assert tab.get("/data/plugins_listing").json["lightning_calib"]["enabled"] is False
        assert tab.runs() == {}


def test_several_directories_and_a_path_prefix(tmp_path: Path) -> None:
    run(tmp_path / "a" / "fold0", 5)
    run(tmp_path / "b", 5)
    with board(None, "python", f"--logdir_spec=A:{tmp_path / 'a'},B:{tmp_path / 'b'}", prefix="/pre/fix") as tab:
        assert list(tab.runs()) == ["B/.", "A/fold0"]
        assert len(tab.frame("globals", run="B/.").values) == 5
        listed = tab.get("/data/plugins_listing").json["lightning_calib"]
        assert listed["loading_mechanism"]["module_path"] == "/pre/fix/data/plugin/lightning_calib/index.js"
        assert tab.ask("index.js").content_type.startswith("text/javascript")
        assert tab.client.get("/data/plugin/lightning_calib/runs").status_code == 404
