"""An optimizer that takes another's place in the middle of a fit is watched like the one before."""

from functools import partial

import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, TwoNets, batches_that_stepped, fit
from lightning.pytorch.callbacks import Callback

from lightning_calib import GradientMonitor, ZClip

SGD = partial(torch.optim.SGD, lr=1e-4)


class Swap(Callback):
    """Puts a fresh optimizer of the same kind in the old one's place before step 6."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 6:
            trainer.strategy.optimizers = [pl_module.configure_optimizers()]


def test_a_swapped_optimizer_keeps_the_memory_and_is_clipped():
    rows, gains = Rows(), {9: 100.0}
    clip = ZClip(warmup_steps=8)
    module = Tiny(lambda parameters: torch.optim.SGD(parameters, lr=1e-4), gains)
    fit(module, [Swap(), clip, GradientMonitor(1)], logger=rows)
    before, after = rows.values("calib/grad_norm_before"), rows.values("calib/grad_norm_after")
    assert len(before) == len(after) == 12
    changed = [step for step, (old, new) in enumerate(zip(before, after, strict=True)) if new < 0.99 * old]
    assert 9 in changed  # step 9 is judged only if the eight steps before it were remembered across the swap
    assert not set(changed) & set(range(8))
    assert clip.state_dict()["optimizers"]["0"]["count"]["steps"] == 12


class Swapping(TwoNets):
    """Swaps its second optimizer between the two steps of batch 3."""

    def training_step(self, batch, batch_idx):
        at = batches_that_stepped(self.trainer)
        losses = (partial(self.loss, self.net, at), partial(self.loss, self.other, at + 500))
        for i, loss in enumerate(losses):
            if at == 3 and i == 1:
                first = self.trainer.optimizers[0]
                self.trainer.strategy.optimizers = [first, self.second(self.other.parameters())]
            optimizer = self.optimizers()[i]
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()


@pytest.mark.parametrize("every", [1, 2])
def test_the_other_optimizers_part_of_that_batchs_row_is_kept(every):
    swapped, plain = Rows(), Rows()
    for make, rows in ((Swapping, swapped), (TwoNets, plain)):
        fit(make(SGD, SGD), [GradientMonitor(every)], -1, max_epochs=1, logger=rows)
    assert swapped.rows == plain.rows
    assert 3 in swapped.steps
    assert {"calib/grad_norm_before/0", "calib/grad_norm_before/1"} <= set(dict(swapped.rows)[3])


class GivesUp(TwoNets):
    """Its second optimizer goes past Lightning in batch 1, and another takes its place in batch 3."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            self.trainer.strategy.optimizers = [self.trainer.optimizers[0], self.second(self.other.parameters())]
        if batch_idx != 1:
            return super().training_step(batch, batch_idx)
        self.manual_backward(self.loss(self.other, 1))
        return self.optimizers(use_pl_optimizer=False)[1].step()


def test_one_that_was_given_up_stays_so_after_a_swap(said):
    rows = Rows()
    fit(GivesUp(SGD, SGD), [GradientMonitor(1)], -1, max_epochs=1, logger=rows)
    assert len([line for line in said() if "stays silent" in line]) == 1
    seen = {
        tag: [at for at, row in rows.rows if tag in row]
        for tag in ("calib/grad_norm_before/0", "calib/grad_norm_before/1")
    }
    assert seen["calib/grad_norm_before/0"] == [0, 2, 3, 4, 5, 6]
    assert seen["calib/grad_norm_before/1"] == [0]
