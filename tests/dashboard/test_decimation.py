"""Long runs: bounded files in which no spike vanishes."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_calib.dashboard.decimation import BUDGET, LEAST, MOST, Pool, room, stride


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


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 31, 64, 100, 333])
def test_every_row_is_in_exactly_one_record_which_holds_its_largest(rows):
    generator = torch.Generator().manual_seed(rows)
    values = torch.rand(rows, 3, generator=generator)
    found, pool = written(values, 8)
    found += [pool] if pool.values is not None else []
    start = 0
    for record in found:
        end = record.step // 10 + 1
        assert end - start <= stride(start, 8)
        torch.testing.assert_close(record.values, values[start:end].amax(0), rtol=0, atol=0)
        start = end
    assert start == rows
    assert len(found) < rows or rows <= 9


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e30])
def test_no_spike_vanishes(bad):
    for place in range(0, 500, 7):
        values = torch.ones(500, 2)
        values[place, 1] = bad
        found, pool = written(values, 8)
        records = torch.stack([one.values for one in [*found, pool] if one.values is not None])
        assert bool((records[:, 1] != 1).any())
        assert bool((records[:, 0] == 1).all())


def test_what_is_absent_is_below_everything():
    found, _ = written(torch.tensor([[-1.0], [-1.0], [-1.0], [0.0], [3.0], [-1.0]]), 2)
    assert [one.values.item() for one in found] == [-1.0, -1.0, 0.0]


def test_the_last_value_stands_for_all_where_it_should():
    values = torch.tensor([[9.0, 9.0]] * 2 + [[5.0, 5.0], [1.0, 1.0]])
    found, _ = written(values, 2, latest=torch.tensor([False, True]))
    assert found[-1].values.tolist() == [5.0, 1.0]


def test_a_saved_pool_goes_on_as_if_nothing_had_happened():
    values = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    wanted, _ = written(values, 8)
    for stop in (5, 8, 21, 50, 77):
        pool, found = Pool(), []
        for step, value in enumerate(values):
            pool = Pool.restored(pool.saved(), (3,), "pool") if step == stop else pool
            pool, full = pool.add(10 * step, value, 8)
            found += [full] if full.values is not None else []
        assert [one.step for one in found] == [one.step for one in wanted]
        assert all(torch.equal(a.values, b.values) for a, b in zip(found, wanted, strict=True))


def test_a_saved_pool_does_not_change_with_the_run():
    pool, _ = Pool(rows=8).add(0, torch.ones(2), 8)
    saved = pool.saved()
    saved["values"].zero_()
    assert pool.values.tolist() == [1.0, 1.0]
