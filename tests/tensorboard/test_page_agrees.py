"""`lightning-calib report --format html` holds what TensorBoard serves to the tab, from the same event files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board import Board, board
from helpers.held import Elements, held, layers, scalars
from written import run

from lightning_calib.cli import main
from lightning_calib.tensorboard.contract import ABSENT, STATISTICS

RUNS = ("old", "two & <b>")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    run(folder / "old", 120)
    run(folder / "two & <b>", 60, optimizers=2, every_hist=0)
    (old,) = (folder / "old").iterdir()
    old.rename(old.with_name("events.out.tfevents.1000000000.host.1.0"))
    return folder


@pytest.fixture(scope="module")
def tab(logs: Path) -> Iterator[Board]:
    with board(logs, "python") as tab:
        tab.until(lambda tab: len(tab.runs()) == len(RUNS))
        yield tab


@pytest.fixture(scope="module")
def page(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "runs.html"
    assert main(["report", str(logs), "--format", "html", "--output", str(file)]) == 0
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(page: str) -> dict[str, Any]:
    return {one["run"]: one for one in held(page)["runs"]}


def test_the_newest_run_is_the_first(runs: dict[str, Any]) -> None:
    assert [*runs] == ["two & <b>", "old"]
    assert runs["old"]["started"] == 1e9
    assert runs["two & <b>"]["started"] > 1.7e9


def test_every_run_has_the_report_of_the_tab(tab: Board, runs: dict[str, Any]) -> None:
    for name in RUNS:
        assert runs[name]["report"] == tab.json("report", run=name)


def test_runs_and_optimizers_are_listed_as_in_the_tab(tab: Board, runs: dict[str, Any]) -> None:
    for name, served in tab.runs().items():
        mine, its = [one["about"] for one in runs[name]["optimizers"]], served["optimizers"]
        keys = ("optimizer", "name", "last_step")
        assert [[one[key] for key in keys] for one in mine] == [[one[key] for key in keys] for one in its]
        for one, other in zip(mine, its, strict=True):
            assert {*one["kinds"]} == {*other["kinds"], "hist"} - {"events"}


def test_numbers_are_those_that_are_served(tab: Board, runs: dict[str, Any]) -> None:
    for name in RUNS:
        for one in runs[name]["optimizers"]:
            query = {"run": name, "optimizer": one["about"]["optimizer"]}
            served = tab.frame("globals", **query)
            mine = scalars(one)
            assert (one["globals"]["steps"], [*mine]) == (served.header["steps"], served.header["names"])
            for column, values in zip(mine.values(), served.values.T, strict=True):
                if column is mine["grad_norm_max"]:  # the largest finite norm: a file says so where there is none
                    values = np.where(np.isfinite(values), values, ABSENT)
                np.testing.assert_array_equal(_bad_is_inf(column), _bad_is_inf(values))
            for stat in STATISTICS:
                served = tab.frame("layers", **query, stat=stat)
                for key in ("rows", "owners", "dims", "estimated", "steps", "stats"):
                    assert one["layers"][key] == served.header[key]
                ours = _bad_is_inf(layers(one, stat))
                np.testing.assert_allclose(ours, _bad_is_inf(served.values), rtol=2**-8, atol=0)  # as it is rounded


def _bad_is_inf(values: np.ndarray) -> np.ndarray:
    """The panels tell inf from nan nowhere."""
    return np.where(np.isnan(values), np.inf, values)


def test_events_are_those_that_are_served(tab: Board, runs: dict[str, Any]) -> None:
    for name in RUNS:
        for one in runs[name]["optimizers"]:
            served = tab.json("events", run=name, optimizer=one["about"]["optimizer"])["events"]
            key = lambda event: (event["step"], event["kind"], event["text"])  # noqa: E731
            assert sorted(one["events"], key=key) == sorted(served, key=key)
            assert served


def test_one_run_gives_the_page_its_name(logs: Path, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(logs) in Elements(page).of("title")[0][1]
    assert "<h2>two &amp; &lt;b&gt;</h2>" in page
    assert main(["report", str(logs / "old"), "--format", "html"]) == 0
    alone = capsys.readouterr().out
    assert str(logs / "old") in Elements(alone).of("title")[0][1]
    assert "<h2>" not in alone


def test_an_output_that_cannot_be_written_is_told(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(output: str) -> str:
        assert main(["report", str(logs), "--format", "html", "--output", output]) == 2
        return capsys.readouterr().err

    assert "`--output` must be a file in a folder that exists, got nowhere/a.html" in answer("nowhere/a.html")
    assert not os.path.exists("nowhere")
    assert "directory" in answer(".")


def test_a_file_whose_name_does_not_tell_when_it_was_opened(tmp_path: Path) -> None:
    run(tmp_path / "run", 20)
    (file,) = (tmp_path / "run").iterdir()
    file.rename(file.with_name("tfevents"))
    assert main(["report", str(tmp_path), "--format", "html", "--output", "page.html"]) == 0
    assert held(Path("page.html").read_text())["runs"][0]["started"] is None
