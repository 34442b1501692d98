"""What is remembered of an optimizer is a value: steps and rows make new ones and leave the old one to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.bare_runs import bare_run, frozen
from helpers.tiny_modules import same_bits

from lightning_calib.steps.counts import ClipCounts
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.step_record import Fired, Phase, StepRecord


@pytest.fixture
def memory():
    """Of an optimizer that two callbacks clip, in the middle of a window."""
    plan = bare_run().view.plan
    clips = {"A": ClipCounts.empty(), "B": ClipCounts.empty()}
    empty = OptimizerMemory.empty(plan)._replace(clips=clips, norms=NormHistory.empty(plan))
    return empty.add(step(3.0, A=True, B=False), scaled=False, fused=False)


def step(norm, *, phase=Phase.JUDGED, live=True, **fired):
    before = None if norm is None else torch.tensor(norm)
    who = tuple(Fired(key, torch.tensor(reduced)) for key, reduced in fired.items())
    return StepRecord(phase, live=live, norm_before=before, fired=who)


def test_nothing_is_known_of_an_optimizer_that_has_not_stepped():
    memory = OptimizerMemory.empty(bare_run().view.plan)
    assert (memory.steps.steps, memory.clips, memory.norms, memory.tab) == (0, {}, None, None)
    assert memory.add(step(1.0), scaled=False, fused=False).norms is None


@pytest.mark.parametrize(
    "change",
    [
        lambda memory: memory.add(step(5.0, A=True), scaled=False, fused=False),
        lambda memory: memory.add(step(math.inf, A=True), scaled=True, fused=True),
        lambda memory: memory.add_clips(step(5.0, B=True)),
        lambda memory: memory.end_step(step(5.0, phase=Phase.NOT_TAKEN)),
        lambda memory: memory.new_window(),
    ],
)
def test_a_memory_stays_as_it_is(memory, change):
    before = frozen(memory)
    assert change(memory) is not memory
    same_bits(frozen(memory), before)


def test_a_step_counts_for_each_callback(memory):
    later = memory.add(step(5.0, B=True), scaled=False, fused=False)
    assert [(one.steps, int(one.fired)) for one in later.clips.values()] == [(2, 1), (2, 1)]
    assert (later.steps.steps, later.norms.seen, float(later.norms.high)) == (2, 2, 5.0)


def test_nobody_has_reduced_a_step_that_was_dropped(memory):
    later = memory.add(step(5.0, live=False, A=True, B=True), scaled=False, fused=False)
    assert [(one.steps, int(one.fired)) for one in later.clips.values()] == [(2, 1), (2, 0)]
    assert int(later.steps.window_reduced) == 1


def test_a_step_without_a_gradient_changes_nothing(memory):
    assert memory.add(step(None), scaled=False, fused=False) is memory


@pytest.mark.parametrize(("phase", "skipped"), [(phase, phase.name in ("JUDGED", "NOT_TAKEN")) for phase in Phase])
def test_a_step_that_is_over_counts_as_skipped_where_torch_did_not_take_it(memory, phase, skipped):
    assert memory.end_step(step(5.0, phase=phase)).steps.skipped == skipped


def test_a_row_ends_the_window_of_everything_that_has_one(memory):
    fresh = memory.end_step(step(3.0)).new_window()
    assert (fresh.steps.window_steps, int(fresh.steps.window_reduced), float(fresh.steps.window_max)) == (0, 0, -1.0)
    assert [(one.window_steps, int(one.window_fired)) for one in fresh.clips.values()] == [(0, 0), (0, 0)]
    assert [(one.steps, int(one.fired)) for one in fresh.clips.values()] == [(1, 1), (1, 0)]
    assert (fresh.steps.steps, fresh.steps.skipped, fresh.norms.seen) == (1, 1, 1)
