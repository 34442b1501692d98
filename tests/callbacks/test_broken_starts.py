"""Fits that break off at their start or in a step: what was known stays known, and nothing false is said."""

import pytest
import torch
from helpers.tiny_modules import Tiny, fit, make_trainer, same_bits
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGradientError, NonFiniteGuard, ZClip


def misspelt():
    return GradientClip(1.0, rules={"nett.*": 0.1})


def test_a_start_that_fails_leaves_the_state_of_the_others():
    first = ZClip()
    trainer = fit(Tiny(), [first], 5)
    trainer.save_checkpoint("five.ckpt")
    again = ZClip()
    with pytest.raises(ValueError, match="nett"):
        fit(Tiny(), [again, misspelt()], 9, ckpt_path="five.ckpt")
    same_bits(again.state_dict(), first.state_dict())


def test_a_start_that_fails_says_nothing_of_the_tab(said):
    with pytest.raises(ValueError, match="nett"):
        fit(Tiny(), [GradientMonitor(1), misspelt()], 5, logger=TensorBoardLogger("logs"))
    assert not [line for line in said() if "records end here" in line or "damaged" in line]


def test_a_start_that_fails_leaves_no_summary_of_the_fit_before():
    monitor = GradientMonitor(1)
    fit(Tiny(), [monitor], 5)
    assert "5 optimizer steps" in monitor.summary()
    with pytest.raises(ValueError, match="nett"):
        fit(Tiny(), [misspelt(), monitor], 5)
    assert "No optimizer step" in monitor.summary()


def test_the_incident_that_ends_a_run_is_in_the_tabs_memory():
    monitor, module = GradientMonitor(100), Tiny(gains={3: float("nan")})
    with pytest.raises(NonFiniteGradientError):
        fit(module, [NonFiniteGuard("raise"), monitor], 6, logger=TensorBoardLogger("logs"))
    ((step, layer, text, kind),) = monitor.state_dict()["dashboard"]["0"]["incidents"]
    assert (step, layer[:4], kind) == (3, "net.", "nonfinite")
    assert "not finite" in text


def test_after_a_fit_the_monitor_holds_no_gradients():
    monitor = GradientMonitor(1)
    fit(Tiny(), [monitor], 3, logger=TensorBoardLogger("logs"))
    assert monitor._recorder is None
    assert "3 optimizer steps" in monitor.summary()


class Unfreezes(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


def test_a_callback_that_has_something_to_do_later_counts_from_then_on(said):
    module = Tiny(lambda parameters: torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.01))
    clip = GradientClip(None, rules={"net.0.*": 1e-3})
    fit(module, [Unfreezes(), clip, GradientMonitor(1)], 12)
    assert not [line for line in said() if "damaged" in line]
    count = clip.state_dict()["optimizers"]["0"]["count"]
    assert (count["steps"], int(count["fired"])) == (5, 5)


def test_a_second_callback_of_one_key_that_joins_late_is_refused():
    trainer = make_trainer([GradientClip(1.0)], 3)
    trainer.callbacks.append(GradientClip(1.0, dry_run=True))
    with pytest.raises(
        MisconfigurationException, match=r"`name` must tell callbacks apart: two of them are GradientClip"
    ):
        trainer.fit(Tiny())
