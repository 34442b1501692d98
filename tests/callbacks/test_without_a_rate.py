"""Optimizers whose param groups have no learning rate, or one of None."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.event_files import Recorded
from helpers.rate_probes import Always, Tells
from helpers.tiny_modules import Rows, Tiny, fit, same_bits, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from pytorch_optimizer import A2Grad, AliG

from lightning_calib import GradientClip, GradientMonitor, InverseNorm, LearningRateControl, NonFiniteGuard, ZClip
from lightning_calib.tensorboard.contract import ABSENT


class Unrated(torch.optim.Optimizer):
    """Normalised descent with a step of its own."""

    def __init__(self, params: Any, **defaults: Any) -> None:
        super().__init__(params, defaults)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                p.sub_(0.01 * p.grad / p.grad.norm().clamp(min=1e-6))
        return loss


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AliG": AliG,
    "A2Grad": A2Grad,
    "no rate": Unrated,
    "a rate of None": partial(Unrated, lr=None),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("callback", [GradientMonitor, partial(ZClip, z_max=1e6), partial(NonFiniteGuard, "skip")])
def test_the_rate_is_left_out_of_the_row(name: str, callback: Callable[[], Any]) -> None:
    rows, bare, module = Rows(), Tiny(OPTIMIZERS[name]), Tiny(OPTIMIZERS[name])
    fit(bare)
    fit(module, [callback()], logger=rows, log_every_n_steps=1)
    same_bits(weights(module), weights(bare))
    assert len(rows.values("calib/grad_norm_before")) == 12
    assert not [tag for tag in rows.tags if "lr" in tag]


def test_and_out_of_the_tab() -> None:
    logger = TensorBoardLogger("logs")
    fit(Tiny(partial(Unrated, lr=None)), [GradientMonitor(1)], logger=logger)
    found = Recorded(logger.log_dir)
    assert found.total("lr") == found.total("lr_effective") == [ABSENT] * 12
    assert all(norm > 0 for norm in found.total("grad_norm_before"))
    assert found.events("rate") == []


@pytest.mark.parametrize(("name", "rate"), [*((name, "") for name in OPTIMIZERS), ("tensor", ", learning rate 0.05")])
def test_and_out_of_the_incident(name: str, rate: str, said: Callable[[], list[str]]) -> None:
    make = OPTIMIZERS.get(name, partial(Tells, lr=torch.tensor(0.05)))
    module = Tiny(make, {3: math.nan})
    fit(module, [NonFiniteGuard("skip")], 6)
    (line,) = [line for line in said() if "the gradient is not finite" in line]
    assert f"; loss nan{rate}; " in line
    assert all(weight.isfinite().all() for weight in weights(module))


def test_clipping_works_without_a_rate() -> None:
    rows = Rows()
    fit(Tiny(Unrated), [GradientClip(0.1), GradientMonitor(1)], logger=rows)
    assert rows.values("calib/grad_norm_after") == pytest.approx([0.1] * 12)
    assert rows.values("calib/clip_fraction") == [1.0] * 12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_control_refuses_in_words(name: str) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        fit(Tiny(OPTIMIZERS[name]), [LearningRateControl(InverseNorm())], 1)
    kind = {"AliG": "AliG", "A2Grad": "A2Grad"}.get(name, "Unrated")
    assert str(caught.value) == (
        f"LearningRateControl cannot control {kind}: `lr` must be a number or a tensor in each param group, got None "
        "in group 0: the optimizer finds its step size by itself. Use another optimizer, or leave LearningRateControl "
        "out."
    )


class Later(Tiny):
    """A group without a rate that comes when training has begun."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            extra = torch.nn.Parameter(torch.ones(2))
            self.register_parameter("extra", extra)
            self.optimizers().add_param_group({"params": [extra], "lr": None})


def test_and_when_such_a_group_is_added() -> None:
    with pytest.raises(MisconfigurationException, match="got None in group 1"):
        fit(Later(partial(Tells, lr=0.05)), [LearningRateControl(Always((0.5,)))], 12)
