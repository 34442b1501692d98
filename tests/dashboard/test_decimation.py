"""Long runs: bounded files in which no spike vanishes."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.properties import MORE, runs
from helpers.tiny_modules import same_bits
from hypothesis import given
from hypothesis import strategies as st

from lightning_calib.dashboard.decimation import BUDGET, LEAST, MOST, Pool, room, stride

FIRST = st.sampled_from([2, 4, 8, 16])  # rows that are written each by itself
NUMBER = st.one_of(st.just(-1.0), st.floats(0, width=32), st.just(math.nan))  # absent, a norm (inf too), bad
VALUES = runs(st.lists(NUMBER, min_size=3, max_size=3), 80).map(torch.tensor)


def written(values, first, latest=None):
    """All records of a run, and what is left in the pool."""
    pool, found = Pool(), []
    for step, value in enumerate(values):
        pool, full = pool.add(10 * step, value, first, latest)
        if full.values is not None:
            found.append(full)
    return found, pool


def test_stride_is_one_at_first_and_doubles_with_the_run():
    for first in (2, 128, 1000):
        wanted, end, now = [], first, 1
        for row in range(20 * first):
            if row == end:
                end, now = 2 * end, 2 * now
            wanted.append(now)
        assert [stride(row, first) for row in range(20 * first)] == wanted


@pytest.mark.parametrize(("rows", "records"), [(1_000, 1_000), (10**6, 5_977), (10**9, 10_954)])
def test_how_many_records_a_run_has(rows, records):
    found, row = 0, 0
    while row < rows:  # from one change of the stride to the next
        end = min(rows, 1000 if row < 1000 else 2 * row)
        found, row = found + math.ceil((end - row) / stride(row, 1000)), end
    assert found == records


def test_a_million_rows_of_a_thousand_tensors_fit_into_one_answer_of_tensorboards_server():
    first = room(1000 * 5 * 4)
    assert first == MOST
    assert 10_954 * 1000 * 5 * 4 < 256 * 2**20


def test_rows_of_many_tensors_are_thinned_earlier():
    for tensors in (1, 100, 1001, 5000, 10**5):
        first = room(tensors * 20)
        assert first % 2 == 0
        assert LEAST <= first <= MOST
        assert first == LEAST or first * tensors * 20 <= BUDGET


@MORE
@given(values=VALUES, first=FIRST)
def test_every_row_is_in_exactly_one_record_which_holds_its_largest(values, first):
    """Not a number is larger than all: no spike vanishes, and none is made."""
    found, pool = written(values, first)
    found += [pool] if pool.values is not None else []
    start = 0
    for record in found:
        end = record.step // 10 + 1
        assert end - start <= stride(start, first)
        torch.testing.assert_close(record.values, values[start:end].amax(0), rtol=0, atol=0, equal_nan=True)
        start = end
    assert start == len(values)
    assert len(found) < len(values) or len(values) <= first + 1


def test_what_is_absent_is_below_everything():
    found, _ = written(torch.tensor([[-1.0], [-1.0], [-1.0], [0.0], [3.0], [-1.0]]), 2)
    assert [one.values.item() for one in found] == [-1.0, -1.0, 0.0]


@MORE
@given(values=VALUES, first=FIRST)
def test_the_last_value_stands_for_all_where_it_should(values, first):
    found, pool = written(values, first, latest=torch.tensor([False, True, False]))
    found += [pool] if pool.values is not None else []
    last = values[torch.tensor([record.step // 10 for record in found])]
    torch.testing.assert_close(torch.stack([one.values for one in found])[:, 1], last[:, 1], equal_nan=True)


@MORE
@given(values=VALUES, first=FIRST, stops=st.sets(st.integers(0, 80), max_size=5))
def test_a_saved_pool_goes_on_as_if_nothing_had_happened(values, first, stops):
    wanted, rest = written(values, first)
    pool, found = Pool(), []
    for step, value in enumerate(values):
        pool = Pool.restored(pool.saved(), (3,), "pool") if step in stops else pool
        pool, full = pool.add(10 * step, value, first)
        found += [full] if full.values is not None else []
    assert [one.step for one in found] == [one.step for one in wanted]
    same_bits([one._asdict() for one in [*found, pool]], [one._asdict() for one in [*wanted, rest]])


def test_a_saved_pool_does_not_change_with_the_run():
    pool, _ = Pool(rows=8).add(0, torch.ones(2), 8)
    saved = pool.saved()
    saved["values"].zero_()
    assert pool.values.tolist() == [1.0, 1.0]
