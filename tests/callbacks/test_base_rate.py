"""A rule that computes the whole step, under a learning rate that it is not meant for, is told of at the start."""

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from helpers.rate_probes import Always
from helpers.tiny_modules import Tiny, TwoNets, fit
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR

from lightning_calib import DistanceOverGradients, InverseNorm, LearningRateControl, Polyak, SpikeBackoff
from lightning_calib.fit.base_rate import base_rate, doubt_of_rate
from lightning_calib.schedules.rule import Setting

WHOLE = [Polyak, DistanceOverGradients]


@pytest.fixture
def warned(caplog):
    """The warnings of our logger."""
    caplog.set_level(logging.INFO, logger="lightning_calib")
    return lambda: [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def _sgd(lr):
    return partial(torch.optim.SGD, lr=lr)


@pytest.mark.parametrize("rule", WHOLE)
def test_one_line_has_rule_value_and_remedy(warned, rule):
    fit(Tiny(_sgd(1e-3)), [LearningRateControl(rule(), name="mine")], 4)
    [line] = warned()
    assert "\n" not in line
    assert line.startswith(f"[calib] LearningRateControl(mine): {rule.__name__} is meant for plain SGD with lr=1.0")
    assert "SGD has lr=0.001" in line
    assert "Use plain SGD with lr=1.0 and max_factor=math.inf" in line
    assert "SpikeBackoff()" in line


def test_an_open_cap_is_not_asked_for_again(warned):
    fit(Tiny(_sgd(0.5)), [LearningRateControl(Polyak(), max_factor=math.inf)], 1)
    [line] = warned()
    assert "Use plain SGD with lr=1.0, or" in line


@pytest.mark.parametrize("rule", WHOLE)
@pytest.mark.parametrize("lr", [1.0, 1, torch.tensor(1.0)], ids=["float", "int", "tensor"])
def test_the_right_rate_is_silent(warned, rule, lr):
    fit(Tiny(partial(torch.optim.SGD, lr=lr, foreach=False)), [LearningRateControl(rule())], 1)
    assert warned() == []


@pytest.mark.parametrize("rule", [SpikeBackoff, InverseNorm])
def test_a_rule_that_corrects_any_rate_is_silent(warned, rule):
    fit(Tiny(_sgd(1e-3)), [LearningRateControl(rule())], 1)
    assert warned() == []


def test_a_tensor_rate_is_read(warned):
    fit(Tiny(partial(torch.optim.SGD, lr=torch.tensor(0.001), foreach=False)), [LearningRateControl(Polyak())], 1)
    assert "SGD has lr=0.001," in warned()[0]


def test_another_optimizer_is_not_told_to_take_that_rate_itself(warned):
    fit(Tiny(partial(torch.optim.AdamW, lr=1e-3)), [LearningRateControl(Polyak())], 1)
    [line] = warned()
    assert "AdamW has lr=0.001" in line
    assert "Use plain SGD with lr=1.0" in line


class Groups(Tiny):
    def configure_optimizers(self):
        head, rest = [*self.net[4].parameters()], [*self.net[:4].parameters()]
        groups = [{"params": head}, {"params": rest, "lr": 0.1}, {"params": [], "lr": 7.0}]
        return torch.optim.SGD(groups, lr=self.optimizer)


@pytest.mark.parametrize(("lr", "text"), [(1.0, "SGD has lr=0.1,"), (0.2, "SGD has lr=0.1 and lr=0.2,")])
def test_each_group_that_has_parameters_is_looked_at(warned, lr, text):
    fit(Groups(lr), [LearningRateControl(Polyak())], 1)
    [line] = warned()
    assert text in line


def test_of_two_optimizers_the_wrong_one_is_told(warned):
    fit(TwoNets(_sgd(1.0), _sgd(0.25)), [LearningRateControl(DistanceOverGradients())], 2)
    [line] = warned()
    assert "SGD has lr=0.25," in line


class Scheduled(Tiny):
    def __init__(self, lr, schedule):
        super().__init__(_sgd(lr))
        self.schedule = schedule

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


SCHEDULES = {
    "linear warm-up": (1.0, partial(LinearLR, start_factor=1e-3, total_iters=10)),
    "lambda from zero": (1.0, partial(LambdaLR, lr_lambda=lambda step: min(1.0, step / 10))),
    "cosine": (1.0, partial(CosineAnnealingLR, T_max=10)),
    "one cycle": (0.1, partial(OneCycleLR, max_lr=1.0, total_steps=20)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_varies_the_rate_that_counts(warned, name, tmp_path):
    lr, schedule = SCHEDULES[name]
    fit(Scheduled(lr, schedule), [LearningRateControl(Polyak())], 4)
    assert warned() == []


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_another_rate_is_told_with_its_base(warned, name):
    _, schedule = SCHEDULES[name]
    schedule = partial(schedule, max_lr=0.02) if name == "one cycle" else schedule
    fit(Scheduled(0.02, schedule), [LearningRateControl(Polyak())], 4)
    [line] = warned()
    assert "SGD has lr=0.02," in line


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_resumed_run_is_judged_by_the_rate_that_it_began_with(warned, tmp_path):
    def run(steps, **kwargs):
        module = Scheduled(1.0, partial(CosineAnnealingLR, T_max=10))
        return fit(module, [LearningRateControl(Polyak())], steps, **kwargs)

    run(8).save_checkpoint(tmp_path / "a.ckpt")
    resumed = run(9, ckpt_path=tmp_path / "a.ckpt")
    assert resumed.optimizers[0].param_groups[0]["lr"] < 0.1
    assert warned() == []


@pytest.mark.parametrize("group", [{}, {"lr": None}, {"lr": torch.ones(2)}, {"lr": "1e-3"}])
def test_a_group_without_a_rate_has_none(group):
    assert base_rate(group) is None


def test_an_optimizer_without_a_rate_is_not_doubted():
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=1e-3)
    assert doubt_of_rate(Polyak(), optimizer, 1.0) is not None
    optimizer.param_groups[0]["lr"] = None
    assert doubt_of_rate(Polyak(), optimizer, 1.0) is None
    del optimizer.param_groups[0]["lr"]
    assert doubt_of_rate(Polyak(), optimizer, 1.0) is None


@dataclass(frozen=True)
class Mine(Always):
    meant_for: ClassVar[Setting | None] = Setting("SignSGD", rate=0.3, max_factor=2.0)


@pytest.mark.parametrize(("lr", "told"), [(0.3, False), (0.6, True)])
def test_a_rule_of_the_users_own_declares_it_too(warned, lr, told):
    fit(Tiny(_sgd(lr)), [LearningRateControl(Mine(0.5))], 1)
    lines = warned()
    assert bool(lines) == told
    assert all("Mine is meant for SignSGD with lr=0.3" in line and "max_factor=2.0" in line for line in lines)
