"""The recorder that the planted runs are measured with, against numbers worked out by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers.plain_recorder import PlainRecorder, kind_of
from helpers.tiny_modules import SGD, Tiny, TwoNets, data
from lightning.pytorch import Trainer
from report.planted.fit import quiet
from torch import nn

from lightning_calib import GradientClip, LearningRateControl, NonFiniteGuard, SpikeGuard
from lightning_calib.schedules import InverseNorm


def recorded(module, every=5, callbacks=(), epochs=3, **trainer):
    recorder = PlainRecorder(every)
    with quiet():
        Trainer(
            max_epochs=epochs,
            callbacks=recorder.around(callbacks),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer,
        ).fit(module)
    return recorder.runs()


def replay(steps, clip=None, lr=0.05):
    """The same training as a loop: norms before and after, losses, norms of weights and updates, by step."""
    net = Tiny().net
    found = []
    for step in range(steps):
        x, y = data(step)
        net.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        before = [p.grad.double().norm().item() for p in net.parameters()]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        after = [p.grad.double().norm().item() for p in net.parameters()]
        weights = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            for p in net.parameters():
                p -= lr * p.grad
        weight = [w.double().norm().item() for w in weights]
        update = [(p.detach() - w).double().norm().item() for p, w in zip(net.parameters(), weights, strict=True)]
        found.append((before, after, weight, update, loss.item()))
    before, after, weight, update, losses = (np.array(part) for part in zip(*found, strict=True))
    return before, after, weight, update, losses


def length(norms):
    return np.sqrt((norms**2).sum(-1))


CLOSE = 1e-5  # float32 arithmetic in the order of another loop


def test_norms_losses_and_updates_are_those_of_a_plain_loop():
    (run,) = recorded(Tiny(), gradient_clip_val=1.0)
    before, after, weight, update, losses = replay(21, clip=1.0)
    rows = [4, 9, 14, 19]
    assert run.scalars.step.tolist() == rows
    for name, wanted in (("before", before), ("after", after), ("weight", weight), ("update", update)):
        np.testing.assert_allclose(getattr(run.layers, name), wanted[rows], rtol=CLOSE, atol=1e-9)
    np.testing.assert_allclose(run.scalars.grad_norm_before, length(before)[rows], rtol=CLOSE)
    np.testing.assert_allclose(run.scalars.grad_norm_max, length(before)[:20].reshape(4, 5).max(1), rtol=CLOSE)
    np.testing.assert_allclose(run.layers.peak, before[:20].reshape(4, 5, -1).max(1), rtol=CLOSE)
    np.testing.assert_allclose(run.scalars.loss, losses[:20].reshape(4, 5).mean(1), rtol=CLOSE)
    np.testing.assert_allclose(run.scalars.loss_max, losses[:20].reshape(4, 5).max(1), rtol=CLOSE)
    np.testing.assert_allclose(run.scalars.loss_first, losses[0], rtol=CLOSE)
    left = length(after) / length(before)
    assert (left < 1).any()
    assert not (left < 1).all()
    np.testing.assert_allclose(run.scalars.factor, left[:20].reshape(4, 5).mean(1), rtol=CLOSE)
    np.testing.assert_allclose(run.counts.left, left.mean(), rtol=CLOSE)
    (clipper,) = run.clippers
    assert clipper.name == "Trainer(gradient_clip_val=1)"
    assert (clipper.kind, clipper.max_norm) == ("fixed", 1.0)
    assert clipper.clip_rate == pytest.approx((left < 1 - 1e-6).mean())
    ratios = (update / weight)[rows][:, [0, 2, 4]]  # the matrices
    np.testing.assert_allclose(run.scalars.update_ratio, np.median(ratios, 1), rtol=CLOSE)


def test_of_two_clippers_each_has_its_own_share_and_a_dry_run_tells_what_it_would_do():
    dry, first = GradientClip(1.0, dry_run=True, name="dry"), GradientClip(1.0)
    (run,) = recorded(Tiny(), callbacks=[dry, first], gradient_clip_val=0.9)
    shares = {one.name: (one.kind, one.clip_rate) for one in run.clippers}
    assert shares["GradientClip(dry)"] == ("dry", shares["GradientClip"][1])
    assert 0 < shares["GradientClip"][1] < shares["Trainer(gradient_clip_val=0.9)"][1] < 1
    assert run.scalars.grad_norm_after.max() <= 0.9


def test_a_clip_by_rules_is_no_clipper_of_an_optimizer_that_it_leaves_alone():
    clip = GradientClip(None, rules={"net.*": 0.1})
    first, second = recorded(TwoNets(SGD, SGD), callbacks=[clip])
    assert [one.clip_rate for one in first.clippers] == [1.0]
    assert second.clippers == ()
    assert (first.facts.position, second.facts.position, second.facts.manual) == (0, 1, True)


def test_skipped_and_not_finite_steps_are_counted_and_leave_inf_in_the_layers():
    (run,) = recorded(Tiny(gains={7: float("nan")}), callbacks=[NonFiniteGuard("skip")])
    assert (run.counts.steps, run.counts.usable, run.counts.skipped, run.counts.nonfinite) == (21, 20, 1, 1)
    assert np.isfinite(run.scalars.grad_norm_max).all()  # the largest finite norm
    assert np.isinf(run.layers.peak[1]).all()
    assert run.scalars.nonfinite_total.tolist() == run.scalars.skipped_total.tolist() == [0, 1, 1, 1]
    assert run.facts.guarded
    (skipped,) = recorded(Tiny(gains={4: float("nan")}), callbacks=[NonFiniteGuard("skip")])
    assert np.isinf(skipped.layers.before[0]).all()
    assert np.isnan(skipped.layers.update[0]).all()


def test_steps_without_a_loss_are_no_steps():
    (run,) = recorded(Tiny(gains=dict.fromkeys(range(21))))
    assert run.counts.steps == 0
    assert run.scalars.step.tolist() == []
    assert not run.layers.given.any()


def test_a_rule_is_seen_in_the_effective_rate_only():
    (run,) = recorded(Tiny(), callbacks=[LearningRateControl(InverseNorm(target=0.01))])
    assert run.scalars.lr.tolist() == [0.05] * 4
    assert (run.scalars.lr_effective < 0.005).all()
    assert run.facts.rules == ("InverseNorm",)
    (run,) = recorded(Tiny(), callbacks=[SpikeGuard(lr_factor=0.5)])
    assert run.facts.rules == ()


def test_accumulation_makes_the_mean_of_the_micro_batches_a_loss():
    class Constant(Tiny):
        def loss(self, net, step):
            return super().loss(net, step) * 0 + 3.0

    (run,) = recorded(Constant(), accumulate_grad_batches=4, epochs=10)
    assert run.facts.accumulation == 4
    assert run.counts.steps == 20
    np.testing.assert_allclose(run.scalars.loss, 3.0, rtol=1e-6)
    assert run.scalars.step.tolist() == [4, 9, 14, 19]


def test_how_a_fit_ended_is_told():
    class Breaks(Tiny):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 11:
                self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    assert recorded(Tiny())[0].counts.stopped == "finished"
    assert recorded(Breaks())[0].counts.stopped == "early"


def test_kinds_of_optimizers():
    parameter = [nn.Parameter(torch.zeros(2, 2))]
    made = {"sgd": partial(torch.optim.SGD, lr=1), "adam": torch.optim.AdamW, "muon": torch.optim.Muon}
    assert {kind: kind_of(make(parameter)) for kind, make in made.items()} == {kind: kind for kind in made}
    assert kind_of(torch.optim.LBFGS(parameter)) == "other"
