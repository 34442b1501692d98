"""`Report.to_html`: one file, small, without a way out, that holds the numbers of the run and trusts no name."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import made_runs
from helpers.held import Elements, held, layers, scalars
from helpers.logged_fits import logged_fit
from helpers.made_runs import column, healthy
from helpers.tiny_modules import Tiny

from lightning_calib.report import Report
from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.panel_numbers import ABSENT, ABSENT_SIGNED, FOLDS, SIGNED, pictured
from lightning_calib.report.run import Clipper, Run
from lightning_calib.tensorboard.contract import ABSENT as WRITTEN_ABSENT
from lightning_calib.tensorboard.contract import ABSENT_GLOBALS, STATISTICS
from lightning_calib.tensorboard.contract import ABSENT_SIGNED as WRITTEN_SIGNED


def large(tensors: int, rows: int, monkeypatch: pytest.MonkeyPatch, noise: float = 0.5) -> Run:
    """With noise, every number has its own, so that none follows from another."""
    monkeypatch.setattr(made_runs, "DIMS", (2,) * tensors)
    monkeypatch.setattr(made_runs, "SIZES", (1024,) * tensors)
    run = healthy(rows=rows, every=1, names=tuple(f"blocks.{i}.attention.weight" for i in range(tensors)))
    random = np.random.default_rng(1)
    for name in FOLDS:
        getattr(run.layers, name)[:] *= random.lognormal(0, noise, (rows, tensors))
    for values in run.scalars[1:]:
        values[:] = random.lognormal(0, 0.5, rows)
    return run


def written(run: Run, path: str = "run.html") -> str:
    Report([run]).to_html(path)
    return Path(path).read_text(encoding="utf-8")


@pytest.mark.parametrize(("tensors", "noise", "thinned"), [(100, 0.0, False), (100, 0.5, True), (400, 0.5, True)])
def test_a_hundred_layers_at_a_thousand_rows_take_less_than_a_megabyte(tensors, noise, thinned, monkeypatch) -> None:
    text = written(large(tensors, 1000, monkeypatch, noise))
    assert len(text.encode()) < 1_000_000
    found = held(text)
    assert found["runs"][0]["optimizers"][0]["layers"]["thinned"] == thinned
    assert ("a column of the layers stands for up to" in found["about"]) == thinned
    assert "distributions are left out" in found["about"]


def test_the_page_begins_with_the_verdict_and_asks_nobody() -> None:
    report = Report([made_runs.clipped(healthy("sgd"), 0.01)])
    report.to_html(Path("a run & more.html"))
    text = Path("a run & more.html").read_text(encoding="utf-8")
    elements = Elements(text)
    assert elements.of("title")[0][1].strip() == "a run & more"
    assert elements.of("b")[0][1].strip() == report.verdict
    assert text.index("<b>") < text.index("<script")
    assert [each for _, attributes, _ in elements.found for each in attributes if each in ("src", "href")] == []
    (policy,) = [one["content"] for one, _ in elements.of("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    (run,) = held(text)["runs"]
    assert [one["code"] for one in run["report"]["findings"]] == [one.code for one in report.findings]


def test_the_numbers_are_those_of_the_run() -> None:
    run = healthy()
    column(run, "before", "head.bias")[[3, 4]] = np.nan, np.inf
    run.scalars.loss[[1, 2]] = np.nan, np.inf
    run.scalars.grad_norm_before[1] = np.nan
    run.layers.weight[0, 0] = 1e300
    (optimizer,) = held(written(run))["runs"][0]["optimizers"]
    assert optimizer["globals"]["steps"] == run.scalars.step.tolist()
    assert optimizer["layers"]["steps"] == run.layers.step.tolist()
    for name, values in scalars(optimizer).items():
        expected = getattr(run.scalars, name)
        absent = ABSENT_SIGNED if name in SIGNED else ABSENT
        np.testing.assert_array_equal(values, np.where(np.isnan(expected), absent, expected).astype(np.float32))
    for name in FOLDS:
        with np.errstate(over="ignore"):
            expected = getattr(run.layers, name).astype(np.float32).T
        expected = np.where(np.isnan(expected), ABSENT, expected)
        np.testing.assert_allclose(layers(optimizer, name), expected, rtol=2**-8, atol=0)  # seven bits and a rounding
    assert layers(optimizer, "before")[-1, 3:5].tolist() == [ABSENT, np.inf]


def test_thinned_columns_keep_every_spike_and_whatever_was_not_finite(monkeypatch) -> None:
    run = large(400, 1000, monkeypatch)
    run.layers.before[501, 7], run.layers.before[700, 8], run.layers.before[:, 9] = 1e6, np.inf, np.nan
    (optimizer,) = held(written(run))["runs"][0]["optimizers"]
    before, steps = layers(optimizer, "before"), optimizer["layers"]["steps"]
    width = -(-1000 // len(steps))
    assert width >= 2
    assert steps == [*range(width - 1, 999, width), 999][: len(steps)]
    assert before[7].max() == pytest.approx(1e6, rel=2**-8)
    assert np.isinf(before[8]).sum() == 1
    assert (before[9] == ABSENT).all()


def test_so_many_layers_that_thinning_does_not_help_are_still_shown(monkeypatch) -> None:
    run = large(3000, 130, monkeypatch)
    (optimizer,) = held(written(run))["runs"][0]["optimizers"]
    assert len(optimizer["layers"]["steps"]) == 65


def test_what_guards_have_found_is_told_as_events() -> None:
    bad = (BadStep(9, "nonfinite", "head.weight"), BadStep(14, "spike"), BadStep(19, "rewind"), BadStep(24, "other"))
    events = pictured(healthy()._replace(bad_steps=bad)).events
    assert [(one["step"], one["kind"], one["layer"]) for one in events][:2] == [
        (9, "nonfinite", "head.weight"),
        (14, "spike", None),
    ]
    assert all(one["text"] for one in events)


def test_large_tensors_say_that_their_weights_are_estimated() -> None:
    run = healthy()
    layers_ = run.layers._replace(sizes=(2**16 + 1, 2**16, *run.layers.sizes[2:]))
    assert pictured(run._replace(layers=layers_)).layers.estimated[:3] == (True, False, False)


def test_a_run_without_rows_of_layers_and_one_without_rows() -> None:
    run = healthy()
    (optimizer,) = held(written(run._replace(layers=None)))["runs"][0]["optimizers"]
    assert (optimizer["layers"], optimizer["about"]["kinds"]) == (None, ["globals"])
    nothing = run.scalars._make(each[:0] for each in run.scalars)
    (optimizer,) = held(written(run._replace(layers=None, scalars=nothing)))["runs"][0]["optimizers"]
    assert (optimizer["about"]["kinds"], optimizer["about"]["last_step"]) == ([], 0)
    Report([]).to_html("empty.html")
    text = Path("empty.html").read_text()
    assert "No optimizer step has been seen yet." in text
    assert held(text)["runs"][0]["optimizers"] == []


HOSTILE = ("</script><script>alert(1)</script>", "<!--<script>", '"&lt;\u2028\ud7ff', "__proto__", "x" * 10_000)


def test_a_name_is_never_markup() -> None:
    run = healthy("sgd", names=HOSTILE)._replace(clippers=(Clipper(f"{HOSTILE[0]}<b>", "fixed", 0.0),))
    text = written(run)
    elements = Elements(text)
    assert [one.get("type") for one, _ in elements.of("script")] == ["application/json", "importmap", "module"]
    assert held(text)["runs"][0]["optimizers"][0]["layers"]["rows"] == list(HOSTILE)
    assert "alert(1)</script><b>" in "".join(words for _, words in elements.of("li"))
    assert len(re.findall("<script", text)) == 3


def test_an_output_in_a_folder_that_is_missing_says_so() -> None:
    with pytest.raises(FileNotFoundError, match=r"`path` must be a file in a folder that exists, got .*\. Make"):
        Report([healthy()]).to_html("nowhere/run.html")
    Path("folder.html").mkdir()
    with pytest.raises(IsADirectoryError):
        Report([healthy()]).to_html("folder.html")
    Path("there").mkdir()
    Report([healthy()]).to_html("there/run.html")
    Report([healthy()]).to_html("there/run.html")  # over itself


def test_in_a_notebook_the_page_has_a_frame_of_its_own_and_words_below() -> None:
    run = healthy("sgd", names=HOSTILE)
    report = Report([run])
    report.to_html("run.html")
    elements = Elements(report._repr_html_())
    ((frame, _),) = elements.of("iframe")
    assert frame["sandbox"] == "allow-scripts allow-downloads"
    assert "height: 900px" in frame["style"]
    assert frame["srcdoc"] == Path("run.html").read_text("utf-8").replace(">run<", ">Gradients<").replace(
        '"run":"run"', '"run":"Gradients"'
    )
    assert elements.of("script") == []
    assert next(words for _, words in elements.of("b")) == report.verdict
    assert len(report._repr_html_()) < 1_000_000


def test_in_a_notebook_a_report_without_a_run_is_its_words() -> None:
    assert Report([])._repr_html_() == "<p><b>No optimizer step has been seen yet.</b></p>"


def test_a_fit_with_a_monitor_becomes_a_page() -> None:
    monitor = logged_fit(Tiny(), 12)
    monitor.report().to_html("fit.html")
    (optimizer,) = held(Path("fit.html").read_text())["runs"][0]["optimizers"]
    assert optimizer["globals"]["steps"] == [1, 3, 5, 7, 9, 11]
    assert (scalars(optimizer)["grad_norm_before"] > 0).all()
    assert (layers(optimizer, "update") > 0).any()


def test_what_stands_where_there_is_no_number_is_as_in_event_files() -> None:
    assert (ABSENT, ABSENT_SIGNED) == (WRITTEN_ABSENT, WRITTEN_SIGNED)
    assert {name for name, absent in ABSENT_GLOBALS.items() if absent == ABSENT_SIGNED} == set(SIGNED)
    assert FOLDS == STATISTICS
