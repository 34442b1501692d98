"""Steps without a fresh gradient, and steps that the scaler drops."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.tiny_modules import Cleans, Grads, Rows, Tiny, TwoNets, fit, same_bits, scaled, weights
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

from lightning_calib import GradientClip, GradientMonitor, Percentile, ZClip

QUARTER = Percentile(50, window=None, warmup_steps=0)
ADAMW = partial(torch.optim.AdamW, lr=1e-2)


class NoLoss(Tiny):
    """Keeps the last gradients when there is no loss, as some loops do."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if self.gains.get(self.trainer.global_step, 1.0) is not None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)


@pytest.mark.parametrize("module", [Tiny, NoLoss], ids=["none left", "stale left"])
@pytest.mark.filterwarnings("ignore:.*returned `None`.*")
def test_no_loss_records_and_clips_nothing(module):
    rows, before, after = Rows(), Grads(), Grads()
    callback = GradientClip(QUARTER)
    gains = {0: 30.0, 3: None, 6: None, 7: None}
    fit(module(ADAMW, gains), [before, callback, after, GradientMonitor(1)], logger=rows)
    history = []
    for step, (old, new) in enumerate(zip(before.seen, after.seen, strict=True)):
        if gains.get(step, 1.0) is None:
            same_bits(new, old)
        else:
            history.append(before.norms[step])
            wanted = min(before.norms[step], float(torch.tensor(history, dtype=torch.float64).quantile(0.5)))
            assert after.norms[step] == pytest.approx(wanted, rel=1e-5)
    told = [step for step, row in rows.rows if "calib/grad_norm_after" in row]
    assert told == [step for step in range(12) if step not in (3, 6, 7)]
    assert rows.values("calib/grad_norm_before") == pytest.approx([before.norms[step] for step in told], rel=1e-6)
    assert rows.values("calib/nonfinite_total")[-1] == 0
    if module is Tiny:  # all gradients None: the optimizer did nothing
        assert rows.values("calib/skipped_total")[-1] == 3


@pytest.mark.filterwarnings("ignore:.*returned `None`.*")
def test_skipped_steps_leave_the_state_of_every_policy_alone():
    states = []
    for gains in ({4: 9.0}, {2: None, 5: None, 6: None, 7: 9.0}):
        # the data follow the number of losses, so that both runs see the same gradients
        module = Renumbered(ADAMW, gains)
        callback = ZClip(1.5, warmup_steps=3)
        fit(module, [callback], 9 + sum(g is None for g in gains.values()))
        states.append(callback.state_dict()["optimizers"]["0"]["parts"])
    same_bits(*states)


class Renumbered(Tiny):
    seen = 0

    def training_step(self, batch, batch_idx):
        gain = self.gains.get(self.trainer.global_step, 1.0)
        if gain is None:
            return None
        self.seen += 1
        return super().loss(self.net, 900 + self.seen) * gain


class Drop(Callback):
    """What a guard does: no gradient, no step."""

    def __init__(self, steps):
        self.steps = steps

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step in self.steps:
            for p in pl_module.parameters():
                p.grad = None


def test_gradients_dropped_by_others_are_counted_as_skipped():
    rows, module = Rows(), Tiny(ADAMW)
    fit(module, [Drop({2, 5}), GradientClip(0.5), GradientMonitor(1)], logger=rows)
    assert rows.values("calib/skipped_total") == [0, 0, 1, 1, 1] + [2] * 7
    assert [step for step, row in rows.rows if "calib/grad_norm_after" not in row] == [2, 5]
    assert rows.values("calib/nonfinite_total")[-1] == 0


def test_gradients_dropped_between_two_of_ours():
    rows = Rows()
    fit(Tiny(ADAMW), [GradientClip(0.5), Drop({2, 5}), GradientMonitor(1)], logger=rows)
    assert rows.values("calib/skipped_total")[-1] == 2
    assert [step for step, row in rows.rows if "calib/grad_norm_after" not in row] == [2, 5]
    assert len(rows.values("calib/grad_norm_before")) == 12


def test_gradients_dropped_after_the_last_of_ours():
    rows = Rows()
    fit(Tiny(ADAMW), [GradientClip(0.5), GradientMonitor(1), Drop({2, 5})], logger=rows)
    assert rows.values("calib/skipped_total")[-1] == 2
    assert [step for step, row in rows.rows if "calib/grad_norm_after" not in row] == [2, 5]


OVERFLOW = {0: 1e9, 5: 1e9, 7: 1e9}  # 7 is a logged step


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("acting", [True, False])
def test_overflow_is_skipped_not_non_finite_and_never_enters_the_state(fused, acting):
    rows, grads = Rows(), Grads()
    callback = GradientClip(QUARTER, dry_run=not acting)
    module = Tiny(partial(ADAMW, fused=fused), OVERFLOW)
    fit(module, [callback, grads, GradientMonitor()], logger=rows, plugins=scaled(2.0**10))
    assert rows.values("calib/skipped_total") == [1, 3, 3]
    assert rows.values("calib/nonfinite_total") == [0, 0, 0]
    assert rows.steps == [3, 7, 11]
    assert ["calib/grad_norm_after" in row for _, row in rows.rows] == [True, False, True]
    assert all(math.isfinite(value) for value in rows.values("calib/grad_norm_max"))
    assert _finite(callback.state_dict())
    assert sum(not math.isfinite(n) for n in grads.norms) == 3, "the scaler must still see them"
    assert rows.values("calib/loss_scale")[-1] == 2.0**7


def _finite(value):
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, torch.Tensor):
        # the sorted history is padded with +inf
        return not value.isnan().any() and not (value == -math.inf).any()
    return True


@pytest.mark.parametrize("fused", [False, True])
def test_overflow_leaves_the_history_as_without_the_step(fused):
    """The threshold after an overflow is the median of the finite norms only."""
    before, after = Grads(), Grads()
    module = Tiny(partial(torch.optim.SGD, lr=0.05, fused=fused), {4: 1e9, 9: 20.0})
    fit(
        module,
        [GradientClip(None, name="unscales", rules={"*": 1e9}), before, GradientClip(QUARTER), after],
        plugins=scaled(2.0**8),
    )
    history = []
    for old, new in zip(before.norms, after.norms, strict=True):
        if not math.isfinite(old):
            continue
        history.append(old)
        assert new == pytest.approx(min(old, float(torch.tensor(history).quantile(0.5))), rel=1e-5)
    assert len(history) == 11


@pytest.mark.parametrize("fused", [False, True])
def test_overflow_skips_the_step_as_without_us(fused):
    gains = {0: 1e9, 5: 1e9}
    alone, clipped = (Tiny(partial(ADAMW, fused=fused), gains) for _ in range(2))
    fit(alone, plugins=scaled(2.0**10))
    fit(clipped, [GradientClip(1e6), GradientMonitor()], plugins=scaled(2.0**10))
    same_bits(weights(clipped), weights(alone))


def test_overflow_of_one_of_two_optimizers():
    rows = Rows()
    module = TwoNets(partial(ADAMW, fused=True), partial(torch.optim.SGD, lr=0.05), gains={5: 1e9})
    fit(module, [ZClip(warmup_steps=2), GradientMonitor()], 24, logger=rows, plugins=scaled(2.0**8))
    assert rows.values("calib/skipped_total/0")[-1] == 1
    assert rows.values("calib/skipped_total/1")[-1] == 0


def test_non_finite_gradients_without_a_scaler_are_counted():
    rows, before, after = Rows(), Grads(), Grads()
    module = Cleans(partial(torch.optim.SGD, lr=0.05), {3: math.nan, 6: math.inf})
    callback = ZClip(1.0, warmup_steps=2)
    fit(module, [before, callback, after, GradientMonitor(1)], logger=rows)
    assert rows.values("calib/nonfinite_total")[-1] == 2
    assert rows.values("calib/skipped_total")[-1] == 0
    same_bits(after.seen[3], before.seen[3])
    same_bits(after.seen[6], before.seen[6])
    assert _finite(callback.state_dict())


class WithBatchNorm(Tiny):
    def __init__(self):
        super().__init__(net=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))


def test_pass_for_batchnorm_of_weight_averaging_is_no_step():
    """Lightning's extra epoch ends in a step with the gradients of the epoch before."""
    before, rows, callback = Grads(), Rows(), ZClip(1.0, warmup_steps=2)
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    fit(WithBatchNorm(), [before, callback, GradientMonitor(1), swa], -1, max_epochs=3, logger=rows)
    assert len(before.norms) == 22, "the hook runs once more than there are batches"
    assert len(rows.values("calib/grad_norm_before")) == 21
    assert callback.state_dict()["optimizers"]["0"]["parts"][0]["state"]["seen"] == 21
