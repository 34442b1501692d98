"""Lines on the console: few in health, at once in sickness, and none continues that of a progress bar."""

from __future__ import annotations

import logging
import math
import re
import sys
from functools import partial

import pytest
import torch
from helpers.tiny_modules import BATCHES, Rows, Tiny, data, fit
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard

SGD = partial(torch.optim.SGD, lr=0.05)


class Learns(Tiny):
    """Its targets follow from its inputs, so that the loss falls."""

    def loss(self, net, step):
        x, _ = data(step)
        return torch.nn.functional.mse_loss(net(x), x[:, :1]) * self.gains.get(step, 1.0)


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lightning_calib"]


@pytest.mark.parametrize("logger", [False, True])
def test_a_healthy_run_of_three_epochs_has_at_most_five(logger, caplog):
    kwargs = {"logger": TensorBoardLogger("logs", name=None)} if logger else {}
    fit(Tiny(SGD), [GradientMonitor()], 3 * BATCHES, **kwargs)
    told = lines(caplog)
    assert len(told) <= 5
    assert all("\n" not in line for line in told)
    assert [line.partition(":")[0] for line in told[-2:]] == ["[calib] after 1 epoch", "[calib] after 2 epochs"]


def warnings_at_rows(caplog, gains, *callbacks, steps=40, every=2) -> list[tuple[int, str]]:
    """Each warning, and how many rows had been written when it came."""
    logger, found = Rows(), []

    class Notes(logging.Handler):
        def emit(self, record):
            if record.levelno > logging.INFO:
                found.append((len(logger.rows), record.getMessage()))

    notes = Notes()
    logging.getLogger("lightning_calib").addHandler(notes)
    try:
        fit(Learns(SGD, gains), [*callbacks, GradientMonitor(every)], steps, logger=logger)
    finally:
        logging.getLogger("lightning_calib").removeHandler(notes)
    return found


def test_a_gradient_that_is_not_finite_is_told_at_the_next_row_and_once(caplog):
    told = warnings_at_rows(caplog, {25: math.nan, 27: math.nan, 31: math.nan})
    ours = [(row, text) for row, text in told if re.search("inf or nan", text)]
    assert [row for row, _ in ours] == [13]  # of the steps 25 and 26


def test_a_guard_tells_it_by_itself(caplog):
    told = warnings_at_rows(caplog, {25: math.nan}, NonFiniteGuard("skip"))
    assert len(told) == 1
    assert "the step is skipped" in told[0][1]


def test_a_spike_with_the_loss_is_told_within_the_next_rows_and_once(caplog):
    told = warnings_at_rows(caplog, {30: 3000.0}, GradientClip(2.0), steps=60)
    assert len(told) == 1
    assert 16 <= told[0][0] <= 20
    assert "step" in told[0][1]


def test_a_healthy_run_is_not_told_anything(caplog):
    assert warnings_at_rows(caplog, {}) == []


def test_no_line_continues_that_of_a_bar(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest's, beside which our own would be silent
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[GradientMonitor(2), TQDMProgressBar(refresh_rate=1)],
    )
    trainer.fit(Tiny(SGD))
    found = capsys.readouterr()
    shown = found.err + found.out
    assert "[calib] after 1 epoch" in shown
    for text in (found.err, found.out):
        before = [text[: match.start()] for match in re.finditer(r"\[calib\]", text)]
        assert all(part == "" or part.endswith(("\n", "\r")) for part in before)


def test_the_bar_is_drawn_again_below_the_line(capsys, monkeypatch):
    from tqdm import tqdm

    from lightning_calib.fit.messages import say

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    bar = tqdm(total=4, file=sys.stderr, desc="Epoch 0", mininterval=0)
    bar.update(2)
    say("after 1 epoch: text.")
    shown = capsys.readouterr().err
    bar.close()
    at = shown.index("[calib] after 1 epoch: text.\n")
    assert shown[:at].endswith("\r")
    assert "Epoch 0:  50%" in shown[at:]
