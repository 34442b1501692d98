"""The refined schedule against a direct evaluation of its formula, and what it is known to give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import gradient_families

from lightning_calib.schedules import refine_schedule

POWERS = {"sgd": 2, "adam": 1}


def noisy(steps: int, seed: int = 0) -> np.ndarray:
    """Falling, then rising norms with log-normal noise and some tall ones."""
    draw = np.random.default_rng(seed)
    level = np.concatenate([np.linspace(5, 1, steps // 2), np.linspace(1, 3, steps - steps // 2)])
    return level * np.exp(0.3 * draw.normal(size=steps)) * np.where(draw.random(steps) < 0.05, 20.0, 1.0)


def smoothed(norms: np.ndarray, fraction: float) -> list[float]:
    """Median over an odd window; the first value repeated before the start, mirrored after the end."""
    total = len(norms)
    half = int(fraction * total) // 2
    result = []
    for t in range(total):
        window = []
        for i in range(t - half, t + half + 1):
            inside = max(i, 0)
            window.append(float(norms[inside if inside < total else 2 * (total - 1) - inside]))
        result.append(sorted(window)[half])
    return result


def direct(norms: np.ndarray, optimizer: str, fraction: float) -> list[float]:
    """The formula as it stands, by two loops."""
    weights = [norm ** -POWERS[optimizer] for norm in smoothed(norms, fraction)]
    values = []
    for t in range(len(weights)):
        later = 0.0
        for p in range(t + 1, len(weights)):
            later += weights[p]
        values.append(weights[t] * later)
    return [value / max(values) for value in values]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [2, 3, 7, 19, 20, 21, 40, 301])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_schedule_equals_the_formula(optimizer: str, steps: int, smoothing: float) -> None:
    norms = noisy(steps, seed=steps)
    schedule = refine_schedule(torch.from_numpy(norms), optimizer, smoothing=smoothing)
    expected = torch.tensor(direct(norms, optimizer, smoothing), dtype=torch.float64)
    torch.testing.assert_close(schedule, expected, rtol=1e-12, atol=0.0)  # sums in another order


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("norm", [1.0, 0.1, 3e-30, 7e30])
@pytest.mark.parametrize("steps", [2, 10, 1000, 4097])
def test_constant_norms_give_linear_decay_to_the_bit(optimizer: str, norm: float, steps: int) -> None:
    schedule = refine_schedule([norm] * steps, optimizer)
    gradient_families.same_bits(schedule, torch.arange(steps - 1, -1, -1, dtype=torch.float64) / (steps - 1))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [2, 15, 500])
def test_it_is_a_schedule(optimizer: str, steps: int) -> None:
    """Shape (T,), non-negative, the largest exactly 1, the last 0, ready for a float."""
    schedule = refine_schedule(noisy(steps), optimizer)
    assert schedule.shape == (steps,)
    assert schedule.dtype == torch.float64
    assert schedule.device.type == "cpu"
    assert float(schedule.max()) == 1.0
    assert float(schedule[-1]) == 0.0
    assert (schedule[:-1] > 0).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_falling_norms_give_a_warm_up_and_rising_norms_a_quicker_decay(optimizer: str) -> None:
    falling = torch.linspace(10, 1, 200)
    up = refine_schedule(falling, optimizer)
    assert int(up.argmax()) > 50
    assert (up[:50].diff() > 0).all()
    down = refine_schedule(falling.flip(0), optimizer)
    linear = refine_schedule(torch.ones(200))
    assert int(down.argmax()) == 0
    assert (down[1:-1] < linear[1:-1]).all()


def test_the_unit_of_the_norms_does_not_matter() -> None:
    norms = torch.from_numpy(noisy(100))
    for optimizer in POWERS:
        expected = refine_schedule(norms, optimizer)
        gradient_families.same_bits(refine_schedule(norms * 2.0**40, optimizer), expected)
        gradient_families.same_bits(refine_schedule(norms * 2.0**-40, optimizer), expected)


def test_2_norms_serve_for_1_norms_while_their_ratio_stays() -> None:
    norms = torch.from_numpy(noisy(100))
    torch.testing.assert_close(refine_schedule(norms, "adam"), refine_schedule(37.3 * norms, "adam"))
    squared = refine_schedule(norms.sqrt(), "sgd", smoothing=0.0)
    torch.testing.assert_close(squared, refine_schedule(norms, "adam", smoothing=0.0))


def test_a_lone_spike_is_smoothed_away() -> None:
    norms = torch.ones(100)
    norms[[0, 37, 80, 99]] = 1e6
    calm = refine_schedule(torch.ones(100))
    gradient_families.same_bits(refine_schedule(torch.where(torch.arange(100) == 0, 1.0, norms)), calm)
    assert float(refine_schedule(norms, smoothing=0.0)[37]) < 1e-6
    assert float(refine_schedule(norms)[0]) < 1e-6  # the first norm stands for those before it


@pytest.mark.parametrize("junk", [math.nan, math.inf, -0.0, 0.0])
def test_missing_norms_lie_between_their_neighbours(junk: float) -> None:
    norms = [1.0, 2.0, junk, 4.0, 5.0, junk, junk, 2.0, 1.0, 1.0]
    whole = [1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.0]
    for smoothing in (0.0, 0.3):
        schedule = refine_schedule(norms, smoothing=smoothing)
        torch.testing.assert_close(schedule, refine_schedule(whole, smoothing=smoothing), rtol=1e-14, atol=0.0)


def test_norms_missing_at_the_ends_repeat_the_nearest() -> None:
    nan = math.nan
    schedule = refine_schedule([nan, nan, 3.0, 2.0, 4.0, nan], smoothing=0.0)
    gradient_families.same_bits(schedule, refine_schedule([3.0, 3.0, 3.0, 2.0, 4.0, 4.0], smoothing=0.0))


def test_half_of_the_norms_is_enough() -> None:
    gradient_families.same_bits(refine_schedule([1.0, math.nan] * 5), refine_schedule([1.0] * 10))


def test_lists_arrays_tensors_and_generators_are_read_alike() -> None:
    norms = noisy(50)
    expected = refine_schedule(torch.from_numpy(norms))
    for given in (norms, norms.tolist(), tuple(norms), (float(n) for n in norms)):
        gradient_families.same_bits(refine_schedule(given), expected)
    trained = torch.from_numpy(norms.copy()).requires_grad_()
    assert not refine_schedule(trained).requires_grad
    half = torch.from_numpy(norms).half()
    gradient_families.same_bits(refine_schedule(half), refine_schedule(half.double()))


def test_the_norms_are_not_modified() -> None:
    norms = torch.from_numpy(noisy(50))
    norms[3] = math.nan
    held = norms.clone()
    refine_schedule(norms)
    gradient_families.same_bits(norms, held)
    assert norms._version == 1


def test_lambda_lr_takes_it() -> None:
    schedule = refine_schedule(noisy(30))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(schedule[min(step, 29)]))
    told = []
    for _ in range(30):
        told.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(torch.tensor(told, dtype=torch.float64), 0.4 * schedule, rtol=1e-15, atol=0.0)
