"""Unused, frozen and tied parameters; optimizers and modules that treat gradients in their own way."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.tiny_modules import (
    Grads,
    Rows,
    Tiny,
    TwoNets,
    batches_that_stepped,
    fit,
    make_trainer,
    norm,
    same_bits,
    weights,
)
from lightning.pytorch import Callback
from lightning.pytorch.tuner import Tuner
from torch import nn

from lightning_calib import (
    AGC,
    AdaGC,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    Percentile,
    ZClip,
)

SCOPES = ["global", "group", "layer", "parameter", "unit"]
CALLBACKS = {
    **{f"clip {scope}": partial(GradientClip, 0.2, scope=scope) for scope in SCOPES},
    **{f"percentile {s}": partial(GradientClip, Percentile(50, 4, 1), scope=s) for s in SCOPES},
    "normalize": partial(GradientNormalize, 0.2, scope="layer"),
    "value": partial(GradientValueClip, 0.05),
    "centralize": GradientCentralize,
    "zclip": partial(ZClip, 1.0, warmup_steps=2),
    "agc": partial(AGC, 0.05),
    "adagc": partial(AdaGC, warmup_steps=2),
}


class Partly(Tiny):
    """One layer that never gets a gradient, one that gets it on even steps only, one frozen."""

    def __init__(self):
        super().__init__(gains={5: 20.0})
        self.unused, self.sometimes, self.frozen = nn.Linear(4, 3), nn.Linear(4, 1), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        loss = self.loss(self.net, step)
        return loss + (self.loss(self.sometimes, step) if step % 2 == 0 else 0)


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_missing_gradients(make):
    module, rows, before, after = Partly(), Rows(), Grads(), Grads()
    still = [p.detach().clone() for p in (*module.unused.parameters(), *module.frozen.parameters())]
    fit(module, [before, make(), after, GradientMonitor(1)], logger=rows)
    same_bits([p.detach() for p in (*module.unused.parameters(), *module.frozen.parameters())], still)
    assert rows.values("calib/grad_norm_before") == pytest.approx(before.norms, rel=1e-6)
    assert rows.values("calib/grad_norm_after") == pytest.approx(after.norms, rel=1e-5)
    assert {sum(g is None for g in grads) for grads in before.seen} == {4, 6}
    assert [[g is None for g in grads] for grads in after.seen] == [[g is None for g in grads] for grads in before.seen]


class Tied(Tiny):
    def __init__(self):
        super().__init__(net=lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1)))
        self.net[2].weight = self.net[0].weight


@pytest.mark.parametrize("scope", SCOPES)
def test_tied_weights_are_counted_and_scaled_once(scope):
    rows, before, after = Rows(), Grads(), Grads()
    fit(Tied(), [before, GradientClip(0.05, scope=scope), after, GradientMonitor(1)], logger=rows)
    assert rows.values("calib/grad_norm_before") == pytest.approx(before.norms, rel=1e-6)
    assert rows.values("calib/grad_norm_after") == pytest.approx(after.norms, rel=1e-6)
    if scope == "global":
        assert after.norms == pytest.approx([0.05] * 12, rel=1e-6)
    if scope == "parameter":
        assert all(norm([b]) == pytest.approx(min(0.05, norm([a])), rel=1e-6) for a, b in _pairs(before, after))


def _pairs(before, after):
    return [pair for old, new in zip(before.seen, after.seen, strict=True) for pair in zip(old, new, strict=True)]


class Consumes(torch.optim.SGD):
    """Leaves zeros behind, as optimizers do that work in place."""

    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.grad.zero_()
        return loss


class Fussy(Consumes):
    """Cannot be made without its friends."""

    def __init__(self, params, lr, friend):
        super().__init__(params, lr)
        self.friend = friend


FRIEND = object()


@pytest.mark.parametrize("optimizer", [partial(Consumes, lr=0.05), partial(Fussy, lr=0.05, friend=FRIEND)])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_optimizer_of_others_that_overwrites_its_gradients(optimizer, clip):
    rows, after = Rows(), Grads()
    fit(Tiny(optimizer), [after, GradientMonitor(1)], logger=rows, gradient_clip_val=clip)
    wanted = [min(n, clip or n) for n in after.norms]
    found = rows.values("calib/grad_norm_after")
    assert found == [] or found == pytest.approx(wanted, rel=1e-4), "computed or absent, never what was left behind"


class Louder(Tiny):
    """Multiplies the gradients after all callbacks."""

    def on_before_optimizer_step(self, optimizer):
        for p in self.parameters():
            p.grad.mul_(1000.0)


class LouderCallback(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for p in pl_module.parameters():
            p.grad.mul_(1000.0)


QUIET = dict.fromkeys(range(20), 0.01)
SGD = partial(torch.optim.SGD, lr=1e-5)
NESTEROV = partial(torch.optim.SGD, lr=1e-5, momentum=0.9, nesterov=True, foreach=True)


@pytest.mark.parametrize("optimizer", [SGD, NESTEROV])
@pytest.mark.parametrize("where", ["module", "callback"])
def test_what_others_do_after_ours_is_seen_or_left_out(where, optimizer):
    rows, module = Rows(), (Louder if where == "module" else Tiny)(optimizer, QUIET)
    last = [LouderCallback()] if where == "callback" else []
    fit(module, [GradientMonitor(1), *last], logger=rows)
    before, after = rows.values("calib/grad_norm_before"), rows.values("calib/grad_norm_after")
    assert after == pytest.approx([1000 * n for n in before] if optimizer is SGD else [], rel=1e-5)


@pytest.mark.parametrize("optimizer", [SGD, NESTEROV])
@pytest.mark.parametrize("where", ["module", "callback"])
def test_trainers_clip_is_not_judged_by_norms_that_it_does_not_see(where, optimizer):
    """Ours see 0.01, others make it 10, the Trainer clips at 0.25: on all steps, and never on none of them."""
    rows, module, monitor = Rows(), (Louder if where == "module" else Tiny)(optimizer, QUIET), GradientMonitor(1)
    last = [LouderCallback()] if where == "callback" else []
    fit(module, [monitor, *last], logger=rows, gradient_clip_val=0.25)
    assert max(rows.values("calib/grad_norm_before")) < 0.25
    assert set(rows.values("calib/clip_fraction")) <= {1.0}
    assert "never" not in monitor.summary()


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


def test_deterministic_algorithms():
    try:
        fit(Tiny(), [GradientClip(Percentile(50, 4, 1), scope="unit"), GradientMonitor(1)], deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_toggled_optimizers():
    """A network whose gradients are switched off must not be read through stale ones."""

    class Toggling(TwoNets):
        def training_step(self, batch, batch_idx):
            step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
            for optimizer, net in zip(self.optimizers(), (self.net, self.other), strict=True):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(self.loss(net, step))
                optimizer.step()
                self.untoggle_optimizer(optimizer)

    rows, grads, sgd = Rows(), Grads(), partial(torch.optim.SGD, lr=0.05)
    fit(Toggling(sgd, sgd), [grads, GradientClip(0.3), GradientMonitor(1)], 12, logger=rows)
    for index in (0, 1):
        assert rows.values(f"calib/grad_norm_before/{index}") == pytest.approx(grads.norms[index::2], rel=1e-6)


class Rhythm(TwoNets):
    """The second optimizer steps on every third batch only, the first one twice on every batch."""

    def training_step(self, batch, batch_idx):
        step = batches_that_stepped(self.trainer)
        first, second = self.optimizers()
        for half in (0, 1):
            first.zero_grad()
            self.manual_backward(self.loss(self.net, 2 * step + half))
            first.step()
        if step % 3 == 0:
            second.zero_grad()
            self.manual_backward(self.loss(self.other, step + 50))
            second.step()


def test_an_optimizer_that_rests_tells_nothing_old():
    rows, grads, monitor, sgd = Rows(), PerOptimizer(), GradientMonitor(1), partial(torch.optim.SGD, lr=0.05)
    fit(Rhythm(sgd, sgd), [grads, GradientClip(0.3), monitor], 28, logger=rows)
    for step, row in rows.rows:
        assert row["calib/grad_norm_before/0"] == pytest.approx(grads.norms[0][step][-1], rel=1e-6)
        assert row["calib/grad_norm_max/0"] == pytest.approx(max(grads.norms[0][step]), rel=1e-6)
        for tag in ("grad_norm_before", "grad_norm_max", "grad_norm_after", "update_norm", "update_ratio"):
            assert (f"calib/{tag}/1" in row) == (step % 3 == 0), (tag, step)
        assert row.get("calib/skipped_total/1", 0) == 0
    assert rows.values("calib/grad_norm_before/1") == pytest.approx([n[0] for n in grads.norms[1].values()], rel=1e-6)
    assert "24 optimizer steps" in monitor.summary()
    assert "4 optimizer steps" in monitor.summary()


class PerOptimizer(Callback):
    """Norms by optimizer and batch."""

    def __init__(self):
        self.norms = {0: {}, 1: {}}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        steps = self.norms[trainer.optimizers.index(optimizer)].setdefault(batches_that_stepped(trainer), [])
        steps.append(norm([p.grad for p in optimizer.param_groups[0]["params"]]))


def test_rows_between_the_steps_of_a_resting_optimizer_lose_nothing():
    """Logged on every fourth batch, stepped on every third: each norm is in exactly one window."""
    rows, grads, sgd = Rows(), PerOptimizer(), partial(torch.optim.SGD, lr=0.05)
    fit(Rhythm(sgd, sgd), [grads, GradientMonitor(4)], 56, logger=rows)
    for step, row in rows.rows:
        window = [n[0] for batch, n in grads.norms[1].items() if step - 4 < batch <= step]
        found = row.get("calib/grad_norm_max/1")
        assert found == (pytest.approx(max(window), rel=1e-6) if window else None)


def test_summary_after_an_exception_tells_what_was_seen():
    class Breaks(Tiny):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 6:
                raise RuntimeError("broken data")
            return super().training_step(batch, batch_idx)

    monitor = GradientMonitor()
    with pytest.raises(RuntimeError, match="broken data"):
        fit(Breaks(), [ZClip(), monitor])
    assert "6 optimizer steps" in monitor.summary()


def test_fit_goes_on_with_the_same_trainer():
    """A second `fit` on one Trainer is a new fit for ours: nothing of the first is counted twice."""
    monitor, module = GradientMonitor(), Tiny()
    trainer = fit(module, [ZClip(1.0, warmup_steps=3), monitor], 6)
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(module)
    assert "4 optimizer steps" in monitor.summary()
