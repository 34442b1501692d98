"""One meaning of step: that of the charts, by which an incident's row, event, sentence and file are found."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from helpers.event_files import Recorded
from helpers.poisoned_batches import ADAM, Plant, PlantInStep, every, incidents
from helpers.tiny_modules import SGD, Rows, Tiny, TwoNets, batches_that_stepped, fit
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_calib import GradientMonitor, NonFiniteGradientError, NonFiniteGuard

NAN = math.nan


class Gan(TwoNets):
    """Both nets step in every batch; the second's loss is NaN in batch 5, and in batch 9 both are."""

    def __init__(self) -> None:
        super().__init__(SGD, ADAM, {505: NAN, 9: NAN, 509: NAN})


def told(lines: list[str]) -> list[int]:
    return [int(re.search(r"step (\d+) \(epoch", line)[1]) for line in incidents(lines)]


def test_text_row_event_and_file_of_a_manual_gan_stand_at_one_step(said):
    rows = Rows()
    guard = NonFiniteGuard("skip", save_batch_to="bad")
    trainer = fit(Gan(), [guard, GradientMonitor(1)], 24, logger=[rows, TensorBoardLogger("logs", "", "")])
    assert trainer.global_step == 24
    assert told(said()) == [5, 9, 9]
    assert "step 5 (epoch 0, batch 5)" in incidents(said())[0]
    assert next(step for step, row in rows.rows if row["calib/nonfinite_total/1"] == 1) == 5
    found = Recorded("logs")
    events = [(one["step"], one["text"]) for i in (0, 1) for one in found.events("nonfinite", i)]
    assert sorted(step for step, _ in events) == [5, 9], "of a kind one in five rows is told"
    assert all(f"step {step} (" in text for step, text in events)
    paths = sorted(Path("bad").iterdir())
    assert [one.name for one in paths] == [
        "step00000005-rank0.pt",
        "step00000009-rank0-2.pt",
        "step00000009-rank0.pt",
    ]
    saved = [torch.load(path, weights_only=True) for path in paths]
    assert [one["step"] for one in saved] == [5, 9, 9]
    assert len({one["incident"] for one in saved}) == 3
    assert all(f"step {one['step']} (" in one["incident"] for one in saved)


def test_the_error_at_the_end_tells_the_same_steps():
    with pytest.raises(NonFiniteGradientError, match=r"step 5 \(epoch 0, batch 5\)"):
        fit(Gan(), [NonFiniteGuard("raise")], 24)


class Critic(Tiny):
    """By hand: three steps of one optimizer in each batch, of which the last two are bad in batch 4."""

    def __init__(self) -> None:
        super().__init__(SGD)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        step, optimizer = batches_that_stepped(self.trainer), self.optimizers()
        for turn in range(3):
            optimizer.zero_grad()
            self.manual_backward(self.loss(self.net, step) * (NAN if step == 4 and turn else 1.0))
            optimizer.step()


def test_several_steps_of_one_optimizer_in_a_batch(said):
    rows = Rows()
    fit(Critic(), [NonFiniteGuard("skip", save_batch_to="bad"), GradientMonitor(1)], 18, logger=rows)
    assert told(said()) == [4, 4]
    assert [row["calib/nonfinite_total"] for step, row in rows.rows if step in (3, 4)] == [0, 2]
    assert sorted(path.name for path in Path("bad").iterdir()) == ["step00000004-rank0-2.pt", "step00000004-rank0.pt"]


@pytest.mark.parametrize("plant", [Plant, PlantInStep])
def test_with_one_optimizer_it_is_the_trainers_own(plant, said):
    fit(Tiny(ADAM), [GradientMonitor(), plant(every("net.0.bias", [3, 8])), NonFiniteGuard("skip")])
    assert told(said()) == [3, 8]
