"""Rows in bounded memory: however long a run is, no row is left out, and no peak vanishes."""

from __future__ import annotations

import math

import torch
from helpers.properties import MORE, runs
from helpers.tiny_modules import same_bits
from hypothesis import given
from hypothesis import strategies as st

from lightning_calib.steps.kept_rows import BUDGET, KeptRows, room

LARGEST = torch.tensor([True, False])
NUMBER = st.one_of(st.floats(width=32, allow_nan=False), st.just(math.nan))  # nan is "not known"
ROWS = runs(st.lists(NUMBER, min_size=2, max_size=2), 100).map(torch.tensor)
MOST = st.sampled_from([2, 4, 8, 16])


def kept(rows, most, stops=()):
    found = KeptRows()
    for place, row in enumerate(rows):
        found = KeptRows.restored(found.saved(), (2,), "rows") if place in stops else found
        found = found.add(10 * place, row, most, LARGEST)
    return found


@MORE
@given(rows=ROWS, most=MOST)
def test_each_row_stands_for_those_since_the_one_before(rows, most):
    steps, table = kept(rows, most).table((2,))
    start = 0
    for step, row in zip(steps, table, strict=True):
        stretch = rows[start : step // 10 + 1]
        known = [one for one in stretch[:, 0].tolist() if not math.isnan(one)]
        expected = torch.tensor([max(known, default=math.nan), stretch[-1, 1]])
        torch.testing.assert_close(row, expected, rtol=0, atol=0, equal_nan=True)
        start = step // 10 + 1
    assert start == len(rows)


@MORE
@given(rows=ROWS, most=MOST)
def test_there_are_never_more_than_fit_and_at_least_half_as_many_are_kept(rows, most):
    found = kept(rows, most)
    assert found.seen == len(rows)
    assert len(found.rows) < most
    assert len(found.rows) >= min(len(rows), most) // 2 - (found.open is not None)
    assert found.stride & (found.stride - 1) == 0
    assert (found.open is None) == (found.seen % found.stride == 0)


@MORE
@given(rows=ROWS, most=MOST, stops=st.sets(st.integers(0, 149), max_size=5))
def test_a_saved_one_goes_on_as_if_nothing_had_happened(rows, most, stops):
    same_bits(kept(rows, most, stops)._asdict(), kept(rows, most)._asdict())


@MORE
@given(numbers=st.integers(1, 10**6))
def test_the_room_is_even_and_within_the_budget_where_that_can_be(numbers):
    found = room(numbers)
    assert found % 2 == 0
    assert 8 <= found <= 512
    assert found == 8 or found * numbers * 4 <= BUDGET
