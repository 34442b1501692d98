"""Counts of steps: each event once, whoever reports it; and a value stays as it is."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.bare_runs import bare_run
from helpers.tiny_modules import same_bits

from lightning_calib.steps.counts import ClipCounts, StepCounts
from lightning_calib.steps.saved_state import Losses, to_host
from lightning_calib.steps.step_record import Fired, Kept, Overflow, Phase, StepRecord

BAD = (math.inf, math.nan)
INCIDENT, ROUTINE = Overflow(True, False), Overflow(False, False)
# GradScaler, fused optimizer, what a guard found: incidents, steps skipped in the kernel.
OVERFLOWS = [
    (False, False, None, 1, 0),
    (False, False, INCIDENT, 1, 0),
    (True, False, None, 0, 0),
    (True, False, ROUTINE, 0, 0),
    (True, False, INCIDENT, 1, 0),
    (True, True, None, 0, 1),
    (True, True, Overflow(False, True), 0, 1),
    (True, True, ROUTINE, 0, 0),  # dropped: it counts as not taken when the step is over
    (True, True, Overflow(True, True), 1, 1),
    (True, True, INCIDENT, 1, 0),
]


@pytest.fixture
def empty():
    return StepCounts.empty(bare_run().view.plan)


def frozen(value):
    """The bits of a value of now, whatever is written into its tensors later."""
    return to_host(value._asdict())


def step(norm=1.0, **fields):
    before = None if norm is None else torch.tensor(norm)
    return StepRecord(**{"phase": Phase.JUDGED, "live": True, "norm_before": before, **fields})


def kept(norm, by_trainer=False):
    return Kept(torch.tensor(norm), torch.tensor(by_trainer))


@pytest.mark.parametrize("norm", BAD)
@pytest.mark.parametrize(("scaled", "fused", "overflow", "incidents", "in_kernel"), OVERFLOWS)
def test_a_bad_norm_is_counted_once(empty, norm, scaled, fused, overflow, incidents, in_kernel):
    counts = empty.add(step(norm, overflow=overflow), scaled=scaled, fused=fused)
    assert (int(counts.nonfinite), int(counts.kernel_skipped)) == (incidents, in_kernel)
    assert (counts.steps, counts.window_steps, counts.skipped) == (1, 1, 0)
    assert float(counts.window_max) == -1.0


@pytest.mark.parametrize(("scaled", "fused"), [(False, False), (True, False), (True, True)])
def test_a_finite_norm_is_nothing_of_that(empty, scaled, fused):
    counts = empty.add(step(2.0), scaled=scaled, fused=fused)
    assert (int(counts.nonfinite), int(counts.kernel_skipped)) == (0, 0)
    assert float(counts.window_max) == 2.0


def test_an_incident_that_a_guard_saw_in_a_norm_that_was_read_again_counts(empty):
    counts = empty.add(step(1e30, overflow=INCIDENT), scaled=False, fused=False)
    assert int(counts.nonfinite) == 1


def test_a_step_without_a_gradient_is_not_counted(empty):
    assert empty.add(step(None), scaled=False, fused=False) is empty


@pytest.mark.parametrize(("skipped", "wanted"), [(True, 1), (False, 0)])
def test_the_end_of_a_step_counts_it_if_it_was_not_taken(empty, skipped, wanted):
    assert empty.end_step(skipped=skipped).skipped == wanted


@pytest.mark.parametrize(
    ("before", "left", "known", "by_trainer", "share"),
    [
        (4.0, kept(1.0, True), 1, 1, 0.25),
        (4.0, kept(4.0), 1, 0, 1.0),
        (math.inf, kept(math.inf, True), 0, 0, 0.0),
        (math.nan, kept(1.0, True), 0, 0, 0.0),
        (0.0, kept(0.0, True), 0, 0, 0.0),
        (4.0, kept(math.nan, True), 0, 0, 0.0),
    ],
)
def test_what_is_left_of_a_norm_counts_where_both_are_known(empty, before, left, known, by_trainer, share):
    counts = empty.add(step(before, kept=left), scaled=False, fused=False)
    assert (int(counts.known), int(counts.trainer_reduced), float(counts.left)) == (known, by_trainer, share)


@pytest.mark.parametrize(
    ("acted", "live", "wanted"), [(True, True, 1), (False, True, 0), (True, False, 0), (False, False, 0)]
)
def test_a_dry_run_and_a_dropped_step_reduce_nothing(empty, acted, live, wanted):
    fired = (Fired("Clip", torch.tensor(True), acted=acted),)
    counts = empty.add(step(fired=fired, live=live), scaled=False, fused=False)
    assert int(counts.window_reduced) == wanted


def test_a_run_of_steps_is_what_a_loop_over_numbers_counts(empty):
    norms = [3.0, math.inf, 0.5, math.nan, 0.0, 7.0, 2.0]
    counts, window = empty, []
    for i, norm in enumerate(norms):
        fired = (Fired("Clip", torch.tensor(norm > 1)),)
        counts = counts.add(step(norm, fired=fired, kept=kept(min(norm, 1.0))), scaled=False, fused=False)
        window.append(norm)
        if i == 3:
            assert counts.window_steps == 4
            assert int(counts.window_reduced) == sum(one > 1 for one in window)
            assert float(counts.window_max) == 3.0
            counts, window = counts.new_window(), []
    assert (counts.window_steps, int(counts.window_reduced), float(counts.window_max)) == (3, 2, 7.0)
    assert (counts.steps, int(counts.nonfinite), int(counts.known)) == (7, 2, 4)
    torch.testing.assert_close(float(counts.left), 1 / 3 + 1 + 1 / 7 + 1 / 2)


def test_a_new_window_forgets_the_window_alone(empty):
    counts = empty.add(step(3.0, kept=kept(1.0, True)), scaled=False, fused=False).end_step(skipped=True)
    fresh = counts.new_window()
    assert (fresh.window_steps, int(fresh.window_reduced), float(fresh.window_max)) == (0, 0, -1.0)
    window = {"window_steps", "window_reduced", "window_max"}
    rest = [name for name in StepCounts._fields if name not in window]
    same_bits([getattr(fresh, name) for name in rest], [getattr(counts, name) for name in rest])


@pytest.mark.parametrize(
    "change",
    [
        lambda counts: counts.add(step(9.0, kept=kept(1.0, True)), scaled=False, fused=False),
        lambda counts: counts.add(step(math.nan), scaled=True, fused=True),
        lambda counts: counts.add_kept(torch.tensor(2.0), kept(1.0, True)),
        lambda counts: counts.end_step(skipped=True),
        lambda counts: counts.new_window(),
    ],
)
def test_counts_stay_as_they_are(empty, change):
    counts = empty.add(step(3.0, kept=kept(1.0, True)), scaled=False, fused=False)
    before = frozen(counts)
    assert change(counts) is not counts
    same_bits(frozen(counts), before)


def test_any_copy_of_saved_counts_will_do_and_damage_is_told(empty):
    counts, losses = empty.add(step(3.0), scaled=False, fused=False), Losses()
    saved = {"tally": {"0": frozen(counts)}}
    same_bits(empty.restored([({}, losses), (saved, losses)], 0), counts)
    assert empty.restored([({}, losses)], 0) is empty
    assert losses.sentence("ZClip") == ""
    damaged = {"tally": {"0": {**frozen(counts), "steps": -1}}}
    same_bits(empty.restored([(damaged, losses), (saved, losses)], 0), counts)
    assert "`tally.0.steps` must be a whole number >= 0, got -1" in losses.sentence("ZClip")


# One callback's


def test_each_step_counts_whether_it_was_judged_or_not():
    counts = ClipCounts.empty()
    for fired in (True, None, False, True):
        counts = counts.add(None if fired is None else torch.tensor(fired))
    assert (counts.window_steps, int(counts.window_fired), counts.steps, int(counts.fired)) == (4, 2, 4, 2)
    assert float(counts.fraction) == 0.5
    before = frozen(counts)
    fresh = counts.new_window()
    assert (fresh.window_steps, int(fresh.window_fired), fresh.steps, int(fresh.fired)) == (0, 0, 4, 2)
    assert float(fresh.fraction) == 0.0
    counts.add(torch.tensor(True))
    same_bits(frozen(counts), before)
