"""An optimizer that takes another's place in the middle of a fit is watched like the one before."""

import torch
from boring import Rows, Tiny, fit
from lightning.pytorch.callbacks import Callback

from lightning_calib import GradientMonitor, ZClip


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
