"""GradientClip and GradientNormalize: every policy on every scope, in a real fit."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.tiny_modules import Grads, Rows, Tiny, fit, norm, same_bits, weights
from torch import nn

from lightning_calib import (
    AGC,
    EMARelative,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientStabilizer,
    GradientValueClip,
    MaxNorm,
    Percentile,
    WeightRelative,
    ZScore,
)

SCOPES = ["global", "group", "layer", "parameter", "unit"]
POLICIES = {
    "fixed": MaxNorm(0.35),
    "percentile": Percentile(60, window=6, warmup_steps=2),
    "zscore": ZScore(1.0, decay=0.8, warmup_steps=3),
    "zscore of the paper": ZScore(1.0, decay=0.8, warmup_steps=3, robust=False),
    "ema": EMARelative(1.05, decay=0.9, warmup_steps=2),
    "stabilizer": GradientStabilizer(),
    "weights": WeightRelative(0.3),
}


class Mixed(Tiny):
    """Convolutions of both kinds, an embedding, a tied pair, two groups."""

    def __init__(self, gains):
        super().__init__(gains=gains, net=_mixed)

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 2, 5, 5, generator=generator)
        words = torch.randint(0, 9, (4,), generator=generator)
        hidden = self.net["up"](self.net["conv"](images)).mean((2, 3)) + self.net["table"](words)
        return (self.net["head"](hidden) - 1).square().mean() * self.gains.get(step, 1.0)

    def configure_optimizers(self):
        table, rest = list(self.net["table"].parameters()), [p for n, p in self.named_parameters() if "table" not in n]
        return torch.optim.SGD([{"params": rest}, {"params": table, "lr": 0.2}], lr=0.05, momentum=0.9)


def _mixed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.ModuleDict(
            {
                "conv": nn.Conv2d(2, 4, 3),
                "up": nn.ConvTranspose2d(4, 6, 2, groups=2),
                "table": nn.Embedding(9, 6),
                "head": nn.Linear(6, 1),
            }
        )


GAINS = {6: 8.0, 9: 0.01, 10: 15.0, 3: 0.05}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_clip_fires_and_not_always(policy, scope):
    rows, before, after = Rows(), Grads(), Grads()
    fit(Mixed(GAINS), [before, GradientClip(policy, scope=scope), after, GradientMonitor(1)], logger=rows)
    fired = [new < old * (1 - 1e-6) for old, new in zip(before.norms, after.norms, strict=True)]
    assert any(fired)
    assert not all(fired)
    assert max(rows.values("calib/clip_fraction")) == 1.0
    assert min(rows.values("calib/clip_fraction")) == 0.0
    for old, new, says in zip(before.seen, after.seen, rows.values("calib/clip_fraction"), strict=True):
        assert all((b.abs() <= a.abs()).all() for a, b in zip(old, new, strict=True)), "clipping never enlarges"
        if says == 0:
            same_bits(new, old)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_normalize_reaches_the_target_from_both_sides(policy, scope):
    before, after = Grads(), Grads()
    fit(Mixed(GAINS), [before, GradientNormalize(policy, scope=scope), after])
    ratios = [b / a for a, b in zip(before.norms, after.norms, strict=True)]
    assert min(ratios) < 1 - 1e-6
    if isinstance(policy, (MaxNorm, Percentile, WeightRelative)):
        assert max(ratios) > 1 + 1e-6, "and enlarges as well"
    assert all(math.isfinite(r) for r in ratios)


def test_normalize_to_a_number():
    after = Grads()
    fit(Tiny(gains=GAINS), [GradientNormalize(2.0), after])
    assert after.norms == pytest.approx([2.0] * 12, rel=1e-6)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_norm_types(norm_type):
    before, after = Grads(), Grads()
    fit(Tiny(), [before, GradientClip(0.2, norm_type=norm_type), after])
    for old, new in zip(before.seen, after.seen, strict=True):
        flat = torch.cat([g.double().flatten() for g in old])
        wanted = min(float(torch.linalg.vector_norm(flat, norm_type)), 0.2)
        got = float(torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in new]), norm_type))
        assert got == pytest.approx(wanted, rel=1e-6)


def test_two_norm_types_in_one_trainer():
    after = Grads()
    fit(Tiny(), [GradientClip(0.4, name="l2"), GradientClip(0.1, norm_type=math.inf, name="max"), after])
    for grads in after.seen:
        assert max(float(g.abs().max()) for g in grads) <= 0.1 * (1 + 1e-6)
        assert norm(grads) <= 0.4 * (1 + 1e-6)


def test_infinite_limit_keeps_every_bit():
    plain, limited = Tiny(), Tiny()
    fit(plain)
    fit(limited, [GradientClip(math.inf), GradientMonitor()])
    same_bits(weights(limited), weights(plain))


def test_none_leaves_everything_alone():
    plain, limited = Tiny(), Tiny()
    fit(plain)
    fit(limited, [GradientClip(None), GradientMonitor()])
    same_bits(weights(limited), weights(plain))


def test_same_as_the_trainers_own_clipping():
    ours, theirs = Tiny(GAINED), Tiny(GAINED)
    fit(ours, [GradientClip(0.3)], 50)
    fit(theirs, max_steps=50, gradient_clip_val=0.3)
    # torch divides by norm + 1e-6: relative 3e-6 a step, over 50 steps
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)


GAINED = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def test_value_clip_equals_the_trainers():
    ours, theirs = Tiny(GAINED), Tiny(GAINED)
    fit(ours, [GradientValueClip(0.05)], 20)
    fit(theirs, max_steps=20, gradient_clip_val=0.05, gradient_clip_algorithm="value")
    same_bits(weights(ours), weights(theirs))


def test_value_clip_is_reported():
    rows, before = Rows(), Grads()
    fit(Tiny(gains=GAINS), [before, GradientValueClip(0.5), GradientMonitor(1)], logger=rows)
    wanted = [norm([g.clamp(-0.5, 0.5) for g in grads]) for grads in before.seen]
    assert rows.values("calib/grad_norm_before") == pytest.approx(before.norms, rel=1e-6)
    assert rows.values("calib/grad_norm_after") == pytest.approx(wanted, rel=1e-6)
    assert any(a < b * 0.99 for a, b in zip(wanted, before.norms, strict=True))


def test_centralize_subtracts_the_mean_over_fan_in():
    rows, before, after = Rows(), Grads(), Grads()
    fit(Mixed({}), [before, GradientCentralize(), after, GradientMonitor(1)], logger=rows)
    names = [n for n, _ in Mixed({}).net.named_parameters()]
    order = [n for n in names if "table" not in n] + [n for n in names if "table" in n]
    for old, new in zip(before.seen, after.seen, strict=True):
        for name, a, b in zip(order, old, new, strict=True):
            if a.ndim < 2 or "table" in name:
                same_bits(b, a)
            elif name == "up.weight":
                # (in, out / groups, 2, 2): the fan-in of an output channel is its group's inputs and the kernel
                grouped = a.view(2, 2, 3, 2, 2)
                centred = grouped - grouped.mean((1, 3, 4), keepdim=True)
                torch.testing.assert_close(b, centred.view_as(a), rtol=1e-5, atol=1e-7)
            else:
                centred = a - a.flatten(1).mean(1).view(-1, *[1] * (a.ndim - 1))
                torch.testing.assert_close(b, centred, rtol=1e-5, atol=1e-7)
    assert rows.values("calib/grad_norm_after") == pytest.approx(after.norms, rel=1e-5)


def test_a_weight_with_a_fan_in_of_one_still_learns():
    def net():
        return nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 8), nn.Linear(8, 1))

    module = Tiny(net=net)
    before = module.net[1].weight.detach().clone()
    fit(module, [GradientCentralize()])
    assert not torch.equal(module.net[1].weight, before)


@pytest.mark.parametrize("first", [GradientCentralize, lambda: GradientValueClip(0.3)])
def test_a_clip_after_an_elementwise_method_reads_again(first):
    after, rows = Grads(), Rows()
    fit(Tiny(), [first(), GradientClip(0.4), after, GradientMonitor(1)], logger=rows)
    assert max(after.norms) <= 0.4 * (1 + 1e-6)
    assert sum(n == pytest.approx(0.4, rel=1e-6) for n in after.norms) > 3


def test_agc_leaves_the_head_and_vectors_alone():
    before, after = Grads(), Grads()
    fit(Tiny(gains=GAINS), [before, AGC(1e-4), after])
    for old, new in zip(before.seen, after.seen, strict=True):
        for a, b in zip(old[:4:2], new[:4:2], strict=True):
            assert norm([b]) < norm([a])
        same_bits([new[i] for i in (1, 3, 4, 5)], [old[i] for i in (1, 3, 4, 5)])


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [((), []), (("net.0.*",), [0, 1]), (["*bias", "net.4.*"], [1, 3, 4, 5]), ("auto", [1, 3, 4, 5])],
)
def test_agc_exclude(exclude, kept):
    before, after = Grads(), Grads()
    fit(Tiny(gains=GAINS), [before, AGC(1e-4, exclude=exclude), after], 3)
    for old, new in zip(before.seen, after.seen, strict=True):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            if i in kept:
                same_bits(b, a)
            else:
                assert norm([b]) < norm([a])


def test_deterministic_algorithms():
    try:
        fit(Tiny(), [GradientClip(Percentile(50, 4, 1), scope="unit"), GradientMonitor(1)], deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
