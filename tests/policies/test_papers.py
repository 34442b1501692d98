"""Each published method in lock-step with its formulas in double precision: targets and state."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from helpers import gradient_families
from torch import nn

from lightning_calib import EMARelative, MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Observation
from lightning_calib.policies.global_warmup import GlobalWarmup

# Recurrences of some hundred steps in double precision on both sides.
CLOSE = {"rtol": 1e-10, "atol": 0.0}


def double(value: float | list[float]) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def spiky(steps: int, columns: int, seed: int) -> torch.Tensor:
    """Norms around 1 with 20 % noise; one in twenty is 3 to 50 times as large."""
    generator = torch.Generator().manual_seed(seed)
    norms = (0.2 * torch.randn(steps, columns, generator=generator, dtype=torch.float64)).exp()
    tall = 3 + 47 * torch.rand(steps, columns, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(steps, columns, generator=generator) < 0.05, norms * tall, norms)


def observe(norms: torch.Tensor) -> Observation:
    return Observation(norms, norms.isfinite() & (norms > 0))


@pytest.mark.parametrize("percentile", [0.0, 10.0, 50.0, 97.3, 100.0])
def test_autoclip_is_numpys_percentile_of_all_norms_so_far(percentile: float) -> None:
    """1,300 steps: past the first capacity of the buffer."""
    policy = Percentile(percentile, window=None, warmup_steps=0)
    norms = spiky(1300, 1, seed=1)
    state, fired = policy.init(norms[0]), []
    for step, norm in enumerate(norms):
        targets, state = policy(observe(norm), state)
        expected = np.percentile(norms[: step + 1, 0].numpy(), percentile)
        torch.testing.assert_close(targets, double([expected]), rtol=1e-14, atol=0.0)  # one interpolation
        fired.append(targets < norm)
    assert torch.cat(fired).any() == (percentile < 100)
    assert not torch.cat(fired).all()
    kept = torch.cat([state.values, state.tail], dim=1)
    gradient_families.same_bits(kept[kept.isfinite()].sort().values, norms[:, 0].sort().values)


def test_autoclip_clips_a_real_gradient_to_its_percentile() -> None:
    weight = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    history, state, fired = [], None, 0
    for norm in spiky(60, 1, seed=2)[:, 0]:
        weight.grad = torch.full((5,), float(norm) / math.sqrt(5), dtype=torch.float64)
        history.append(float(norm))
        _, state = clip_grad_([weight], Percentile(10, window=None, warmup_steps=0), state)
        wanted = min(float(norm), float(np.percentile(history, 10)))
        fired += wanted < float(norm)
        torch.testing.assert_close(weight.grad.norm(), double(wanted), **CLOSE)
    assert 0 < fired < 60


@pytest.mark.parametrize("window", [1, 2, 17])
def test_windowed_percentile_sees_the_last_norms_only(window: int) -> None:
    policy = Percentile(80, window=window, warmup_steps=5)
    norms = spiky(120, 3, seed=3)
    state = policy.init(norms[0])
    for step, row in enumerate(norms):
        targets, state = policy(observe(row), state)
        recent = norms[max(0, step + 1 - window) : step + 1].numpy()
        expected = np.percentile(recent, 80, axis=0) if step >= 5 else np.full(3, np.inf)
        torch.testing.assert_close(targets, torch.from_numpy(expected), rtol=1e-14, atol=0.0)  # one interpolation


@pytest.mark.parametrize("robust", [False, True])
def test_zclip_in_lock_step_for_300_steps_with_spikes(robust: bool) -> None:
    kind = oracles.RobustZScoreOracle if robust else oracles.ZClipOracle
    loops = [kind(z_max=2.5, decay=0.97, warmup_steps=25) for _ in range(4)]
    policy = ZScore(robust=robust)
    norms = spiky(300, 4, seed=4)
    state, fired = policy.init(norms[0]), []
    for row in norms:
        targets, state = policy(observe(row), state)
        expected = [loop.step(float(n)) for loop, n in zip(loops, row, strict=True)]
        torch.testing.assert_close(targets, double(expected), **CLOSE)
        for name in ("seen", "mean", "var"):
            told = double([loop.state()[name] for loop in loops])
            # A mean of logarithms passes through zero, and the moments are of order 1: absolute.
            torch.testing.assert_close(getattr(state, name).double(), told, rtol=1e-10, atol=1e-13)
        fired.append(targets < row)
    assert torch.stack(fired)[25:].any(dim=0).all()
    assert not torch.stack(fired)[:25].any()
    assert not torch.stack(fired)[25:].all(dim=0).any()


def test_zclip_scales_a_spike_the_more_the_further_out_it_is() -> None:
    """The paper's adaptive scaling at one point: mean 1, deviation 0.1, z = 10 gives 1 + 2.5 * 0.1 * 2.5 / 10."""
    policy = ZScore(warmup_steps=2, robust=False)
    state = policy.init(torch.zeros(3, dtype=torch.float64))
    for norm in (0.9, 1.1):
        _, state = policy(observe(double([norm] * 3)), state)
    z = double([5.0, 10.0, 100.0])
    targets, _ = policy(observe(1 + z * (0.1 + 1e-6)), state)
    torch.testing.assert_close(targets, 1 + 2.5 * 2.5 * 0.1 / z, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(("rise", "robust_clips"), [(1.00001, False), (1.02, False), (1.04, True)])
def test_after_constant_norms_only_the_paper_clips_a_rise_of_a_trifle(rise: float, robust_clips: bool) -> None:
    """No spread at all so far: the robust form keeps a deviation of 1 %, so a spike begins at 2.5 %."""
    for robust in (True, False):
        policy, oracle = ZScore(robust=robust), (oracles.RobustZScoreOracle if robust else oracles.ZClipOracle)
        loop = oracle(z_max=2.5, decay=0.97, warmup_steps=25)
        state = policy.init(torch.zeros(1, dtype=torch.float64))
        for norm in [1.0] * 200 + [rise]:
            targets, state = policy(observe(double([norm])), state)
            expected = loop.step(norm)
        torch.testing.assert_close(targets, double([expected]), **CLOSE)
        assert bool(targets < rise) == (robust_clips if robust else True)


def test_ema_relative_in_lock_step() -> None:
    loops = [oracles.EMARelativeOracle(factor=1.05, decay=0.98, warmup_steps=100) for _ in range(3)]
    norms, policy, fired = spiky(400, 3, seed=5), EMARelative(), []
    state = policy.init(norms[0])
    for row in norms:
        targets, state = policy(observe(row), state)
        expected = [loop.step(float(n)) for loop, n in zip(loops, row, strict=True)]
        torch.testing.assert_close(targets, double(expected), **CLOSE)
        torch.testing.assert_close(state.mean, double([loop.average for loop in loops]), **CLOSE)
        fired.append(targets < row)
    assert torch.stack(fired)[100:].any()
    assert not torch.stack(fired)[:100].any()
    assert not torch.stack(fired)[100:].all()


def test_adagc_through_both_phases() -> None:
    """Tensors with a zero gradient for some steps, one that is seen only after the warm-up, and spikes."""
    parameters = [nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in ((3, 4), (5,), (), (2, 2, 2))]
    policy = GlobalWarmup(EMARelative(factor=1.05, decay=0.98, warmup_steps=1), max_norm=1.0, warmup_steps=30)
    oracle = oracles.AdaGCOracle(4, factor=1.05, decay=0.98, warmup_steps=30, warmup_max_norm=1.0)
    generator = torch.Generator().manual_seed(6)
    state, early, late = None, [], []
    for step in range(150):
        level = 0.2 if step % 3 else 1.0  # some warm-up steps lie below the global limit
        level *= 20.0 if step in (40, 90) else 1.0
        gradients = [level * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        if step % 7 == 2:
            gradients[1].zero_()
        if step < 45:
            gradients[3].zero_()
        gradient_families.assign(parameters, gradients)
        expected = oracle.step([oracles.to_numpy(g) for g in gradients])
        report, state = clip_grad_(parameters, policy, state, scope="parameter")
        for p, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p.grad, torch.tensor(wanted), **CLOSE)
        known = double([0.0 if gamma is None else gamma for gamma in oracle.gamma])
        torch.testing.assert_close(state.mean, known, **CLOSE)
        (early if step < 30 else late).append(report.clipped)
    assert int(state.steps) == 150
    for phase in (torch.stack(early), torch.stack(late)):
        assert phase.any()
        assert not phase.all()


SHAPES = [(6,), (4, 3), (4, 3, 5), (4, 3, 2, 2), (3, 2, 2, 2, 2), ()]


def test_agc_equals_the_loop_over_units_from_scalars_to_five_dimensions() -> None:
    generator = torch.Generator().manual_seed(7)
    parameters = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]
    gradients = [0.02 * torch.randn(s, generator=generator, dtype=torch.float64).exp() for s in SHAPES]
    for p, g in zip(parameters, gradients, strict=True):
        if p.ndim >= 2:
            p.data[0] = 0.0  # a weight of zero has to learn
            p.data[1] *= 1000.0  # a unit that may stay as it is
            g[-1] = 0.0  # a gradient of zero stays zero
    gradient_families.assign(parameters, gradients)
    report, _ = clip_grad_(parameters, WeightRelative(factor=0.01, min_weight_norm=1e-3), scope="unit")
    for p, g in zip(parameters, gradients, strict=True):
        rows = [(p.grad, p.data, g)] if p.ndim < 2 else list(zip(p.grad, p.data, g, strict=True))
        for ours, w, before in rows:
            w_norm = math.sqrt(sum(float(x) ** 2 for x in w.flatten()))
            g_norm = math.sqrt(sum(float(x) ** 2 for x in before.flatten()))
            limit = 0.01 * max(w_norm, 1e-3)
            factor = limit / g_norm if g_norm > limit else 1.0
            torch.testing.assert_close(ours, before * factor, **CLOSE)
            if g_norm > 0:
                assert ours.abs().sum() > 0
    assert report.clipped.any()
    assert not report.clipped.all()
    assert not report.observed.all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 2),
        nn.ConvTranspose3d(3, 3, 2, groups=3),
        nn.Embedding(9, 4),
        nn.Embedding(9, 4, sparse=True),
    ],
    ids=["transposed 1d groups", "transposed 2d", "transposed 3d depthwise", "embedding", "sparse embedding"],
)
def test_agc_takes_the_output_units_of_a_layer(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    for p in layer.parameters():
        nn.init.normal_(p)
    if isinstance(layer, nn.Embedding):
        (layer(torch.tensor([1, 1, 4, 7])) * double([[1.0], [2.0], [0.001], [5.0]])).sum().backward()
    else:
        inputs = torch.randn(2, layer.in_channels, *(4,) * (layer.weight.ndim - 2)).double()
        (0.03 * layer(inputs)).square().sum().backward()
        layer.weight.data[-1] *= 100.0  # a unit, or its part of each, that may stay as it is
    parameters, labels, count = oracles.label_elements(layer, "unit")
    oracle = oracles.ClipOracle(labels, [oracles.WeightRelativeOracle(0.01, 1e-3) for _ in range(count)])
    weights = [oracles.to_numpy(p) for p in parameters]
    expected = oracle.step([oracles.to_numpy(p.grad) for p in parameters], weights)
    report, _ = clip_grad_(layer, WeightRelative(factor=0.01, min_weight_norm=1e-3), scope="unit")
    for p, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradient_families.dense(p.grad), torch.tensor(wanted), **CLOSE)
    torch.testing.assert_close(report.coefficients, double(oracle.coefficients), **CLOSE)
    assert report.clipped.any()
    assert not report.clipped.all()


def test_max_norm_is_pascanus_rule() -> None:
    for norm, wanted in [(0.5, 0.5), (2.0, 2.0), (8.0, 2.0)]:
        weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        weight.grad = torch.full((4,), norm / 2, dtype=torch.float64)
        report, _ = clip_grad_([weight], MaxNorm(2.0))
        torch.testing.assert_close(weight.grad.norm(), double(wanted), **CLOSE)
        assert bool(report.clipped) == (norm > wanted)
