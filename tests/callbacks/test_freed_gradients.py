"""Optimizers that free their gradients inside of the step: their steps are taken; a dropped one is still skipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.poisoned_batches import Micro
from helpers.tiny_modules import Grads, Rows, Tiny, TwoNets, fit, same_bits, scaled, weights
from lightning.pytorch import Callback

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard


def freeing(kind: type) -> Callable[..., Any]:
    class Frees(kind):
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = super().step(closure)
            for p in (p for group in self.param_groups for p in group["params"]):
                p.grad = None
            return loss

    return Frees


ADAMW = partial(freeing(torch.optim.AdamW), lr=1e-2)
FUSED = partial(ADAMW, fused=True)


class NotTried(freeing(torch.optim.SGD)):
    """Cannot be built for a trial: what it leaves is not known before."""

    def __init__(self, params: Any, lr: float, *, secret: int) -> None:
        super().__init__(params, lr=lr)


NOT_TRIED = partial(NotTried, lr=0.01, secret=1)
OPTIMIZERS = {"AdamW": ADAMW, "fused AdamW": FUSED, "not tried": NOT_TRIED}


class Drop(Callback):
    """What a guard does: no gradient, no step."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step in self.steps:
            for p in pl_module.parameters():
                p.grad = None


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("plugins", [None, 2.0**9])
def test_every_step_counts_as_taken(name: str, plugins: float | None) -> None:
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    rows, grads, bare, module = Rows(), Grads(), Tiny(OPTIMIZERS[name]), Tiny(OPTIMIZERS[name])
    fit(bare, plugins=scaled(plugins) if plugins else [])
    monitor = GradientMonitor(1)
    fit(module, [grads, monitor], logger=rows, **kwargs)
    same_bits(weights(module), weights(bare))
    assert rows.values("calib/skipped_total") == [0] * 12
    scale = plugins if plugins and name.startswith("fused") else 1.0
    norms = [norm / scale for norm in grads.norms]
    assert rows.values("calib/grad_norm_after") == pytest.approx(norms, rel=1e-5)
    assert len(rows.values("calib/update_norm")) == 12
    assert monitor.report().runs[0].counts.skipped == 0


CASES = [(name, plugins, place) for name in OPTIMIZERS for plugins in (None, 2.0**9) for place in (0, 1)]
CASES.remove(("fused AdamW", 2.0**9, 0))  # without gradients it fails under a GradScaler, with or without us


@pytest.mark.parametrize(("name", "plugins", "place"), CASES)
def test_a_step_whose_gradients_were_dropped_is_skipped(name: str, plugins: float | None, place: int) -> None:
    """Before or between ours."""
    callbacks = [GradientClip(1e6), GradientMonitor(1)]
    callbacks.insert(place, Drop(2, 5))
    rows = Rows()
    fit(Tiny(OPTIMIZERS[name]), callbacks, logger=rows, **({"plugins": scaled(plugins)} if plugins else {}))
    assert rows.values("calib/skipped_total")[-1] == 2
    assert [step for step, row in rows.rows if "calib/grad_norm_after" not in row] == [2, 5]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_guard_drops_is_skipped(name: str) -> None:
    rows = Rows()
    fit(Tiny(OPTIMIZERS[name], {3: math.nan, 7: math.inf}), [NonFiniteGuard("skip"), GradientMonitor(1)], logger=rows)
    assert rows.values("calib/skipped_total") == [0] * 3 + [1] * 4 + [2] * 5
    assert rows.values("calib/nonfinite_total") == [0] * 3 + [1] * 4 + [2] * 5


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_overflow_is_skipped_by_the_scaler(name: str) -> None:
    rows = Rows()
    fit(Tiny(OPTIMIZERS[name], {4: math.inf}), [GradientMonitor(1)], logger=rows, plugins=scaled(2.0**9))
    assert rows.values("calib/skipped_total") == [0] * 4 + [1] * 8


@pytest.mark.filterwarnings("ignore:.*returned `None`.*")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_a_loss_is_skipped(name: str) -> None:
    rows = Rows()
    fit(Tiny(OPTIMIZERS[name], {4: None}), [GradientMonitor(1)], logger=rows)
    assert rows.values("calib/skipped_total") == [0] * 4 + [1] * 8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_windows_of_micro_batches(name: str) -> None:
    rows = Rows()
    module = Micro(OPTIMIZERS[name], range(12), {7: math.nan})
    callbacks = [NonFiniteGuard("skip"), GradientMonitor(1)]
    fit(module, callbacks, -1, max_epochs=1, accumulate_grad_batches=3, logger=rows)
    assert rows.values("calib/skipped_total") == [0, 0, 1, 1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_manual_optimization_of_two(name: str) -> None:
    rows = Rows()
    module = TwoNets(OPTIMIZERS[name], OPTIMIZERS[name], {3: math.nan})
    fit(module, [NonFiniteGuard("skip"), GradientMonitor(1)], 12, logger=rows)
    assert rows.values("calib/skipped_total/0") == [0, 0, 0, 1, 1, 1]
    assert rows.values("calib/skipped_total/1") == [0] * 6


def test_foreign_code_behind_ours_leaves_a_known_one_alone() -> None:
    """What is known of the optimizer decides, where others may have dropped the gradients after ours."""
    rows = Rows()
    fit(Tiny(ADAMW), [GradientMonitor(1), Grads()], logger=rows)
    assert rows.values("calib/skipped_total") == [0] * 12


class Zeroes(Callback):
    """Frees the gradients in a hook of its own, behind every optimizer's step and before ours."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.optimizers[0].register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())


def test_gradients_that_a_hook_of_the_user_frees() -> None:
    rows = Rows()
    fit(Tiny(partial(torch.optim.AdamW, lr=1e-2)), [Zeroes(), GradientMonitor()], logger=rows)
    assert rows.values("calib/skipped_total") == [0] * 3
