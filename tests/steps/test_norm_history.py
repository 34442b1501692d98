"""The norms of a run: all of them at first, then every second, fourth, ... one, and the extremes of all."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.bare_runs import bare_run
from helpers.tiny_modules import same_bits

from lightning_calib.functional.saved_state import DamagedStateError, restored
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.saved_state import to_host

PLACES = 4096


@pytest.fixture
def empty():
    return NormHistory.empty(bare_run().view.plan)


def after(history, norms):
    for norm in norms:
        history = history.add(torch.tensor(norm))
    return history


def long_run(history, norms):
    """As `after`, without its copies: what 4,096 norms more leave, put together by hand."""
    values = torch.tensor(norms[:PLACES])
    full = NormHistory(PLACES, 1, values, values.min(), values.max())
    return after(full, norms[PLACES:])


def test_each_norm_is_kept_and_what_is_none_is_nan(empty):
    history = after(empty, [2.0, math.inf, 0.0, math.nan, 0.5])
    torch.testing.assert_close(
        history.values[:6], torch.tensor([2.0, math.nan, math.nan, math.nan, 0.5, math.nan]), equal_nan=True
    )
    assert (history.seen, history.stride, history.unusable) == (5, 1, 3)
    assert (float(history.low), float(history.high)) == (0.5, 2.0)


def test_at_the_capacity_every_second_one_is_dropped(empty):
    norms = [float(i + 1) for i in range(PLACES + 5)]
    history = long_run(empty, norms)
    assert (history.seen, history.stride, history.flaw()) == (PLACES + 5, 2, "")
    kept = history.values[~history.values.isnan()]
    torch.testing.assert_close(kept, torch.tensor(norms[::2]), rtol=0, atol=0)
    assert (float(history.low), float(history.high)) == (1.0, PLACES + 5.0)
    assert history.unusable == 0


def test_a_norm_leaves_the_history_that_it_is_given_as_it_is(empty):
    for history in (after(empty, [1.0, 2.0]), long_run(empty, [1.0] * PLACES)):
        before = to_host(history._asdict())
        history.add(torch.tensor(7.0))
        same_bits(to_host(history._asdict()), before)


def test_quantiles_are_those_of_what_was_kept(empty):
    history = after(empty, [5.0, 1.0, math.inf, 3.0, 2.0, 4.0])
    assert history.quantiles(0.0, 0.5, 1.0) == [1.0, 3.0, 5.0]
    torch.testing.assert_close(history.quantiles_of(0.0, 0.5, 1.0), torch.tensor([1.0, 3.0, 5.0]))
    assert all(math.isnan(one) for one in empty.quantiles(0.1, 0.9))
    assert empty.quantiles_of(0.1, 0.9).tolist() == [math.inf, math.inf]


def test_quantiles_of_a_long_run_leave_out_the_places_that_are_free(empty):
    history = long_run(empty, [float(i + 1) for i in range(PLACES + 1)])
    assert history.quantiles(0.5) == history.quantiles_of(0.5).tolist() == [(PLACES + 2) / 2]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, ""),
        ({"stride": 3}, "every 3th"),
        ({"stride": 0}, "every 0th"),
        ({"seen": PLACES + 1}, "4097 norms"),
        ({"stride": 2}, "every 2th"),
        ({"stride": 2, "seen": PLACES + 1}, ""),
    ],
)
def test_a_saved_history_may_not_contradict_itself(empty, fields, part):
    history = after(empty, [1.0])
    saved = to_host({**history._asdict(), **fields})
    if not part:
        same_bits(restored(saved, empty, "norms"), history._replace(**fields))
        return
    with pytest.raises(DamagedStateError, match=part):
        restored(saved, empty, "norms")


def test_a_saved_history_holds_no_infinite_norm(empty):
    saved = to_host(empty._asdict())
    saved["values"][3] = math.inf
    with pytest.raises(DamagedStateError, match="a kept norm is infinite"):
        restored(saved, empty, "norms")
