"""A short average of the norms over a long one: in lock-step with the paper, and bounded whatever comes."""

from __future__ import annotations

import math

import oracles
import pytest
import torch

from lightning_calib import GradientStabilizer
from lightning_calib.functional.judge import Observation, judge

NUMBERS = {  # decay_short, decay_long, eps
    "the authors'": (0.7, 0.9, 1e-8),
    "a long memory": (0.85, 0.99999, 1e-6),
    "no short average": (0.0, 0.5, 0.03),
}
# Recurrences of some hundred steps in double precision on both sides.
CLOSE = {"rtol": 1e-10, "atol": 0.0}


def observe(norms: torch.Tensor) -> Observation:
    return Observation(norms, norms.isfinite() & (norms > 0))


def run(policy: GradientStabilizer, norms: torch.Tensor) -> torch.Tensor:
    """The targets of a series of norms, shape (T, K)."""
    state, targets = policy.init(norms[0]), []
    for row in norms:
        target, state = policy(observe(row), state)
        targets.append(target)
    return torch.stack(targets)


def spiky(steps: int, columns: int) -> torch.Tensor:
    """Norms around 1 with 20 % noise; one in twenty is 3 to 50 times as large, one in thirty missing."""
    generator = torch.Generator().manual_seed(4)
    norms = (0.2 * torch.randn(steps, columns, generator=generator, dtype=torch.float64)).exp()
    tall = 3 + 47 * torch.rand(steps, columns, generator=generator, dtype=torch.float64)
    norms = torch.where(torch.rand(steps, columns, generator=generator) < 0.05, norms * tall, norms)
    return torch.where(torch.rand(steps, columns, generator=generator) < 0.03, 0.0, norms)


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_in_lock_step_with_its_oracle_for_300_steps(numbers: tuple[float, float, float]) -> None:
    norms, policy = spiky(300, 4), GradientStabilizer(*numbers)
    loops = [oracles.GradientStabilizerOracle(*numbers) for _ in range(4)]
    state, up, down = policy.init(norms[0]), 0, 0
    for row in norms:
        report, state = judge(policy, observe(row), state, clip=False)
        for k, (loop, norm) in enumerate(zip(loops, row.tolist(), strict=True)):
            wanted = loop.step(norm) if norm > 0 else None
            for field, told in loop.state().items():
                torch.testing.assert_close(float(getattr(state, field)[k]), float(told), **CLOSE)
            if wanted is None:
                assert float(report.coefficients[k]) == 1.0
                continue
            torch.testing.assert_close(float(report.targets[k]), wanted, **CLOSE)
            torch.testing.assert_close(float(report.coefficients[k]), wanted / norm, **CLOSE)
            up, down = up + (wanted > norm), down + (wanted < norm)
    assert up > 0
    assert down > 0
    assert not bool((norms > 0).all())


def test_the_first_step_and_constant_norms_give_one() -> None:
    norms = torch.tensor([[1e-3, 1.0, 1e6]], dtype=torch.float64).expand(50, 3)
    torch.testing.assert_close(run(GradientStabilizer(), norms), norms / (norms + 1e-8), **CLOSE)


@pytest.mark.parametrize("height", [1e6, 1e12, 1e30])
def test_a_spike_gets_the_same_norm_whatever_its_size(height: float) -> None:
    """0.3 / sqrt(0.1) long after the start: the new norm's shares in the two averages."""
    targets = run(GradientStabilizer(), torch.cat([torch.ones(300, 1), torch.full((1, 1), height)]).double())
    torch.testing.assert_close(float(targets[-1]), 0.3 / math.sqrt(0.1), rtol=1e-5, atol=0.0)  # what stood before


@pytest.mark.parametrize(
    ("height", "least", "steps_to_it", "low"), [(10.0, 0.5, 9, 34), (100.0, 0.08, 15, 79), (1000.0, 0.01, 22, 123)]
)
def test_how_long_a_spike_is_felt(height: float, least: float, steps_to_it: int, low: int) -> None:
    """The numbers of the docstring."""
    norms = torch.ones(900, 1, dtype=torch.float64)
    norms[300] = height
    after = run(GradientStabilizer(), norms)[300:, 0]
    torch.testing.assert_close(float(after.min()), least, rtol=0.0, atol=0.005)  # told with two digits
    assert int(after.argmin()) + 1 == steps_to_it
    assert int((after < 0.9).sum()) == low


@pytest.mark.parametrize(("decay_short", "decay_long"), [(0.7, 0.9), (0.0, 0.0), (0.9, 0.9), (0.5, 0.99)])
def test_no_series_of_norms_exceeds_the_bound(decay_short: float, decay_long: float) -> None:
    """Cauchy and Schwarz: the squared ratio is below (1-a)^2 b / ((1-b) (b-a^2)); norms that rise by b/a get there."""
    a, b = decay_short, decay_long
    bound = math.sqrt((1 - a) ** 2 * b / ((1 - b) * (b - a**2))) if b else 1.0
    generator = torch.Generator().manual_seed(0)
    wild = (4 * torch.randn(400, 8, generator=generator, dtype=torch.float64)).exp()
    rising = ((b / a if a else 2.0) ** torch.arange(400.0, dtype=torch.float64)).unsqueeze(1).clamp(max=1e300)
    policy = GradientStabilizer(decay_short, decay_long, 1e-30)
    assert float(run(policy, wild).max()) <= bound * (1 + 1e-12)
    highest = float(run(policy, rising).max())
    assert highest <= bound * (1 + 1e-12)
    if (a, b) == (0.7, 0.9):
        torch.testing.assert_close(bound, 1.4056, rtol=1e-4, atol=0.0)  # the number in the docstring
        torch.testing.assert_close(highest, bound, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e25, 3e38])
def test_norms_whose_squares_are_no_float32_are_judged_like_others(scale: float) -> None:
    norms = torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0, 0.1, 0.9]).unsqueeze(1)
    policy = GradientStabilizer(eps=1e-37)
    torch.testing.assert_close(run(policy, norms * scale), run(policy, norms), rtol=1e-5, atol=0.0)  # float32, 7 steps


@pytest.mark.parametrize("decays", [(0.7, 0.9), (0.6, 0.8), (0.3, 0.95)])  # of the last two, rounding would overflow
def test_the_largest_norm_leaves_a_state_that_goes_on(decays: tuple[float, float]) -> None:
    largest = torch.full((300, 1), torch.finfo(torch.float32).max)
    policy = GradientStabilizer(*decays)
    targets = run(policy, torch.cat([largest, torch.ones(4000, 1)]))
    assert targets.isfinite().all()
    torch.testing.assert_close(targets[:300], torch.ones(300, 1), rtol=1e-5, atol=0.0)  # float32
    torch.testing.assert_close(targets[-1:], torch.ones(1, 1), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("decay_long", [0.9, 0.999999])
def test_float32_keeps_step_with_double_precision(decay_long: float) -> None:
    """1 - decay and 1 - decay ** t cancel in float32 where the decay is near 1."""
    norms, policy = spiky(500, 3), GradientStabilizer(0.7, decay_long)
    wide, narrow = run(policy, norms), run(policy, norms.float())
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=0.0)  # 500 roundings of 6e-8


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_a_segment_that_was_never_seen_has_no_target(norm: float) -> None:
    policy, row = GradientStabilizer(), torch.tensor([norm, 2.0])
    report, state = judge(policy, observe(row), policy.init(row), clip=False)
    torch.testing.assert_close(report.targets, torch.tensor([math.inf, 1.0]))
    assert report.coefficients.tolist() == [1.0, 0.5]
    assert state.seen.tolist() == [0, 1]
    assert state.mean.tolist()[0] == state.rms.tolist()[0] == 0.0
