"""What the monitor keeps for a report after a thousand rows: how much it is, and how long a report takes over it."""

from __future__ import annotations

import io
import time

import pytest
import torch
from helpers.tiny_modules import Tiny, fit
from lightning.pytorch import Callback
from torch import nn

from lightning_calib import GradientMonitor
from lightning_calib.fit.row_keeper import COLUMNS, LARGEST
from lightning_calib.steps.kept_rows import room
from lightning_calib.steps.layer_rows import COLUMNS as STATISTICS

ROWS = 1_000


class Many(nn.Module):
    """The sum of so many vectors, of which each is a parameter."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.blocks = nn.ParameterList(torch.full((2, 1), 0.01) for _ in range(tensors))

    def forward(self, x):
        return x[:, :2] @ torch.stack(list(self.blocks)).sum(0)


class AThousandRows(Callback):
    """After a step, a thousand rows and as many more as fill what is kept: numbers, in place of as many steps."""

    def __init__(self, monitor: GradientMonitor) -> None:
        self.monitor = monitor
        self.seconds: list[float] = []
        self.size = 0

    def on_train_batch_end(self, trainer, *_):
        (run,) = self.monitor._session.runs.values()
        tensors = len(run.view.plan.tensors)
        most, row = room(tensors * len(STATISTICS)), 0
        while row < ROWS or len(run.history.layers.rows) < most - 1 or run.history.layers.open is None:  # when full
            history, row = run.history, row + 1
            layers = torch.rand(tensors, len(STATISTICS)) + 0.1
            run.history = history.after(row, torch.rand(len(COLUMNS)) + 0.1, layers, LARGEST, run.memory.steps, 1.0)
        buffer = io.BytesIO()
        torch.save(self.monitor.state_dict(), buffer)
        self.size = buffer.tell()
        for _ in range(5):
            start = time.process_time()
            text = self.monitor.report().as_dict()["verdict"]
            self.seconds.append(time.process_time() - start)
        assert text


def filled(tensors: int) -> AThousandRows:
    monitor = GradientMonitor(every_n_steps=1)
    rows = AThousandRows(monitor)
    fit(Tiny(net=lambda: Many(tensors)), [monitor, rows], 1)
    (run,) = monitor.report().runs
    assert len(run.layers.names) == tensors
    assert len(run.layers.step) >= 8
    return rows


@pytest.mark.parametrize("tensors", [10, 1_000, 10_000])
def test_what_is_saved_is_less_than_2_mb(tensors):
    assert 50_000 < filled(tensors).size < 2_000_000


def test_a_report_of_a_thousand_tensors_takes_less_than_a_fifth_of_a_second():
    assert min(filled(1_000).seconds) < 0.2
