"""Optimizers that wrap another and skip `Optimizer.__init__`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.rate_probes import Always, Scheduled, Tells, pure, run
from helpers.tiny_modules import Rows, Tiny, fit, same_bits, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from pytorch_optimizer import Lookahead, Magma, OrthoGrad, PCGrad

from lightning_calib import GradientClip, GradientMonitor, LearningRateControl, NonFiniteGuard

WRAPPERS: dict[str, tuple[type, str]] = {  # and where the state of the optimizer inside lies in theirs
    "Lookahead": (Lookahead, "base_optimizer"),
    "Magma": (Magma, "base"),
    "OrthoGrad": (OrthoGrad, ""),
    "PCGrad": (PCGrad, ""),
}


def around(kind: Any, inner: Callable[..., Any] = Tells) -> Callable[..., Any]:
    return lambda params: kind(inner(params))


class Saves(Callback):
    """When the factor is in place."""

    def __init__(self) -> None:
        self.pure: list[float] = []
        self.inside: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.pure.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        trainer.save_checkpoint(f"{trainer.global_step}.ckpt")
        self.inside.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_optimizer_inside_takes_the_factor_and_checkpoints_do_not(name: str) -> None:
    kind, key = WRAPPERS[name]
    saves = Saves()
    trainer = fit(Scheduled(optimizer=around(kind)), [LearningRateControl(Always((0.5,))), saves], 4)
    assert saves.pure == pytest.approx([0.05 * 0.9**step for step in range(4)], rel=1e-12)
    half = [rate * 0.5 for rate in saves.pure]
    assert saves.inside == half
    assert trainer.optimizers[0].optimizer.used == [[rate] for rate in half]
    for step in range(4):
        state = torch.load(f"{step}.ckpt", weights_only=False)["optimizer_states"][0]
        inner = state[key] if key else state
        assert inner["param_groups"][0]["lr"] == saves.pure[step]


@pytest.mark.parametrize("name", WRAPPERS)
def test_no_hook_stays_behind(name: str) -> None:
    trainer = fit(Tiny(around(WRAPPERS[name][0])), [LearningRateControl(Always((0.5,)))], 3)
    outer = trainer.optimizers[0]
    for one in (outer, outer.optimizer):
        assert not any((one._optimizer_step_pre_hooks, one._optimizer_step_post_hooks))
    assert not outer.optimizer._optimizer_state_dict_post_hooks


def test_an_early_reader_inside_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"cannot control Lookahead\. Rprop: it reads"):
        fit(Tiny(around(Lookahead, torch.optim.Rprop)), [LearningRateControl(Always((0.5,)))], 1)


class Alone(Tells):
    """Everything but the hooks on what is saved."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        del self._optimizer_state_dict_post_hooks


def test_where_saved_rates_cannot_be_kept_pure_the_control_refuses() -> None:
    with pytest.raises(MisconfigurationException) as caught:
        fit(Tiny(Alone), [LearningRateControl(Always((0.5,)))], 1)
    parts = ["LearningRateControl", "Alone", "`state_dict` runs none of torch's hooks", "Use another optimizer"]
    assert all(part in str(caught.value) for part in parts)


class Handmade(torch.optim.Optimizer):
    """Takes over what it wraps, and nothing of torch's hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self.inner.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()


def handmade(params: Any) -> Handmade:
    return Handmade(Tells(params))


def roomy(params: Any) -> Handmade:
    """With room for hooks; torch lets the steps of a class call them from the first `zero_grad` of one of it on."""

    class Roomy(Handmade):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner)
            self._optimizer_step_pre_hooks: dict[int, Any] = OrderedDict()
            self._optimizer_step_post_hooks: dict[int, Any] = OrderedDict()

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            return super().step(closure)

    return Roomy(Tells(params))


class Forwards(Handmade):
    """Hands its hooks on to the optimizer inside."""

    def register_step_pre_hook(self, hook: Any) -> Any:
        return self.inner.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.inner.register_step_post_hook(hook)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self.inner.register_state_dict_post_hook(hook, prepend)


# A scheduler keeps the step that it found, which calls no hooks yet.
@pytest.mark.parametrize(("make", "module"), [(handmade, Tiny), (handmade, Scheduled), (roomy, Scheduled)])
def test_steps_that_cannot_be_seen_are_refused_or_told_once(
    make: Callable[..., Any], module: type, said: Callable[[], list[str]]
) -> None:
    reason = f"{make.__name__.capitalize()} is not supported: its constructor skips that of `torch.optim.Optimizer`"
    for one in (GradientClip(1.0), NonFiniteGuard("skip"), LearningRateControl(Always((0.5,)))):
        with pytest.raises(MisconfigurationException, match=reason):
            fit(module(optimizer=make), [one], 1)
    rows, bare, observed = Rows(), module(optimizer=make), module(optimizer=make)
    for one, callbacks in ((bare, []), (observed, [GradientMonitor(1), NonFiniteGuard()])):
        fit(one, callbacks, 6, logger=rows)
    same_bits(weights(observed), weights(bare))
    assert not rows.rows
    assert len([line for line in said() if reason in line]) == 2


@pytest.mark.parametrize(("make", "module"), [(roomy, Tiny), (around(Forwards), Tiny), (around(Forwards), Scheduled)])
def test_a_wrapper_with_hooks_of_some_kind_works(make: Callable[..., Any], module: type) -> None:
    found = run(module(optimizer=make), [LearningRateControl(Always((0.5,))), GradientMonitor()], 6)
    assert [used for (used,) in found.trainer.optimizers[0].inner.used] == [rate * 0.5 for rate in pure(found)]
    assert found.rows.values("calib/skipped_total") == [0] * 6
    assert len(found.rows.values("calib/update_norm")) == 6
