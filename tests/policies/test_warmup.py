"""A bounded warm-up: the bound, what the state learns under it, and that nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracles
import pytest
import torch
from helpers import gradient_families

from lightning_calib import AdaGC, EMARelative, Percentile, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Observation, Policy, judge

BOUND = 1.1  # norms lie around 1 with 20 % noise: some of the warm-up above it, some below
MAKERS: dict[str, tuple[Callable[..., Policy], Callable[..., oracles.PolicyOracle], int]] = {
    "percentile": (Percentile, lambda **bound: oracles.PercentileOracle(95, 1000, 100, **bound), 100),
    "all history": (
        lambda **bound: Percentile(95, None, 40, **bound),
        lambda **bound: oracles.PercentileOracle(95, None, 40, **bound),
        40,
    ),
    "z-score": (ZScore, lambda **bound: oracles.RobustZScoreOracle(2.5, 0.97, 25, **bound), 25),
    "z-score of the paper": (
        lambda **bound: ZScore(robust=False, **bound),
        lambda **bound: oracles.ZClipOracle(2.5, 0.97, 25, **bound),
        25,
    ),
    "relative to its average": (EMARelative, lambda **bound: oracles.EMARelativeOracle(1.05, 0.98, 100, **bound), 100),
}
EVERY = pytest.mark.parametrize("name", MAKERS)


def spiky(steps: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    norms = (0.2 * torch.randn(steps, columns, generator=generator, dtype=torch.float64)).exp()
    return torch.where(torch.rand(steps, columns, generator=generator) < 0.05, 20 * norms, norms)


def run(policy: Policy, norms: torch.Tensor, seen: torch.Tensor | None = None) -> tuple[torch.Tensor, list[tuple]]:
    state, targets, states = policy.init(norms[0]), [], []
    for step, row in enumerate(norms):
        observed = torch.ones_like(row, dtype=torch.bool) if seen is None else seen[step]
        target, state = policy(Observation(row, observed), state)
        targets.append(target)
        states.append(state)
    return torch.stack(targets), states


@EVERY
def test_in_lock_step_with_its_oracle_for_300_steps(name: str) -> None:
    make, oracle, warmup = MAKERS[name]
    loop, norms = oracle(warmup_max_norm=BOUND), spiky(300, 1)
    targets, states = run(make(warmup_max_norm=BOUND), norms)
    for step in range(300):
        wanted = loop.step(float(norms[step, 0]))
        torch.testing.assert_close(float(targets[step, 0]), wanted, rtol=1e-10, atol=0.0)
        for field, told in loop.state().items():
            found = getattr(states[step], field)[0].double()
            if field == "values":
                both = torch.cat([found, *(one[0].double() for one in states[step][3:])])  # a history's tail with it
                found = both[both.isfinite()].sort().values
            # A mean of logarithms passes through zero, and the moments are of order 1: absolute.
            torch.testing.assert_close(found, torch.tensor(told, dtype=torch.float64), rtol=1e-10, atol=1e-13)
    fired = targets < norms
    for phase in (fired[:warmup], fired[warmup:]):
        assert phase.any()
        assert not phase.all()


@EVERY
def test_the_state_and_all_later_targets_are_those_of_an_unbounded_warm_up(name: str) -> None:
    make, _, warmup = MAKERS[name]
    norms = spiky(warmup + 50, 1)
    targets, states = run(make(warmup_max_norm=BOUND), norms)
    free, free_states = run(make(), norms)
    gradient_families.same_bits(targets[warmup:], free[warmup:])
    for bounded, unbounded in zip(states, free_states, strict=True):
        for a, b in zip(bounded, unbounded, strict=True):
            gradient_families.same_bits(a, b)
    assert (targets[:warmup] == BOUND).all()
    assert free[:warmup].isinf().all()


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "all history"])
def test_every_segment_has_a_warm_up_of_its_own(name: str) -> None:
    """The second is observed on every other step only, so its warm-up takes twice as long."""
    make, _, warmup = MAKERS[name]
    norms, seen = torch.full((3 * warmup, 2), 5.0), torch.ones(3 * warmup, 2, dtype=torch.bool)
    seen[1::2, 1] = False
    bounded = run(make(warmup_max_norm=2.0), norms, seen)[0] == 2.0
    assert bounded[:warmup].all()
    assert not bounded[warmup:, 0].any()
    assert bounded[: 2 * warmup - 1, 1].all()
    assert not bounded[2 * warmup :, 1].any()


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
@EVERY
def test_what_is_not_observed_keeps_its_bits_under_the_bound(name: str, norm: float) -> None:
    policy, row = MAKERS[name][0](warmup_max_norm=0.5), torch.tensor([norm])
    report, _ = judge(policy, Observation(row, row.isfinite() & (row > 0)), policy.init(row))
    assert report.coefficients.tolist() == [1.0]


@EVERY
def test_a_state_that_was_learnt_without_the_bound_goes_on_with_it(name: str) -> None:
    """In the middle of the warm-up, as from a checkpoint: the same kind, the same fields."""
    make = MAKERS[name][0]
    assert make(warmup_max_norm=1.0).kind == make().kind
    weight, state = torch.nn.Parameter(torch.zeros(1)), None
    for _ in range(5):
        weight.grad = torch.tensor([3.0])
        _, state = clip_grad_([weight], make(), state)
        assert float(weight.grad) == 3.0
    weight.grad = torch.tensor([3.0])
    report, state = clip_grad_([weight], make(warmup_max_norm=1.0), state._asdict())
    torch.testing.assert_close(weight.grad, torch.tensor([1.0]))
    assert report.clipped.all()
    assert state.seen.tolist() == [6]


@pytest.mark.parametrize("warmup_max_norm", [None, math.inf])
@EVERY
def test_no_bound_and_an_infinite_one_leave_the_warm_up_alone(name: str, warmup_max_norm: float | None) -> None:
    make, _, warmup = MAKERS[name]
    targets, _ = run(make(warmup_max_norm=warmup_max_norm), spiky(warmup, 1))
    assert targets.isinf().all()


def test_without_a_warm_up_there_is_nothing_to_bound() -> None:
    targets, _ = run(Percentile(50, 10, warmup_steps=0, warmup_max_norm=1e-3), torch.tensor([[2.0], [4.0]]))
    assert targets.tolist() == [[2.0], [3.0]]


def test_a_normalised_segment_is_given_the_norm_of_the_warm_up() -> None:
    policy, row = ZScore(warmup_max_norm=2.0), torch.tensor([1.0, 8.0])
    report, _ = judge(policy, Observation(row, row > 0), policy.init(row), clip=False)
    assert report.coefficients.tolist() == [2.0, 0.25]


def test_steps_without_any_norm_do_not_use_up_the_warm_up():
    policy = AdaGC(warmup_steps=2).policy
    state = policy.init(torch.zeros(2))
    for _ in range(5):
        bad = torch.tensor([math.inf, math.nan])
        _, state = policy(Observation(bad, bad.isfinite()), state)
    targets, _ = policy(Observation(torch.tensor([30.0, 40.0]), torch.tensor([True, True])), state)
    torch.testing.assert_close(targets, torch.tensor([0.6, 0.8]))  # clipped together to the norm 1
