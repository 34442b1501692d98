"""Steps that are counted many at a time are counted as one after the other, to the bit, whenever it happens."""

from __future__ import annotations

import math
import random

import pytest
import torch
from helpers.bare_runs import bare_run, frozen
from helpers.tiny_modules import same_bits

from lightning_calib.steps.counts import ClipCounts
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.step_record import Fired, Kept, Overflow, Phase, StepRecord

PLACES = 4096
MOST = 128  # steps that wait


def norm(numbers):
    return numbers.choice([0.0, math.inf, math.nan, 1e30, *(numbers.lognormvariate(0, 3) for _ in range(8))])


def flag(numbers):
    return torch.tensor(numbers.random() < 0.5)


def any_step(numbers):
    """A step in which anything may have happened."""
    who = [key for key in ("A", "B") if numbers.random() < 0.7]
    kept = Kept(torch.tensor(norm(numbers)), numbers.choice([None, flag(numbers)]))
    return StepRecord(
        phase=numbers.choice(list(Phase)),
        live=numbers.random() < 0.8,
        norm_before=numbers.choice([None, *[torch.tensor(norm(numbers))] * 5]),
        fired=tuple(Fired(key, flag(numbers), acted=numbers.random() < 0.8) for key in who),
        kept=numbers.choice([None, kept, kept]),
        overflow=numbers.choice([None, None, None, Overflow(numbers.random() < 0.5, numbers.random() < 0.5)]),
    )


def nothing(view):
    clips = {key: ClipCounts.empty() for key in ("A", "B")}
    return OptimizerMemory.empty(view.plan)._replace(clips=clips, norms=NormHistory.empty(view.plan))


@pytest.mark.parametrize(("scaled", "fused"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("seed", range(4))
def test_many_steps_at_once_are_one_after_the_other(seed, scaled, fused):
    numbers = random.Random(seed)
    one_by_one = at_once = nothing(bare_run().view)
    for count in (1, 2, 7, 40, 300):
        steps = [any_step(numbers) for _ in range(count)]
        for step in steps:
            one_by_one = one_by_one.add(step, scaled=scaled, fused=fused)
        at_once = at_once.add(*steps, scaled=scaled, fused=fused)
        same_bits(frozen(at_once), frozen(one_by_one))
    assert one_by_one.steps.steps > 200


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("before", [0, 1, 2, 3, 5, 9])
def test_many_norms_at_once_fill_the_places_as_one_after_the_other(stride, before):
    torch.manual_seed(0)
    seen = stride * PLACES - before
    values = torch.where(torch.arange(PLACES) < -(-seen // stride), torch.rand(PLACES), math.nan)
    one_by_one = at_once = NormHistory(seen, stride, values, values.new_tensor(0.5), values.new_tensor(0.6))
    for count in (2, 3, 11, 40):
        norms = torch.rand(count)
        norms[0] = math.inf
        for one in norms:
            one_by_one = one_by_one.add(one)
        at_once = at_once.add(norms)
        same_bits(list(at_once), list(one_by_one))
    assert at_once.stride == 2 * stride


def test_it_makes_no_difference_when_somebody_asks():
    numbers, asked, unasked = random.Random(5), bare_run(), bare_run()
    asked.memory, unasked.memory = nothing(asked.view), nothing(unasked.view)
    for step in [any_step(numbers) for _ in range(3 * MOST)]:
        for run in (asked, unasked):
            run.record = step
            run.count()
            run.end_step()
        if numbers.random() < 0.3:
            frozen(asked.memory)
    same_bits(frozen(unasked.memory), frozen(asked.memory))
    assert unasked.memory.steps.skipped > 0


def test_the_tab_s_memory_waits_for_no_step_and_loses_none():
    run = bare_run()
    run.record = StepRecord(Phase.JUDGED, live=True, norm_before=torch.tensor(2.0))
    run.count()
    run.tab = "known"
    assert (run.tab, run.memory.tab, run.memory.steps.steps) == ("known", "known", 1)


def test_so_many_steps_do_not_wait_for_ever():
    run = bare_run()
    for i in range(2 * MOST + 3):
        run.record = StepRecord(Phase.JUDGED, live=True, norm_before=torch.tensor(float(i)))
        run.count()
        assert len(run._waiting) < MOST
    assert run.memory.steps.steps == 2 * MOST + 3
