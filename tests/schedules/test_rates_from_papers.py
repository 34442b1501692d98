"""Each rule in lock-step with its formulas in double precision, on a real problem: factors, weights and state."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from helpers import gradient_families
from torch import nn

from lightning_calib import EMARelative, MaxNorm, Percentile, ZScore
from lightning_calib.schedules import DistanceOverGradients, InverseNorm, Polyak, SpikeBackoff
from lightning_calib.schedules.rule import Measurement

STEPS = 200
# Recurrences of 200 steps in double precision on both sides.
CLOSE = {"rtol": 1e-9, "atol": 0.0}


def double(value: object) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Regression:
    """Least squares on 64 noisy rows of 6 features, in batches of 8; two groups, the weights and the bias.

    Gradients are written by hand, so that nothing but numpy computes the oracle's side.
    """

    def __init__(self, noise: float = 0.1) -> None:
        draw = np.random.default_rng(0)
        self.x = draw.normal(size=(64, 6)) * np.array([1.0, 2.0, 0.5, 1.0, 3.0, 0.2])
        self.y = self.x @ draw.normal(size=6) + 0.7 + noise * draw.normal(size=64)
        self.start = [draw.normal(size=6), np.array([0.3])]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [(8 * step + i) % 64 for i in range(8)]
        return self.x[rows], self.y[rows]

    def loss_and_gradients(self, step: int, weights: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        x, y = self.batch(step)
        residual = x @ weights[0] + weights[1][0] - y
        return float(np.mean(residual**2)), [2 * x.T @ residual / len(y), np.array([2 * np.mean(residual)])]


class TorchRun:
    """The same problem by autograd and torch's SGD at lr=1, its rate multiplied by a rule's factor per group."""

    def __init__(self, problem: Regression, rule: object) -> None:
        self.problem, self.rule = problem, rule
        self.weights = [nn.Parameter(torch.from_numpy(w.copy())) for w in problem.start]
        self.first = [w.detach().clone() for w in self.weights]
        self.optimizer = torch.optim.SGD([{"params": [w]} for w in self.weights], lr=1.0)
        self.state = rule.init(torch.zeros(2, dtype=torch.float64))

    def step(self, step: int) -> tuple[float, torch.Tensor]:
        x, y = (torch.from_numpy(a) for a in self.problem.batch(step))
        loss = (x @ self.weights[0] + self.weights[1] - y).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        norms = torch.stack([w.grad.norm() for w in self.weights])
        distances = torch.stack([(w.detach() - a).norm() for w, a in zip(self.weights, self.first, strict=True)])
        start_norms = torch.stack([a.norm() for a in self.first])
        measured = Measurement(norms, norms.isfinite() & (norms > 0), loss.detach(), distances, start_norms)
        factors, self.state = self.rule(measured, self.state)
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            group["lr"] = float(factor)
        self.optimizer.step()
        return float(loss.detach()), factors


# c, gamma, n, f*
SPS = [(0.5, 2.0, 500, 0.0), (0.5, 2.0, 8, 0.001), (0.2, 1.0, 8, 0.0), (1.0, math.inf, 1, 0.012)]


@pytest.mark.parametrize(("c", "gamma", "n", "f_star"), SPS)
def test_sps_in_lock_step_on_a_regression(c: float, gamma: float, n: int, f_star: float) -> None:
    """Loizou et al. 2021: the shorter of the Polyak step and the last step times gamma to the 1/n."""
    problem = Regression()
    ours = TorchRun(problem, Polyak(loss_min=f_star, damping=c, growth=gamma, growth_steps=n))
    weights, eta_before, bound = [w.copy() for w in problem.start], 1.0, []
    losses = []
    for step in range(STEPS):
        loss, gradients = problem.loss_and_gradients(step, weights)
        told, factors = ours.step(step)
        norm_squared = sum(float(v) ** 2 for g in gradients for v in g)
        polyak = (loss - f_star) / (c * norm_squared + 1e-8)
        eta = max(0.0, min(polyak, gamma ** (1 / n) * eta_before))
        bound.append("zero" if eta == 0 else "polyak" if eta == polyak else "growth")
        eta_before = eta if eta > 0 else eta_before
        weights = [w - eta * g for w, g in zip(weights, gradients, strict=True)]
        torch.testing.assert_close(double(told), double(loss), **CLOSE)
        torch.testing.assert_close(factors, double([eta, eta]), **CLOSE)
        torch.testing.assert_close(ours.state.rate, double(eta_before), **CLOSE)
        losses.append(loss)
    for actual, wanted in zip(ours.weights, weights, strict=True):
        torch.testing.assert_close(actual.detach(), torch.from_numpy(wanted), rtol=1e-9, atol=1e-12)
    assert np.mean(losses[-8:]) < 0.1 * np.mean(losses[:8])
    visited = {"polyak", "zero"} if gamma == math.inf else {"polyak", "growth"}
    assert visited <= set(bound)


@pytest.mark.parametrize("d", [1e-6, 1e-4, 0.1])
def test_dog_in_lock_step_on_a_regression(d: float) -> None:
    """Ivgi et al. 2023, as in the authors' code: each param group is one long vector of its own."""
    problem = Regression()
    ours = TorchRun(problem, DistanceOverGradients(initial_distance=d))
    weights = [w.copy() for w in problem.start]
    farthest = [d * (1 + math.sqrt(sum(float(v) ** 2 for v in w))) for w in weights]
    squares, grew, losses = [1e-8, 1e-8], [], []
    for step in range(STEPS):
        loss, gradients = problem.loss_and_gradients(step, weights)
        told, factors = ours.step(step)
        etas, before = [], list(farthest)
        for i in range(2):
            travelled = math.sqrt(sum(float(v) ** 2 for v in weights[i] - problem.start[i]))
            farthest[i] = max(farthest[i], travelled)
            squares[i] += sum(float(v) ** 2 for v in gradients[i])
            etas.append(farthest[i] / math.sqrt(squares[i]))
            weights[i] = weights[i] - etas[i] * gradients[i]
        grew.append(farthest > before)
        torch.testing.assert_close(double(told), double(loss), **CLOSE)
        torch.testing.assert_close(factors, double(etas), **CLOSE)
        torch.testing.assert_close(ours.state.farthest, double(farthest), **CLOSE)
        torch.testing.assert_close(ours.state.root_squares, double(squares).sqrt(), **CLOSE)
        losses.append(loss)
    assert any(grew)
    assert not all(grew)
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


def test_dog_takes_its_first_step_as_long_as_it_says() -> None:
    """r = d (1 + |x0|), one long vector per group, whatever the gradient."""
    rule = DistanceOverGradients(initial_distance=1e-3)
    for norm in (1e-2, 1.0, 1e12):
        norms = double([norm])
        measured = Measurement(norms, norms > 0, distances=double([0.0]), start_norms=double([4.0]))
        factors, _ = rule(measured, rule.init(norms))
        torch.testing.assert_close(factors * norms, double([5e-3]), rtol=1e-4, atol=0.0)  # the 1e-8 beside 1e-4


def test_dog_adds_the_authors_1e_8_to_the_squares_once() -> None:
    rule, norms = DistanceOverGradients(), double([1e-5])
    measured = Measurement(norms, norms > 0, distances=double([0.5]), start_norms=double([4.0]))
    state = rule.init(norms)
    for count in (1, 2, 3):
        factors, state = rule(measured, state)
        torch.testing.assert_close(factors, double([0.5 / math.sqrt(count * 1e-10 + 1e-8)]), **CLOSE)


def test_polyak_solves_a_quadratic_of_one_dimension_in_one_step() -> None:
    """Where f = a x^2 / 2, c = 1/2 gives the rate 1 / a: Newton's step."""
    for curvature in (0.5, 3.0, 40.0):
        x = double(2.0)
        norms = (curvature * x).reshape(1)
        rule = Polyak(growth=math.inf)
        factors, _ = rule(Measurement(norms, norms > 0, loss=curvature * x**2 / 2), rule.init(norms))
        torch.testing.assert_close(x - factors[0] * curvature * x, double(0.0), rtol=0.0, atol=1e-7)  # the 1e-8


def test_inverse_norm_makes_every_update_equally_long() -> None:
    problem = Regression()
    run = TorchRun(problem, InverseNorm(target=0.02))
    for step in range(STEPS):
        before = [w.detach().clone() for w in run.weights]
        run.step(step)
        lengths = torch.stack([(w.detach() - b).norm() for w, b in zip(run.weights, before, strict=True)])
        torch.testing.assert_close(lengths, double([0.02, 0.02]), rtol=1e-9, atol=0.0)


def spiky(steps: int, groups: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    norms = (0.2 * torch.randn(steps, groups, generator=generator, dtype=torch.float64)).exp()
    return torch.where(torch.rand(steps, groups, generator=generator) < 0.04, 20 * norms, norms)


POLICIES = {
    "z_score": (lambda: ZScore(), lambda: oracles.RobustZScoreOracle(2.5, 0.97, 25)),
    "z_score_paper": (lambda: ZScore(robust=False), lambda: oracles.ZClipOracle(2.5, 0.97, 25)),
    "max_norm": (lambda: MaxNorm(4.0), lambda: oracles.MaxNormOracle(4.0)),
    "percentile": (lambda: Percentile(97, 50, 10), lambda: oracles.PercentileOracle(97, 50, 10)),
    "ema_relative": (lambda: EMARelative(2.0, 0.9, 10), lambda: oracles.EMARelativeOracle(2.0, 0.9, 10)),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("backoff", "recovery"), [(0.5, 1.05), (0.1, 1.3)])
def test_spike_backoff_in_lock_step(name: str, backoff: float, recovery: float) -> None:
    policy, oracle = POLICIES[name]
    rule, judges, expected = SpikeBackoff(policy(), backoff, recovery), [oracle(), oracle()], [1.0, 1.0]
    rows = spiky(300, 2)
    state, spikes, full = rule.init(rows[0]), 0, 0
    for row in rows:
        for i, judge in enumerate(judges):
            spike = float(row[i]) > judge.step(float(row[i]))
            expected[i] = max(expected[i] * backoff, 2.0**-10) if spike else min(1.0, expected[i] * recovery)
            spikes += spike
        factors, state = rule(Measurement(row, row > 0), state)
        torch.testing.assert_close(factors, double(expected), **CLOSE)
        torch.testing.assert_close(state.factors, double(expected), **CLOSE)
        for i, judge in enumerate(judges):
            for field, value in judge.state().items():
                kept = getattr(state, f"policy_{field}")[i].double()
                kept = kept[kept.isfinite()].sort().values if kept.ndim else kept
                torch.testing.assert_close(kept, double(value), rtol=1e-9, atol=1e-12)  # means of logs pass zero
        full += int((factors == 1).sum())
    assert 0 < spikes < 300
    assert 0 < full < 600


def test_spike_backoff_forgets_a_spike_after_the_steps_that_it_says() -> None:
    rule = SpikeBackoff(MaxNorm(2.0))
    state = rule.init(torch.zeros(1))
    told = []
    for norm in [5.0] + [2.0] * 20:  # a norm at the target is none
        norms = torch.tensor([norm])
        factors, state = rule(Measurement(norms, norms > 0), state)
        told.append(float(factors))
    assert told[0] == 0.5
    assert [f == 1 for f in told].index(True) == 15


@pytest.mark.parametrize("backoff", [0.5, 1e-6])
def test_a_long_burst_of_spikes_does_not_stop_the_training_for_good(backoff: float) -> None:
    rule = SpikeBackoff(MaxNorm(2.0), backoff=backoff)
    state = rule.init(torch.zeros(1))
    for step, norm in enumerate([5.0] * 500 + [1.0] * 300):
        norms = torch.tensor([norm])
        factors, state = rule(Measurement(norms, norms > 0), state)
        assert 0 < float(factors) <= 1
        if step in (0, 499):
            gradient_families.same_bits(factors, torch.tensor([backoff if step == 0 else min(backoff, 2.0**-10)]))
    gradient_families.same_bits(factors, torch.ones(1))


def test_polyak_goes_on_after_a_loss_below_its_least_value() -> None:
    """A step of length 0 is not remembered: smoothing by a factor could never leave it again."""
    rule, norms = Polyak(growth_steps=1), double([1.0])
    state, told = rule.init(norms), []
    for loss in (0.05, -1.0, 0.0, 0.05):
        factors, state = rule(Measurement(norms, norms > 0, loss=double(loss)), state)
        told.append(factors)
    torch.testing.assert_close(torch.cat(told), double([0.1, 0.0, 0.0, 0.1]), rtol=1e-7, atol=0.0)  # the 1e-8
