"""Copies, pickles, second fits, accumulation, models that change under way."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch
from helpers.newer import newer
from helpers.tiny_modules import Grads, Rows, Tiny, TwoNets, fit, make_trainer, norm, same_bits, weights
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.tuner import Tuner
from torch import nn

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    EMARelative,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    NonFiniteGuard,
    Percentile,
    ZClip,
    ZScore,
)

WeightAveraging = newer("lightning.pytorch.callbacks", "WeightAveraging", "Lightning 2.6")

EVERY = {
    "monitor": GradientMonitor,
    "clip": partial(GradientClip, Percentile(60, window=5, warmup_steps=2)),
    "clip with rules": partial(GradientClip, ZScore(1.0, warmup_steps=3), scope="unit", rules={"*bias": 0.1}),
    "normalize": partial(GradientNormalize, EMARelative(warmup_steps=2)),
    "value": partial(GradientValueClip, 0.1),
    "centralize": GradientCentralize,
    "autoclip": AutoClip,
    "zclip": partial(ZClip, 1.0, warmup_steps=3),
    "agc": AGC,
    "adagc": partial(AdaGC, warmup_steps=3),
}
GAINS = {5: 30.0, 9: 20.0}


def _run(callbacks):
    rows, module = Rows(), Tiny(gains=GAINS)
    fit(module, callbacks, logger=rows)
    return rows.rows, weights(module)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_a_copy_works_like_the_original(make, copier):
    wanted = _run([make()])
    original = make()
    same_bits(_run([copier(original)]), wanted)
    same_bits(_run([original]), wanted)
    same_bits(_run([copier(original)]), wanted)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_a_copy_after_the_fit_keeps_the_state(make):
    original = make()
    _run([original])
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        same_bits(twin.state_dict(), original.state_dict())


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_state_dict_is_never_empty_when_there_is_something_to_keep(make):
    callback = make()
    before = callback.state_dict()
    assert before == {} or before["version"] == 1
    _run([callback])


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_second_fit_equals_a_fresh_instance(make):
    again = [make(), *([] if make is GradientMonitor else [GradientMonitor()])]
    first = _run(again)
    same_bits(_run(again), first)


def test_second_fit_with_another_model():
    callback = GradientClip(Percentile(60, window=5, warmup_steps=2), scope="parameter")
    _run([callback])
    small = Tiny(gains=GAINS, net=lambda: nn.Sequential(nn.Linear(4, 1)))
    fresh = Tiny(gains=GAINS, net=lambda: nn.Sequential(nn.Linear(4, 1)))
    fresh.load_state_dict(small.state_dict())
    fit(small, [callback])
    fit(fresh, [GradientClip(Percentile(60, window=5, warmup_steps=2), scope="parameter")])
    same_bits(weights(small), weights(fresh))


def test_hooks_on_the_optimizer_are_taken_away():
    trainer = fit(Tiny(), [ZClip(), GradientMonitor()])
    for optimizer in trainer.optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


def test_hooks_on_the_optimizer_are_taken_away_after_an_exception():
    class Breaks(Tiny):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 4:
                raise RuntimeError("broken data")
            return super().training_step(batch, batch_idx)

    trainer = make_trainer([ZClip(), GradientMonitor(1)], logger=Rows())
    with pytest.raises(RuntimeError, match="broken data"):
        trainer.fit(Breaks())
    for optimizer in trainer.optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


def test_nothing_of_the_model_stays_behind_after_the_fit():
    callbacks = [GradientCentralize(), GradientValueClip(0.5), ZClip(), NonFiniteGuard("skip"), GradientMonitor()]
    module = Tiny()
    trainer = fit(module, callbacks)
    gone = weakref.ref(module.net[0].weight)
    for callback in callbacks:  # the Trainer's own presents
        vars(callback).pop("log", None), vars(callback).pop("log_dict", None)
    del module, trainer
    gc.collect()
    assert gone() is None


def test_accumulation_shows_one_norm_to_the_policy():
    before, after = Grads(), Grads()
    fit(
        Tiny(), [before, GradientClip(Percentile(50, window=None, warmup_steps=0)), after], 9, accumulate_grad_batches=3
    )
    assert len(before.norms) == 9
    history = []
    for i, (old, new) in enumerate(zip(before.norms, after.norms, strict=True)):
        short = 3 if i % 3 == 2 else 1  # of seven batches the last window has one
        history.append(old * short)
        assert new * short == pytest.approx(min(history[-1], float(torch.tensor(history).quantile(0.5))), rel=1e-5)


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[:2])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[:2], optimizer, lr=0.01)


class Head(Tiny):
    def configure_optimizers(self):
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


@pytest.mark.parametrize("scope", ["global", "group", "layer", "parameter", "unit"])
@pytest.mark.parametrize("policy", [0.1, Percentile(60, window=4, warmup_steps=1)], ids=["fixed", "adaptive"])
def test_groups_added_under_way_are_clipped_too(policy, scope):
    rows, before, after = Rows(), Grads(), Grads()
    callbacks = [Unfreeze(), before, GradientClip(policy, scope=scope), after, GradientMonitor(1)]
    fit(Head(), callbacks, 20, logger=rows)
    assert {len(grads) for grads in before.seen} == {4, 6}
    assert rows.values("calib/grad_norm_before") == pytest.approx(before.norms, rel=1e-6)
    if (policy, scope) == (0.1, "global"):
        assert after.norms == pytest.approx([min(n, 0.1) for n in before.norms], rel=1e-6)
    if policy == 0.1 and scope == "parameter":
        assert all(norm([g]) <= 0.1 * (1 + 1e-6) for grads in after.seen for g in grads)


def test_two_optimizers_have_their_own_state():
    """The second network's gradients must not move the first one's threshold."""
    sgd, after = partial(torch.optim.SGD, lr=0.0), Grads()
    before = Grads()
    module = TwoNets(sgd, sgd)
    fit(module, [before, GradientClip(Percentile(50, window=None, warmup_steps=0)), after], 24)
    for index in (0, 1):
        history = []
        for old, new in zip(before.norms[index::2], after.norms[index::2], strict=True):
            history.append(old)
            assert new == pytest.approx(min(old, float(torch.tensor(history).quantile(0.5))), rel=1e-5)


def test_one_optimizer_never_touches_the_others_gradients():
    class Shared(TwoNets):
        """Both losses are backward before any step."""

        def training_step(self, batch, batch_idx):
            step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(self.loss(self.net, step) + self.loss(self.other, step + 50))
            self.copies = [p.grad.clone() for p in self.other.parameters()]
            first, second = self.optimizers()
            first.step()
            same_bits([p.grad for p in self.other.parameters()], self.copies)
            second.step()

    sgd = partial(torch.optim.SGD, lr=0.05)
    fit(Shared(sgd, sgd), [GradientClip(0.01), GradientMonitor(1)], 12)


def test_model_that_is_copied_by_another_callback():
    fit(Tiny(), [ZClip(), GradientMonitor(), WeightAveraging()], 12)


def test_compiled_network_keeps_its_names():
    before, after, module = Grads(), Grads(), Tiny()
    module.net = torch.compile(module.net, backend="eager")
    fit(module, [before, GradientClip(None, rules={"net.0.*": 0.01}), after], 4)
    assert all(norm(grads[:2]) == pytest.approx(0.01, rel=1e-6) for grads in after.seen)


def test_validation_and_test_alone_do_nothing():
    class Validated(Tiny):
        def validation_step(self, batch, batch_idx):
            return None

        def val_dataloader(self):
            return self.train_dataloader()

    callback = GradientMonitor()
    make_trainer([ZClip(), callback]).validate(Validated(), verbose=False)
    assert isinstance(callback.summary(), str)


def test_limits_of_the_trainer():
    for kwargs in ({"limit_train_batches": 3}, {"max_epochs": 2, "max_steps": -1}):
        fit(Tiny(), [ZClip(), GradientMonitor()], **{"max_steps": 6, **kwargs})


def test_search_for_a_learning_rate_leaves_no_trace():
    class Searchable(Tiny):
        lr = 1e-3

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    results = []
    for search in (True, False):
        module, trainer = Searchable(gains={7: 20.0}), make_trainer([ZClip(1.0, warmup_steps=3), GradientMonitor()])
        if search:
            Tuner(trainer).lr_find(module, num_training=8, update_attr=False)
        trainer.fit(module)
        results.append((weights(module), trainer.callbacks[0].state_dict()))
    same_bits(*results)


def test_fit_goes_on_with_the_same_trainer():
    """A second `fit` on one Trainer is a new fit for ours: nothing of the first is counted twice."""
    monitor, module = GradientMonitor(), Tiny()
    trainer = fit(module, [ZClip(1.0, warmup_steps=3), monitor], 6)
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(module)
    assert "4 optimizer steps" in monitor.summary()
