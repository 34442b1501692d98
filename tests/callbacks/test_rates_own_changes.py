"""What an optimizer itself writes to its learning rate within a step is kept, in proportion to what it was given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.rate_probes import Always, Scheduled, Tells, pure, run
from helpers.tiny_modules import Tiny, different, fit, same_bits, scaled, weights
from lightning.pytorch import Callback
from torch import Tensor

from lightning_calib import GradientMonitor, LearningRateControl, NonFiniteGuard, SpikeBackoff
from lightning_calib.steps.scaled_rates import ScaledRates

GROWTH = 1.05
PARAMETER = partial(torch.nn.Parameter, torch.ones(2))


class Grows(Tells):
    """Its rate grows with every step; ``write`` says how."""

    def __init__(self, params: Any, lr: float | Tensor = 0.001, write: Callable[..., None] | None = None) -> None:
        super().__init__(params, lr)
        self.write = write or multiply

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            self.write(group)
        return loss


def multiply(group: dict[str, Any]) -> None:
    group["lr"] = group["lr"] * GROWTH


def multiply_in_place(group: dict[str, Any]) -> None:
    group["lr"].mul_(GROWTH)


def grown(steps: int, rate: float = 0.001) -> list[float]:
    return [rate * GROWTH**step for step in range(steps)]


@pytest.mark.parametrize("plugins", [None, 2.0**9])
@pytest.mark.parametrize("factor", [0.5, 1.0, 0.3])
def test_a_rate_that_grows_goes_on_growing(factor: float, plugins: float | None) -> None:
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    module = Tiny(Grows)
    found = run(module, [LearningRateControl(Always((factor,)))], 12, **kwargs)
    assert [used for (used,) in found.used] == pytest.approx([rate * factor for rate in grown(12)], rel=1e-6)
    assert found.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001 * GROWTH**12, rel=1e-6)
    assert found.rows.values("calib/lr") == pytest.approx(grown(12), rel=1e-6)


def test_a_factor_of_one_changes_no_bit_of_it() -> None:
    found = [run(Tiny(Grows), callbacks, 12) for callbacks in ([], [LearningRateControl(SpikeBackoff())])]
    same_bits(*(one.used for one in found))
    same_bits(*(weights(one.module) for one in found))


@pytest.mark.parametrize("write", [multiply, multiply_in_place])
def test_a_tensor_that_grows(write: Callable[..., None]) -> None:
    rate = torch.tensor(0.001, dtype=torch.float64)
    trainer = fit(Tiny(partial(Grows, lr=rate, write=write)), [LearningRateControl(Always((0.5,)))], 6)
    assert [used for (used,) in trainer.optimizers[0].used] == pytest.approx([0.5 * one for one in grown(6)], rel=1e-12)
    left = trainer.optimizers[0].param_groups[0]["lr"]
    assert float(left) == pytest.approx(0.001 * GROWTH**6, rel=1e-12)
    assert (left is rate) == (write is multiply_in_place)
    if write is multiply:
        assert rate.item() == 0.001, "the user's own tensor is as it was"


@pytest.mark.parametrize("order", [1, -1])
def test_two_controls_and_an_observer(order: int) -> None:
    controls = [LearningRateControl(Always((0.5,)), name="a"), LearningRateControl(Always((0.25,)), name="b")]
    found = run(Tiny(Grows), [GradientMonitor(), *controls[::order], NonFiniteGuard("skip")], 6)
    assert [used for (used,) in found.used] == pytest.approx([0.125 * rate for rate in grown(6)], rel=1e-6)
    assert found.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001 * GROWTH**6, rel=1e-6)


def test_a_scheduler_goes_on_from_there() -> None:
    found = run(Scheduled(optimizer=Grows), [LearningRateControl(Always((0.5,)))], 6)
    assert pure(found) == pytest.approx([0.001 * (0.9 * GROWTH) ** step for step in range(6)], rel=1e-6)


def test_a_checkpoint_within_the_step_has_the_pure_rates() -> None:
    class Saves(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            saved.append(optimizer.state_dict()["param_groups"][0]["lr"])

    saved: list[float] = []
    fit(Tiny(Grows), [LearningRateControl(Always((0.5,))), Saves()], 4)
    assert saved == pytest.approx(grown(4), rel=1e-6)


def once(optimizer: Any, factors: list[Any], inside: Callable[[], Any] = lambda: None) -> None:
    """One step under hooks alone; ``inside`` runs within, when the rates are scaled."""
    rates = ScaledRates(optimizer)
    rates.attach()

    def closure() -> None:
        rates.scale(factors)
        inside()

    optimizer.step(closure)
    rates.detach()


def writes(value: Any) -> Callable[..., None]:
    def write(group: dict[str, Any]) -> None:
        group["lr"] = value

    return write


@pytest.mark.parametrize("kind", [float, partial(torch.tensor, dtype=torch.float64)])
@pytest.mark.parametrize(
    ("rate", "factor", "write", "left"),
    [
        (0.1, 0.3, lambda group: None, 0.1),
        (0.1, 0.0, lambda group: None, 0.1),
        (0.1, 0.0, multiply, 0.1),  # 0 times anything is 0: no change can be seen
        (0.1, 0.0, writes(0.02), 0.02),  # no proportion: it stays
        (0.1, 1.0, writes(0.02), 0.02),
        (0.1, 0.5, writes(0.02), 0.04),
        (0.0, 0.5, lambda group: None, 0.0),
        (0.0, 0.5, writes(0.02), 0.02),
        (0.1, float("nan"), lambda group: None, 0.1),
    ],
)
def test_the_rule(kind: Any, rate: float, factor: float, write: Callable[..., None], left: float) -> None:
    optimizer = Grows([PARAMETER()], kind(rate), write)
    once(optimizer, [factor])
    assert float(optimizer.param_groups[0]["lr"]) == left


def test_an_integer_comes_back_as_it_was() -> None:
    optimizer = Tells([PARAMETER()], 1)
    once(optimizer, [0.3])
    assert optimizer.param_groups[0]["lr"] == 1
    assert type(optimizer.param_groups[0]["lr"]) is int


def test_a_tensor_in_the_place_of_a_number_and_back() -> None:
    optimizer = Grows([PARAMETER()], 0.1, writes(torch.tensor(0.02, dtype=torch.float64)))
    once(optimizer, [0.5])
    torch.testing.assert_close(optimizer.param_groups[0]["lr"], torch.tensor(0.04, dtype=torch.float64))
    optimizer.write = writes(0.01)
    once(optimizer, [0.5])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)


def test_a_tensor_that_groups_share_is_changed_once_and_one_of_them_may_leave_it() -> None:
    shared = torch.tensor(0.1, dtype=torch.float64)
    optimizer = Tells([{"params": [PARAMETER()]} for _ in range(3)], shared)

    def inside() -> None:
        shared.mul_(2)
        optimizer.param_groups[1]["lr"] = 0.01

    once(optimizer, [0.5] * 3, inside)
    assert shared.item() == pytest.approx(0.2)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.2, 0.02, 0.2])
    assert [group["lr"] is shared for group in optimizer.param_groups] == [True, False, True]


def test_a_group_that_is_added_within_the_step_keeps_its_rate() -> None:
    optimizer = Tells([PARAMETER()], 0.1)
    once(optimizer, [0.5], lambda: optimizer.add_param_group({"params": [PARAMETER()], "lr": 0.3}))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]


def test_rates_that_are_loaded_within_the_step_stay() -> None:
    optimizer = Tells([PARAMETER()], 0.1)
    saved = Tells([PARAMETER()], 0.3).state_dict()
    once(optimizer, [0.5], lambda: optimizer.load_state_dict(saved))
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_a_state_taken_within_the_arithmetic_has_what_the_step_will_leave() -> None:
    saved: list[Any] = []

    def write(group: dict[str, Any]) -> None:
        multiply(group)
        saved.append(optimizer.state_dict()["param_groups"][0]["lr"])

    optimizer = Grows([PARAMETER()], 0.1, write)
    once(optimizer, [0.5])
    assert saved == [optimizer.param_groups[0]["lr"]] == [pytest.approx(0.105)]


class Shapeless(torch.optim.Optimizer):
    """Plain descent on the meta device, whose tensors have no value to look at."""

    def step(self, closure: Callable[[], Any]) -> None:
        closure()
        for group in self.param_groups:
            group["lr"].mul_(GROWTH)


def test_a_tensor_is_put_back_without_looking_at_it() -> None:
    rate = torch.ones((), device="meta")
    optimizer = Shapeless([torch.nn.Parameter(torch.ones(2, device="meta"))], {"lr": rate})
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(rate == 1)
    once(optimizer, [torch.full((), 0.5, device="meta")], lambda: optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate


def test_the_growth_is_not_that_of_nothing() -> None:
    """The other tests could not fail with an optimizer whose rate stays."""
    found = [run(Tiny(one), [], 6).used for one in (Grows, partial(Tells, lr=0.001))]
    with different("one grows"):
        same_bits(*found)
