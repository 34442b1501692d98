"""Running statistics of several series at once against numpy on each."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import gradient_families
from torch import Tensor

from lightning_calib.functional.estimators import (
    History,
    Ring,
    empty_history,
    empty_ring,
    no_moments,
    push_arithmetic,
    push_exponential,
    push_history,
    push_ring,
    quantile,
    quantile_of_history,
    quantile_of_ring,
)


def stream(steps: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(steps, columns, generator=generator, dtype=torch.float64).exp()
    return values, torch.rand(steps, columns, generator=generator) < 0.8


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.951, 1.0])
def test_quantile_is_numpys(fraction: float) -> None:
    counts = torch.tensor([0, 1, 2, 7, 10])
    rows = torch.full((5, 10), torch.inf, dtype=torch.float64)
    values = torch.rand(5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, value, count in zip(rows, values, counts.tolist(), strict=True):
        row[:count] = value[:count].sort().values
    expected = [
        np.quantile(r[:c].numpy(), fraction) if c else np.inf for r, c in zip(rows, counts.tolist(), strict=True)
    ]
    actual = quantile(rows, counts, fraction)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0.0)  # one lerp


def test_quantile_of_a_long_float32_row_finds_its_place_exactly() -> None:
    """A position above 2^24 has no exact place in float32."""
    row = torch.arange(2**24 + 4, dtype=torch.float32).view(1, -1)
    row[0, -2:] = torch.tensor([3e7, 4e7])
    gradient_families.same_bits(quantile(row, torch.tensor([2**24 + 4]), 1.0), torch.tensor([4e7]))
    gradient_families.same_bits(quantile(row, torch.tensor([2**24 + 3]), 1.0), torch.tensor([3e7]))


@pytest.mark.parametrize("window", [1, 5, 64])
def test_ring_holds_the_last_values_that_were_pushed(window: int) -> None:
    values, where = stream(60, 3)
    ring = empty_ring(values[0], window)
    for step in range(60):
        ring = push_ring(ring, values[step], where[step])
        for k in range(3):
            pushed = values[: step + 1, k][where[: step + 1, k]]
            assert int(ring.seen[k]) == len(pushed)
            kept = ring.values[k][ring.values[k].isfinite()]
            gradient_families.same_bits(kept.sort().values, pushed[-window:].sort().values)


def all_of(history: History) -> Tensor:
    """The values of both parts, ascending, without the padding."""
    both = torch.cat([history.values, history.tail], dim=1).sort().values[0]
    return both[both.isfinite()]


def test_history_stays_sorted_while_its_capacity_doubles() -> None:
    values, where = stream(2600, 1)
    history = empty_history(values[0])
    capacities = [history.values.shape[1]]
    for step in range(2600):
        history = push_history(history, values[step], where[step])
        capacities.append(history.values.shape[1])
        if step % 97 == 0 or step in (1022, 1023, 1024, 1278, 1279, 1280, 2599):
            pushed = values[: step + 1][where[: step + 1]]
            gradient_families.same_bits(all_of(history), pushed.sort().values)
            assert history.flaw() == ""
            assert int(history.seen) == len(pushed)
            assert int(history.tail.isfinite().sum()) <= max(0, step - 1023) % 256
            for fraction in (0.0, 0.1, 0.5, 0.951, 1.0):
                whole = quantile(pushed.sort().values.view(1, -1), history.seen, fraction)
                gradient_families.same_bits(quantile_of_history(history, fraction), whole)
    assert {b // a for a, b in pairwise(capacities)} == {1, 2}
    assert capacities[-1] < 2 * 2600


def test_equal_values_stay_in_the_history_each() -> None:
    history = empty_history(torch.zeros(1))
    pushed = []
    for step in range(1700):
        pushed.append(float(2 - step % 2 if step % 5 else 3))
        history = push_history(history, torch.tensor([pushed[-1]]), torch.tensor([True]))
        if step % 50 == 4 and step > 900:
            gradient_families.same_bits(all_of(history), torch.tensor(pushed).sort().values)
            for rank in range(0, step + 1, 77):
                wanted = quantile(torch.tensor([sorted(pushed)]), history.seen, rank / max(step, 1))
                gradient_families.same_bits(quantile_of_history(history, rank / max(step, 1)), wanted)


def test_an_empty_history_has_no_quantile() -> None:
    history = push_history(empty_history(torch.zeros(1)), torch.tensor([math.nan]), torch.tensor([False]))
    assert quantile_of_history(history, 0.5).tolist() == [math.inf]


@pytest.mark.parametrize("seen", [0, 1, 300, 1000])
def test_a_history_from_before_there_was_a_tail_goes_on(seen: int) -> None:
    """All in one part, of a capacity that its steps have reached."""
    old = torch.full((1, 1024), torch.inf)
    pushed = torch.rand(seen, generator=torch.Generator().manual_seed(0)) + 1
    old[0, :seen] = pushed.sort().values
    history = History(torch.tensor([seen]), old, torch.tensor(1024), empty_history(torch.zeros(1)).tail)
    assert history.flaw() == ""
    for step in range(520):
        pushed = torch.cat([pushed, torch.tensor([1 + step % 7 / 8])])
        history = push_history(history, pushed[-1:], torch.tensor([True]))
        if step % 40 == 0 or step in (254, 255, 256):
            gradient_families.same_bits(all_of(history), pushed.sort().values)
            wanted = quantile(pushed.sort().values.view(1, -1), history.seen, 0.3)
            gradient_families.same_bits(quantile_of_history(history, 0.3), wanted)
            assert history.flaw() == ""
    assert history.values.shape == (1, 2048)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.24, 0.26, 0.5, 0.76, 0.9, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_the_quantile_of_a_ring_is_that_of_its_sorted_values(window: int, fraction: float) -> None:
    """Whichever side is looked at; rows that are empty, full, or have anything between, equal values among them."""
    counts = torch.tensor([0, 1, 2, window // 2, max(window - 1, 0), window, 3 * window])
    rows = torch.rand(len(counts), window, generator=torch.Generator().manual_seed(0))
    rows[-1] = rows[-1].mul(4).floor()
    for row, count in zip(rows, counts.tolist(), strict=True):
        row[count:] = torch.inf
    wanted = quantile(rows.sort(dim=1).values, counts.clamp(max=window), fraction)
    gradient_families.same_bits(quantile_of_ring(Ring(counts, rows), fraction), wanted)
    assert wanted[0] == math.inf
    # Of one series on the host the ranks are numbers: the same bits.
    each = [quantile_of_ring(Ring(counts[k : k + 1], rows[k : k + 1]), fraction) for k in range(len(counts))]
    gradient_families.same_bits(torch.cat(each), wanted)


def test_arithmetic_moments_are_numpys() -> None:
    values, where = stream(80, 4)
    moments = no_moments(values[0])
    for step in range(80):
        moments = push_arithmetic(moments, values[step], where[step])
        for k in range(4):
            pushed = values[: step + 1, k][where[: step + 1, k]].numpy()
            assert int(moments.seen[k]) == len(pushed)
            if len(pushed):
                # Eighty updates in double precision; the variance is a difference of numbers of order 1.
                np.testing.assert_allclose(float(moments.mean[k]), pushed.mean(), rtol=1e-12)
                np.testing.assert_allclose(float(moments.var[k]), pushed.var(), rtol=1e-11, atol=1e-14)


def test_arithmetic_moments_keep_a_small_spread_far_from_zero() -> None:
    """In float32 the sum of squares would have lost it."""
    moments = no_moments(torch.zeros(1))
    for step in range(100):
        moments = push_arithmetic(moments, torch.tensor([4096.0 + step % 2]), torch.tensor([True]))
    torch.testing.assert_close(moments.var, torch.tensor([0.25]), rtol=0.02, atol=0.0)  # the mean has 2^-11 to spare


def test_exponential_moments_follow_their_recurrence() -> None:
    values, where = stream(50, 2)
    moments = no_moments(values[0])
    mean, var = [0.0, 0.0], [0.0, 0.0]
    for step in range(50):
        moments = push_exponential(moments, values[step], where[step], 0.9)
        for k in range(2):
            if where[step, k]:
                x = float(values[step, k])
                mean[k] = 0.9 * mean[k] + 0.1 * x
                var[k] = 0.9 * var[k] + 0.1 * (x - mean[k]) ** 2
        torch.testing.assert_close(moments.mean, torch.tensor(mean, dtype=torch.float64), rtol=1e-12, atol=0.0)
        torch.testing.assert_close(moments.var, torch.tensor(var, dtype=torch.float64), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("kind", ["ring", "history", "arithmetic", "exponential"])
def test_a_push_leaves_its_argument_alone(kind: str) -> None:
    columns = 1 if kind == "history" else 3
    values, where = stream(5, columns)
    make = {"ring": lambda: empty_ring(values[0], 2), "history": lambda: empty_history(values[0])}
    push = {
        "ring": push_ring,
        "history": push_history,
        "arithmetic": push_arithmetic,
        "exponential": lambda s, v, w: push_exponential(s, v, w, 0.9),
    }[kind]
    state = make.get(kind, lambda: no_moments(values[0]))()
    for row, mask in zip(values, where, strict=True):
        held = [t.clone() for t in state]
        new = push(state, row, mask)
        for actual, wanted in zip(state, held, strict=True):
            gradient_families.same_bits(actual, wanted)
        state = new
