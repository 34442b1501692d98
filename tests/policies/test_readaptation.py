"""What adaptive thresholds are for: they follow a change of level, and no fault teaches them anything."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_calib import EMARelative, MaxNorm, Percentile, ZScore
from lightning_calib.functional.judge import Observation, Policy

SHIFTS = [1.2, 1.5, 2.0, 5.0, 10.0, 50.0]
NOISES = [0.02, 0.05, 0.1, 0.3]


def run(policy: Policy, norms: torch.Tensor) -> torch.Tensor:
    """Feeds (steps, K) norms, one scenario per segment; returns the targets, (steps, K)."""
    state = policy.init(norms[0])
    targets = []
    for row in norms:
        observed = row.isfinite() & (row > 0)
        target, state = policy(Observation(row, observed, None), state)
        targets.append(target)
    return torch.stack(targets)


def noisy(levels: torch.Tensor, noises: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, len(levels), generator=generator, dtype=torch.float64)
    return levels * (1 + noises * noise).clamp(min=0.02)


def shifted(seed: int) -> torch.Tensor:
    """500 steps at level 1, then 3,500 at the shifted level; a column per shift and noise."""
    shifts = torch.tensor([s for s in SHIFTS for _ in NOISES], dtype=torch.float64)
    noises = torch.tensor(NOISES * len(SHIFTS), dtype=torch.float64)
    before = noisy(torch.ones_like(shifts), noises, 500, seed)
    return torch.cat([before, noisy(shifts, noises, 3500, seed + 1)])


@pytest.fixture(scope="module")
def series() -> torch.Tensor:
    return shifted(seed=3)


def test_robust_z_score_follows_every_shift(series: torch.Tensor) -> None:
    fires = run(ZScore(robust=True), series) < series
    late = fires[1500:].double().mean(dim=0)
    assert (late <= 0.02).all(), late.view(len(SHIFTS), len(NOISES))
    assert fires[25:500].any()
    assert not fires[:25].any()


def test_robust_z_score_cuts_the_first_steps_after_a_shift_that_leaves_the_noise(series: torch.Tensor) -> None:
    fires = (run(ZScore(robust=True), series) < series)[500].view(len(SHIFTS), len(NOISES))
    assert fires[-3:].all()


def test_papers_z_score_locks_in_after_a_shift(series: torch.Tensor) -> None:
    fires = run(ZScore(robust=False), series) < series
    late = fires[1500:].double().mean(dim=0).view(len(SHIFTS), len(NOISES))
    assert (late[2:, :2] == 1).all(), late  # x2 and more at 2 % and 5 % noise: every step, for ever
    assert (late[0, 3] < 0.05).all(), late  # x1.2 inside 30 % noise is no shift for it


FAULTS = {
    "one NaN": [math.nan],
    "one Inf": [math.inf],
    "ten skipped steps": [0.0] * 10,
    "a NaN, an Inf, a zero": [math.nan, math.inf, 0.0],
}
LEARNERS = {
    "percentile": Percentile(90, window=20, warmup_steps=10),
    "percentile over all history": Percentile(10, window=None, warmup_steps=0),
    "z-score of the paper": ZScore(robust=False),
    "robust z-score": ZScore(robust=True),
    "relative to its average": EMARelative(warmup_steps=10),
    "fixed": MaxNorm(1.0),
}


@pytest.mark.parametrize("at", [3, 60])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("policy", LEARNERS.values(), ids=LEARNERS.keys())
def test_no_fault_changes_a_later_threshold(policy: Policy, fault: str, at: int) -> None:
    """In warm-up and after it."""
    norms = noisy(torch.ones(1, dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64), 120, seed=5)
    broken = torch.tensor(FAULTS[fault], dtype=torch.float64).view(-1, 1)
    clean = run(policy, norms)
    faulty = run(policy, torch.cat([norms[:at], broken, norms[at:]]))
    after = faulty[at + len(broken) :]
    torch.testing.assert_close(after, clean[at:], rtol=0.0, atol=0.0)
    assert clean[-1].isfinite().all()


def test_percentile_fires_as_often_as_it_says_and_on_every_outlier() -> None:
    generator = torch.Generator().manual_seed(0)
    steps, columns, warmup = 3000, 8, 100
    norms = (0.3 * torch.randn(steps, columns, generator=generator, dtype=torch.float64)).exp()
    outliers = torch.rand(steps, columns, generator=generator) < 0.01
    norms = torch.where(outliers, 50 * norms, norms)
    fires = run(Percentile(95), norms) < norms
    share = fires[warmup:].double().mean(dim=0)
    assert ((share - 0.05).abs() <= 0.02).all(), share
    assert outliers[warmup:].any()
    assert fires[warmup:][outliers[warmup:]].all()
    assert not fires[:warmup].any()
