"""The ways in which a callback like ours goes wrong, the likeliest first: what is read, and what is changed."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from helpers.poisoned_batches import FUSED, Micro, Unmoved, incidents
from helpers.tiny_modules import Grads, Rows, fit, make_trainer, norm, same_bits, scaled, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from modes import models, parameters
from modes.expected import LBFGS
from modes.laws import CASES
from modes.matrix import Mode, check_works, run
from torch import nn

from lightning_calib import (
    AutoClip,
    GradientClip,
    GradientMonitor,
    InverseNorm,
    LearningRateControl,
    NonFiniteGuard,
    ZClip,
)

EPOCH = models.BATCHES
LIMIT = 0.5


def test_trap_01_only_the_optimizers_own_parameters_are_read() -> None:
    """The other network of a GAN has gradients, too, and they are not this optimizer's."""

    class Everything(Callback):
        def __init__(self) -> None:
            self.norms: list[float] = []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.norms.append(norm([p.grad for p in pl_module.parameters()]))

    rows, own, everything = Rows(), Grads(), Everything()
    fit(models.Adversaries(), [own, everything, GradientMonitor(1)], -1, max_epochs=1, logger=rows, log_every_n_steps=1)
    for index in (0, 1):
        assert rows.values(f"calib/grad_norm_before/{index}") == pytest.approx(own.norms[index::2], rel=1e-6)
    assert everything.norms[1::2] != pytest.approx(own.norms[1::2], rel=0.01), "there was something to confuse"


def test_trap_06_fused_under_a_scaler_is_unscaled_once() -> None:
    """Two callbacks act, one watches; the weights are those of the optimizer that is not fused."""

    def trained(fused: bool, scale: float) -> tuple[list[torch.Tensor], list[float]]:
        rows, module = Rows(), models.Net(partial(torch.optim.AdamW, lr=1e-2, eps=1e-3, fused=fused))
        ours = [
            GradientMonitor(1),
            GradientClip(0.8, name="first"),
            GradientClip(0.3, scope="parameter", name="second"),
        ]
        fit(module, ours, -1, max_epochs=1, logger=rows, plugins=scaled(scale))
        return weights(module), rows.values("calib/grad_norm_before") + rows.values("calib/grad_norm_after")

    fused, plain, unscaled = trained(True, 2.0**10), trained(False, 2.0**10), trained(False, 1.0)
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-5, atol=1e-6)  # the fused kernel rounds differently
    assert fused[1] == pytest.approx(plain[1], rel=1e-5)
    # float16 loses the small parts of gradients that no scale has lifted; a factor of 1024 would show all the same
    assert fused[1] == pytest.approx(unscaled[1], rel=0.02)


def test_trap_06_bf16_and_a_fused_optimizer_are_clipped_where_the_trainer_refuses() -> None:
    fused = partial(torch.optim.AdamW, lr=1e-2, fused=True)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(models.Net(fused), [], 2, precision="bf16-mixed", gradient_clip_val=0.5)
    after = Grads()
    fit(models.Net(fused), [GradientClip(0.5), after], -1, max_epochs=1, precision="bf16-mixed")
    assert all(one <= 0.5 * (1 + 1e-6) for one in after.norms)
    assert any(one > 0.499 for one in after.norms)


@pytest.mark.parametrize("fused", [False, True])
def test_trap_07_the_guard_leaves_overflows_to_the_scaler(fused: bool, said) -> None:
    """Under too large a scale the first steps overflow: the scale goes down as without us, and nobody cries wolf."""
    make = partial(torch.optim.AdamW, lr=1e-2, fused=fused)
    watches, ends = [], []
    for callbacks in ([], [NonFiniteGuard("skip", max_consecutive=0)]):
        watches.append(Unmoved())
        module = Micro(make, range(8))
        fit(module, [watches[-1], *callbacks], -1, max_epochs=1, plugins=scaled(2.0**20))
        ends.append(weights(module))
    assert watches[1].scales == watches[0].scales
    assert watches[0].scales[-1] < 2.0**19, "there were overflows"
    if not fused:  # a fused optimizer that skips makes a state all the same, and the guard keeps it from that
        assert watches[1].moved == watches[0].moved
    same_bits(*ends)
    assert not incidents(said())


def test_trap_08_a_skipped_step_moves_nothing_where_zeros_would() -> None:
    """Weight decay, momentum and the step counter go on under zero gradients."""
    make = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    watches = []
    for callbacks in ([NonFiniteGuard("skip")], [ZerosInstead()]):
        watches.append(Unmoved())
        fit(Micro(make, range(6), {3: math.nan}), [watches[-1], *callbacks], -1, max_epochs=1)
    assert [moved for (moved,) in watches[0].moved] == [True, True, True, False, True, True]
    assert [moved for (moved,) in watches[1].moved] == [True] * 6, "the trap is there"


class ZerosInstead(Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if any(not bool(p.grad.isfinite().all()) for p in pl_module.parameters()):
            for p in pl_module.parameters():
                p.grad.zero_()


def test_trap_11_a_half_norm_that_overflows_does_not_erase_the_gradient() -> None:
    """In float16 the norm of a few large elements is inf, and a gradient divided by inf is nothing."""

    class Large(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for p in pl_module.parameters():
                p.grad.fill_(4e4)

    before, after = Grads(), Grads()
    fit(models.Net(), [Large(), before, GradientClip(1.0), after], 3, precision="16-true")
    assert torch.nn.utils.get_total_norm(before.seen[0]) == math.inf, "the trap is there"
    assert after.norms == pytest.approx([1.0] * 3, rel=1e-3)  # eleven bits


def test_trap_12_sparse_gradients_are_clipped_where_torch_raises() -> None:
    seen = []

    class Tries(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if optimizer is trainer.optimizers[0]:
                with pytest.raises(NotImplementedError):
                    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
                seen.append(True)

    make = partial(parameters.Words, partial(torch.optim.SparseAdam, lr=1e-2))
    found = check_works(Mode("sparse", make, before=lambda: [Tries()]), "GradientClip")
    assert seen
    assert {step.index for step in found.steps} == {0, 1}


def test_trap_13_dropped_gradients_break_neither_the_value_clip_nor_the_scaler() -> None:
    module = Micro(FUSED, range(8), {3: math.nan})
    with pytest.raises(MisconfigurationException, match="Use GradientValueClip instead of the Trainer's argument"):
        fit(module, [NonFiniteGuard("skip")], 3, gradient_clip_val=1.0, gradient_clip_algorithm="value")
    watch = Unmoved()
    fit(module, [watch, NonFiniteGuard("skip")], -1, max_epochs=1, plugins=scaled(2.0**8))
    assert [moved for (moved,) in watch.moved] == [step != 3 for step in range(8)]


@pytest.mark.parametrize("column", ["ZClip", "LearningRateControl"])
def test_trap_15_lbfgs_is_refused_before_it_trains(column: str) -> None:
    module = models.Net(partial(torch.optim.LBFGS, lr=0.1, max_iter=3))
    with pytest.raises(MisconfigurationException) as error:
        fit(module, [CASES[column].make()], 2)
    assert LBFGS in str(error.value)
    same_bits(weights(module), weights(models.Net()))


class Steady(models.Net):
    """The same loss for every batch, and weights that stay: every window has the same gradient but for its size."""

    gains = {}

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.0))
        self.net = models.network()[1:]  # without BatchNorm, which remembers

    def loss(self, net: nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(net, [part[:8] for part in models.data().tensors])


def _in_threes(*ours: Callback, **kwargs: Any) -> tuple[Rows, float]:
    """Seven batches to an epoch: the rows, and the norm of a whole window."""
    rows, raw = Rows(), Grads()
    fit(Steady(), [raw, *ours], -1, max_epochs=2, logger=rows, log_every_n_steps=1, accumulate_grad_batches=3, **kwargs)
    whole = raw.norms[0]
    assert raw.norms == pytest.approx([whole, whole, whole / 3] * 2, rel=1e-5), "the trap is there"
    assert rows.values("calib/grad_norm_before") == pytest.approx([whole] * 6, rel=1e-5)
    return rows, whole


def test_trap_16_a_short_last_window_is_no_dip() -> None:
    clip = AutoClip(50.0)
    rows, whole = _in_threes(clip, GradientMonitor(1))
    history = clip.state_dict()["optimizers"]["0"]["parts"][0]["state"]["values"][0, :6]
    assert history.tolist() == pytest.approx([whole] * 6, rel=1e-5)
    assert rows.values("calib/grad_norm_after") == pytest.approx([whole] * 6, rel=1e-5)


def test_trap_16_the_trainers_clip_sees_the_short_window_as_it_is() -> None:
    """A third of the gradient is below its limit; the logged limit is in the unit of the norms beside it."""
    rows, whole = _in_threes(GradientMonitor(1), gradient_clip_val=LIMIT)
    assert whole / 3 < LIMIT < whole
    after = rows.values("calib/grad_norm_after")
    assert after == pytest.approx([LIMIT, LIMIT, whole] * 2, rel=1e-5)  # torch adds 1e-6 to the norm
    assert rows.values("calib/clip_threshold") == pytest.approx([LIMIT, LIMIT, 3 * LIMIT] * 2)
    assert rows.values("calib/clip_fraction") == [1.0, 1.0, 0.0] * 2


def test_trap_16_the_rate_of_a_short_window_follows_the_whole_norm() -> None:
    rows = Rows()
    control = LearningRateControl(InverseNorm(0.1), max_factor=math.inf)
    module = Steady()
    module.optimizer = partial(torch.optim.SGD, lr=1e-9)
    fit(module, [control], -1, max_epochs=1, logger=rows, log_every_n_steps=1, accumulate_grad_batches=3)
    used = rows.values("calib/lr_effective")
    assert used == pytest.approx([used[0]] * 3, rel=1e-5)
    assert used[0] == pytest.approx(1e-9 * 0.1 / rows.values("calib/grad_norm_before")[0], rel=1e-5)


def test_trap_17_old_gradients_are_no_steps() -> None:
    """A `training_step` that returns None, and the BatchNorm epoch of weight averaging, call the hook all the same."""
    silent = Mode("silent", partial(models.Net, silent=(2, 8)), quiet=(".*returned `None`.*",))
    averaged = Mode("averaged", trainer=lambda: {"max_epochs": 3},
                    after=lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)])  # fmt: skip
    for mode, called, real in ((silent, 2 * EPOCH, 2 * EPOCH - 2), (averaged, 3 * EPOCH + 1, 3 * EPOCH)):
        found = run(mode, CASES["AutoClip"])
        (callback,) = [one for one in found.trainer.callbacks if isinstance(one, AutoClip)]
        assert len(found.steps) == called
        assert callback.state_dict()["optimizers"]["0"]["parts"][0]["state"]["seen"] == real


def test_trap_20_what_the_optimizer_used_is_of_this_step() -> None:
    """Without a GradScaler torch's pre-step hook comes before the backward pass, and finds older gradients."""
    for plugins in (None, scaled(2.0**8)):
        rows, before = Rows(), Grads()
        fit(models.Net(), [before, GradientMonitor(1)], -1, max_epochs=1, logger=rows, plugins=plugins)
        assert len(set(before.norms)) == EPOCH
        assert rows.values("calib/grad_norm_after") == pytest.approx(before.norms, rel=1e-6)


def test_trap_21_nothing_sticks_to_a_fused_optimizer() -> None:
    """Its first step is skipped: torch would take the momentum from memory that nobody has written."""
    fused = partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True)
    watch = Unmoved()
    trainer = make_trainer([watch, NonFiniteGuard("skip"), ZClip()], -1, max_epochs=1, plugins=scaled(2.0**20))
    trainer.fit(Micro(fused, range(8)))
    assert watch.moved[0] == [False]
    (optimizer,) = trainer.optimizers
    assert not {"grad_scale", "found_inf"} & set(vars(optimizer))
    assert all(bool(state["momentum_buffer"].isfinite().all()) for state in optimizer.state.values())
