"""The summary is of the whole run: every optimizer's tab has it, whoever's records it stands among."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from board import LOADERS, board
from helpers.tiny_modules import TwoNets, fit
from lightning.pytorch.loggers import TensorBoardLogger
from written import GLOBAL_NAMES, event, events, totals, writer

from lightning_calib import GradientMonitor


def summaries(found: dict[str, Any]) -> list[tuple[int, str]]:
    return [(each["step"], each["text"]) for each in found["events"] if each["kind"] == "summary"]


@pytest.mark.parametrize("loader", LOADERS)
def test_each_optimizer_of_a_fit_has_the_summary_of_the_run(tmp_path: Path, loader: str) -> None:
    torch.manual_seed(0)
    monitor = GradientMonitor(1)
    nets = TwoNets(partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=1e-3))
    fit(nets, [monitor], 12, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    with board(tmp_path, loader) as tab:
        tab.until(lambda tab: tab.runs())
        tab.until(lambda tab: monitor.summary() in [text for _, text in summaries(tab.json("events", run="run"))])
        first, second = (summaries(tab.json("events", run="run", optimizer=k)) for k in (0, 1))
    assert first == second


def test_the_newest_summary_is_last_and_other_events_stay_with_their_optimizer(tmp_path: Path) -> None:
    both: list[dict[str, Any]] = [{"suffix": f"/{k}", "optimizer": k, "optimizer_name": "SGD"} for k in (0, 1)]
    with writer(tmp_path / "run") as out:
        for step in range(10):
            out.write([totals(torch.ones(len(GLOBAL_NAMES)), **which) for which in both], step)
        # As after a resume in which the second optimizer was the first to step.
        out.write([events([event(4, "summary", "old"), event(5, "dead", "gone")], **both[0])], 5)
        out.write([events([event(9, "summary", "new"), event(6, "spike", "high")], **both[1])], 10)
    with board(tmp_path, "python") as tab:
        told = [[each["text"] for each in tab.json("events", run="run", optimizer=k)["events"]] for k in (0, 1)]
    assert told == [["old", "gone", "new"], ["old", "high", "new"]]
