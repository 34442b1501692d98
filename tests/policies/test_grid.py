"""All cells of scope x policy against a loop over segments: gradients, norms, targets, coefficients, several steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracles
import pytest
import torch
from helpers import gradient_families, public_policies

from lightning_calib import EMARelative, GradientStabilizer, MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_

SCOPES = ["global", "group", "layer", "parameter", "unit"]
LIMIT = {"global": 25.0, "group": 15.0, "layer": 8.0, "parameter": 6.0, "unit": 2.5}
STEPS = 16
POLICIES: dict[str, tuple[Callable[[str], object], Callable[[str], oracles.PolicyOracle]]] = {
    "max_norm": (lambda s: MaxNorm(LIMIT[s]), lambda s: oracles.MaxNormOracle(LIMIT[s])),
    "percentile": (
        lambda s: Percentile(60, window=5, warmup_steps=3),
        lambda s: oracles.PercentileOracle(60, window=5, warmup_steps=3),
    ),
    "z_score_paper": (
        lambda s: ZScore(z_max=0.8, decay=0.9, warmup_steps=4, robust=False),
        lambda s: oracles.ZClipOracle(z_max=0.8, decay=0.9, warmup_steps=4),
    ),
    "z_score_robust": (
        lambda s: ZScore(z_max=0.8, decay=0.9, warmup_steps=4, robust=True),
        lambda s: oracles.RobustZScoreOracle(z_max=0.8, decay=0.9, warmup_steps=4),
    ),
    "ema_relative": (
        lambda s: EMARelative(factor=1.05, decay=0.9, warmup_steps=3),
        lambda s: oracles.EMARelativeOracle(factor=1.05, decay=0.9, warmup_steps=3),
    ),
    "percentile, bounded warm-up": (
        lambda s: Percentile(60, window=5, warmup_steps=3, warmup_max_norm=LIMIT[s]),
        lambda s: oracles.PercentileOracle(60, window=5, warmup_steps=3, warmup_max_norm=LIMIT[s]),
    ),
    "z_score_paper, bounded warm-up": (
        lambda s: ZScore(z_max=0.8, decay=0.9, warmup_steps=4, robust=False, warmup_max_norm=LIMIT[s]),
        lambda s: oracles.ZClipOracle(z_max=0.8, decay=0.9, warmup_steps=4, warmup_max_norm=LIMIT[s]),
    ),
    "z_score_robust, bounded warm-up": (
        lambda s: ZScore(z_max=0.8, decay=0.9, warmup_steps=4, warmup_max_norm=LIMIT[s]),
        lambda s: oracles.RobustZScoreOracle(z_max=0.8, decay=0.9, warmup_steps=4, warmup_max_norm=LIMIT[s]),
    ),
    "ema_relative, bounded warm-up": (
        lambda s: EMARelative(factor=1.05, decay=0.9, warmup_steps=3, warmup_max_norm=LIMIT[s]),
        lambda s: oracles.EMARelativeOracle(factor=1.05, decay=0.9, warmup_steps=3, warmup_max_norm=LIMIT[s]),
    ),
    "gradient_stabilizer": (
        lambda s: GradientStabilizer(decay_short=0.6, decay_long=0.8),
        lambda s: oracles.GradientStabilizerOracle(decay_short=0.6, decay_long=0.8, eps=1e-8),
    ),
    "weight_relative": (
        lambda s: WeightRelative(factor=1.2, min_weight_norm=1e-3),
        lambda s: oracles.WeightRelativeOracle(factor=1.2, min_weight_norm=1e-3),
    ),
}


def test_no_public_policy_is_left_out() -> None:
    public_policies.assert_none_is_left_out(make("global") for make, _ in POLICIES.values())


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("family", ["spikes", "missing", "nan"])
def test_every_cell_equals_the_loop_over_its_segments(scope: str, policy_name: str, family: str) -> None:
    make_policy, make_oracle = POLICIES[policy_name]
    net = gradient_families.Net(dtype=torch.float64)
    optimizer = gradient_families.two_groups(net)
    parameters, labels, count = oracles.label_elements(net, scope, optimizer)
    oracle = oracles.ClipOracle(labels, [make_oracle(scope) for _ in range(count)])
    policy, state = make_policy(scope), None
    generator = torch.Generator().manual_seed(1)
    fill = gradient_families.FAMILIES[family][1]
    clipped = []
    for step in range(STEPS):
        gradients = fill(parameters, step, generator)
        if step in (8, 13):  # a spike in every segment, so that coarse scopes fire too
            gradients = [None if g is None else 8 * g for g in gradients]
        if step == 11:  # and one below any threshold, for targets that have no unit
            gradients = [None if g is None else 1e-6 * g for g in gradients]
        gradient_families.assign(parameters, gradients)
        report, state = clip_grad_(optimizer if scope == "group" else net, policy, state, scope=scope)
        expected = oracle.step(
            [None if g is None else oracles.to_numpy(g) for g in gradients], [oracles.to_numpy(p) for p in parameters]
        )
        close(report.norms, oracle.norms)
        close(report.coefficients, oracle.coefficients)
        assert report.observed.tolist() == [math.isfinite(n) and n > 0 for n in oracle.norms]
        judged = [t for t, n in zip(oracle.targets, oracle.norms, strict=True) if math.isfinite(n) and n > 0]
        close(report.targets[report.observed], judged)
        same_memory(state, oracle.policies)
        for parameter, wanted in zip(parameters, expected, strict=True):
            if wanted is None:
                assert parameter.grad is None
            else:
                wide = torch.tensor(wanted)
                torch.testing.assert_close(parameter.grad, wide, rtol=1e-11, atol=0.0, equal_nan=True)
        clipped.append(report.clipped)
    visited = torch.stack(clipped)
    assert visited.any()
    assert not visited.all()


def close(actual: torch.Tensor, expected: list[float]) -> None:
    """Double precision on both sides; sixteen steps of recurrences add up to far less than 1e-11."""
    wide = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), wide, rtol=1e-11, atol=0.0, equal_nan=True)


def same_memory(state: tuple, memories: list[oracles.PolicyOracle]) -> None:
    """Counts, moments, and what a window holds, whatever its order."""
    kept = state._asdict()
    told = [memory.state() for memory in memories]
    assert kept.keys() == told[0].keys()
    for name in kept:
        for k, memory in enumerate(told):
            if name == "values":
                ascending = kept[name][k].sort().values
                close(ascending[ascending.isfinite()], memory[name])
            elif name == "var":  # a difference of close numbers: absolute, in units of the norms' squares
                torch.testing.assert_close(float(kept[name][k]), memory[name], rtol=1e-11, atol=1e-15)
            else:
                close(kept[name][k], memory[name])
