"""The table of phases: what each says of a step, and what the end of a batch leaves of it."""

from __future__ import annotations

import pytest
import torch
from helpers.bare_runs import bare_run
from helpers.tiny_modules import same_bits

from lightning_calib.steps.step_record import Fired, Kept, Phase, StepRates, StepRecord
from lightning_calib.steps.weight_update import WeightUpdate

YES, NO = torch.tensor(True), torch.tensor(False)
TABLE = {  # phase: its turn has come, the step counts as skipped when it is over
    Phase.RESTING: (False, False),
    Phase.JUDGED: (True, True),
    Phase.TAKEN: (True, False),
    Phase.NOT_TAKEN: (True, True),
}


def test_the_table_has_every_phase():
    assert set(TABLE) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_what_a_phase_says(phase):
    record = StepRecord(phase=phase)
    assert (record.turn, record.skipped) == TABLE[phase]


@pytest.mark.parametrize("phase", Phase)
def test_the_end_of_a_batch_keeps_what_was_measured_but_for_what_a_row_has_shown(phase):
    run, one = bare_run(), torch.tensor(1.0)
    update, used = WeightUpdate(one, None, one, one), run.view.reading()
    seen = {"norm_before": one, "fired": (Fired("a", YES),), "logged": True, "window_scale": 2.0}
    record = StepRecord(phase, live=True, used=used, norm_used=one, update=update, **seen)
    rested = record.rest()
    assert (rested.turn, rested.skipped) == TABLE[Phase.RESTING]  # a skipped step is not counted again
    assert (rested.used, rested.norm_used, rested.update) == (None, None, None)
    same_bits(rested, StepRecord(Phase.RESTING, live=True, **seen))
    assert record.phase is phase
    assert record.used is used


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, False),
        ({"fired": (Fired("a", NO), Fired("b", YES))}, True),
        ({"fired": (Fired("a", NO), Fired("b", NO))}, False),
        ({"fired": (Fired("a", YES, acted=False),)}, False),
        ({"fired": (Fired("a", YES, acted=False), Fired("b", NO))}, False),
        ({"fired": (Fired("a", YES),), "live": False}, False),
        ({"kept": Kept(torch.tensor(1.0), YES)}, True),
        ({"kept": Kept(torch.tensor(1.0), NO)}, False),
        ({"kept": Kept(torch.tensor(1.0), NO), "fired": (Fired("a", YES),)}, True),
        ({"kept": Kept(torch.tensor(1.0), YES), "fired": (Fired("a", YES, acted=False),)}, True),
    ],
)
def test_a_step_is_reduced_if_somebody_who_acts_or_the_trainer_reduced_it(fields, wanted):
    assert bool(StepRecord(**{"live": True, **fields}).reduced) is wanted


def test_rates_times_a_factor():
    assert StepRates(0.1, 0.2, 8.0).scaled(0.5) == StepRates(0.1, 0.1, 8.0)
    assert StepRates(None, None).scaled(0.5) == StepRates(None, None)
