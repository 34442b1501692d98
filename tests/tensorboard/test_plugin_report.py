"""The verdict that the tab shows is the command line's, from the same event files, and is made anew when they grow."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from board import LOADERS, Board, board
from written import ABSENT, GLOBAL_NAMES, NAMES, append, layers, norms, run, shadows, totals, whole, writer

from lightning_calib.cli import main
from lightning_calib.report import Finding
from lightning_calib.report.panel_answers import MOST_LAYERS, MOST_ROWS, MOST_SHADOWS, _finding, _shadow
from lightning_calib.report.shadow import ShadowCourse, ShadowResult
from lightning_calib.tensorboard.event_files import RunFiles
from lightning_calib.tensorboard.refused import Refused
from lightning_calib.tensorboard.reports import Reports
from lightning_calib.tensorboard.run_folders import RunFolders

STEPS = 60


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    run(folder, STEPS, every_hist=0)
    run(folder / "two & <b>", STEPS, optimizers=2, every_hist=0)
    return folder


@pytest.fixture(scope="module", params=LOADERS)
def tab(request: pytest.FixtureRequest, logs: Path) -> Iterator[Board]:
    with board(logs, request.param) as tab:
        tab.until(lambda tab: len(tab.runs()) == 2)
        yield tab


def told(capsys: pytest.CaptureFixture[str], logs: Path) -> dict[str, dict]:
    assert main(["report", str(logs), "--format", "json"]) == 0
    return {one["run"]: one for one in json.loads(capsys.readouterr().out)["runs"]}


def test_every_run_has_the_verdict_and_the_findings_of_the_command_line(
    tab: Board, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = told(capsys, logs)
    for name, command_line in zip((".", "two & <b>"), (reports[str(logs)], reports["two & <b>"]), strict=True):
        found = tab.json("report", run=name)
        assert found["verdict"] == command_line["verdict"]
        for mine, its in zip(found["findings"], command_line["findings"], strict=True):
            assert {key: mine[key] for key in ("code", "severity", "sentence", "advice", "steps", "optimizer")} == {
                key: its[key] for key in ("code", "severity", "sentence", "advice", "steps", "optimizer")
            }
            assert (mine["layers"], mine["layer_count"]) == (its["layers"], len(its["layers"]))
        assert found["severity"] == ("fine" if its["severity"] == "note" else found["findings"][0]["severity"])
        counts = [(one["steps"], one["skipped"], one["nonfinite"]) for one in found["optimizers"]]
        its_counts = [(one["steps"], one["skipped"], one["nonfinite"]) for one in command_line["optimizers"]]
        assert counts == its_counts


def test_a_run_that_is_not_listed_is_not_looked_for(tab: Board) -> None:
    for name in ("nowhere", "..", "two & <b>/..", "/etc", ""):
        assert "must be a run with records" in tab.refusal(404, "report", run=name)


def test_a_report_is_kept_until_the_files_grow(tmp_path: Path) -> None:
    reports, folders = Reports(), RunFolders(_Flags(str(tmp_path)))
    with writer(tmp_path / "run") as out:
        append(out, range(20), steps=STEPS)
        out.experiment.flush()
        first = reports.of(folders.files("run"))
        assert reports.of(folders.files("run")) is first
        append(out, range(20, STEPS), steps=STEPS)
        out.experiment.flush()
        second = reports.of(folders.files("run"))
    assert second is not first
    assert (first["optimizers"][0]["steps"], second["optimizers"][0]["steps"]) == (20, STEPS)


def test_clipped_steps_are_counted_between_rows(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        for step in (9, 19, 29):
            value = whole(norms(NAMES, step, 30), step, 30)
            value[GLOBAL_NAMES.index("clip_fraction")] = {9: 0.5, 19: 0.0, 29: 0.3}[step]
            out.write([totals(value)], step)
    found = Reports().of(RunFolders(_Flags(str(tmp_path))).files("."))
    assert found["optimizers"][0]["clipped"] == 8  # 5 of the first ten, 3 of the last


def test_layers_that_a_finding_names_are_few_and_steps_beyond_what_a_browser_counts_are_text(tmp_path: Path) -> None:
    many = Finding("dead-layer", "look", "Dead.", layers=tuple(map(str, range(70))), steps=(5, 2**60))
    found = _finding(many)
    assert (len(found["layers"]), found["layer_count"]) == (MOST_LAYERS, 70)
    assert found["steps"] == [5, str(2**60)]


@pytest.mark.parametrize("spec", ["A:{a},B:{b}", "{a},{b}"])
def test_folders_follow_the_flags(tmp_path: Path, spec: str) -> None:
    for name in "ab":
        run(tmp_path / name / f"run {name}", 4, every_hist=0)
        run(tmp_path / name, 4, every_hist=0)
    folders = RunFolders(_Flags(None, spec.format(a=tmp_path / "a", b=tmp_path / "b")))
    prefix = "B/" if ":" in spec.partition("{")[0] else ""
    assert folders.files(f"{prefix}run b").folder == tmp_path / "b" / "run b"
    assert folders.files(f"{prefix}.").folder == tmp_path / ("b" if prefix else "a")


def test_what_is_not_on_this_disk_is_said(tmp_path: Path) -> None:
    cloud, here = _Flags("gs://bucket/logs"), _Flags(str(tmp_path))
    for flags, where in ((cloud, "only TensorBoard can read"), (None, "another place"), (here, "another place")):
        with pytest.raises(Refused, match=where):
            RunFolders(flags).files("run")
    (tmp_path / "up").mkdir()
    run(tmp_path, 4, every_hist=0)
    with pytest.raises(Refused):
        RunFolders(_Flags(str(tmp_path / "up"))).files("..")
    empty = RunFiles("empty", tmp_path, ())
    with pytest.raises(Refused, match="has none yet"):
        Reports().of(empty)


def test_the_newest_run_is_first(tmp_path: Path) -> None:
    for name in ("b", "a10", "a9"):
        run(tmp_path / name, 4, every_hist=0)
        time.sleep(0.02)
    for loader in LOADERS:
        with board(tmp_path, loader) as tab:
            tab.until(lambda tab: len(tab.runs()) == 3)
            assert list(tab.runs()) == ["a9", "a10", "b"]
            started = [one["started"] for one in tab.runs().values()]
            assert started == sorted(started, reverse=True)
            assert all(started)


class _Flags:
    def __init__(self, logdir: str | None, logdir_spec: str = "") -> None:
        self.logdir, self.logdir_spec = logdir, logdir_spec


def test_the_shadows_of_a_run_are_told_with_few_rows_and_few_names(tmp_path: Path) -> None:
    names = [f"MaxNorm({i}.5)" for i in range(MOST_SHADOWS + 5)]
    with writer(tmp_path / "run") as out:
        append(out, range(5), steps=STEPS)
        for step in range(2 * MOST_ROWS + 1):
            row = torch.tensor([0.25, 0.9, 0.5, 1.0 + step if step != 40 else ABSENT, 0.95, ABSENT, 0.5, step + 1.0])
            out.write([shadows(names, row.repeat(len(names), 1))], step)
    run(tmp_path / "plain", STEPS, every_hist=0)
    reports, folders = Reports(), RunFolders(_Flags(str(tmp_path)))
    found = reports.of(folders.files("run"))
    assert [one["shadows"] for one in found["optimizers"]] == [len(names)]
    assert [one["name"] for one in found["shadow"]] == names[:MOST_SHADOWS]
    first = found["shadow"][0]
    known = {key: first[key] for key in ("clip_rate", "mean_factor", "kept", "agreement", "steps", "scope")}
    assert known == {
        "clip_rate": 0.25, "mean_factor": pytest.approx(0.9), "kept": pytest.approx(0.95), "agreement": None,
        "steps": 2 * MOST_ROWS + 1, "scope": "layer",
    }  # fmt: skip
    assert first["threshold"] == 2.0 * MOST_ROWS + 1
    course = first["course"]
    assert len(course["step"]) == len(course["threshold"]) <= MOST_ROWS
    assert (course["step"][-1], course["threshold"][-1]) == (2 * MOST_ROWS, 2.0 * MOST_ROWS + 1)
    assert course["step"] == sorted(course["step"])
    json.dumps(found, allow_nan=False)
    plain = reports.of(folders.files("plain"))
    assert (plain["shadow"], plain["optimizers"][0]["shadows"]) == ([], 0)


def test_a_shadow_without_an_opinion_has_no_threshold() -> None:
    course = ShadowCourse((1, 2, 2**60), (float("inf"), 0.123456789, 1.0), (0.0, 0.0, 0.0))
    told = _shadow(ShadowResult("ZScore()", "ZScore()", None, threshold=float("inf"), course=course))
    assert told["course"] == {"step": [1, 2], "threshold": [None, 0.123457]}
    assert told["threshold"] is None
    assert _shadow(ShadowResult("ZScore()", "ZScore()", None))["course"] == {"step": [], "threshold": []}


def test_a_finding_counts_all_of_its_layers(tmp_path: Path) -> None:
    names = [f"blocks.{i}.weight" for i in range(MOST_LAYERS + 10)]
    with writer(tmp_path) as out:
        for step in range(40):
            numbers = whole(norms(names, 3, 40), 3, 40)
            numbers[GLOBAL_NAMES.index("nonfinite_total")] = float(step >= 30)
            value = norms(names, 3, 40) if step != 30 else torch.full((len(names), 5), torch.nan)
            out.write([layers(names, value), totals(numbers)], step)
    report = Reports().of(RunFolders(_Flags(str(tmp_path))).files("."))
    (found,) = (one for one in report["findings"] if one["code"] == "nonfinite")
    assert f"in {len(names)} of {len(names)} tensors" in found["sentence"]
    assert (found["layer_count"], len(found["layers"])) == (len(names), MOST_LAYERS)
    assert found["layers"][0] == names[-1]
