"""How far weights have travelled from where they started, also in a run that resumed."""

from __future__ import annotations

import pytest
import torch
from helpers.bare_runs import bare_run
from helpers.tiny_modules import same_bits

from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import DamagedStateError
from lightning_calib.functional.segments import Segments
from lightning_calib.steps.start_distance import StartDistance


@pytest.fixture
def segments():
    return Segments.of(bare_run().view.plan, "group")


@torch.no_grad()
def move(segments, far):
    for tensor in segments.plan.tensors:
        tensor.add_(far)


def test_distances_grow_from_zero(segments):
    start = StartDistance(segments, "rule")
    torch.testing.assert_close(start.start_norms, torch.tensor([11.0]).sqrt())
    assert start.distances().tolist() == [0.0]
    move(segments, 2.0)
    torch.testing.assert_close(start.distances(), torch.tensor([44.0]).sqrt())
    torch.testing.assert_close(start.start_norms, torch.tensor([11.0]).sqrt())


def test_a_saved_start_is_the_start_of_the_run_that_resumes(segments):
    first = StartDistance(segments, "rule")
    saved = first.saved()
    move(segments, 2.0)
    resumed = StartDistance(segments, "rule")
    assert resumed.distances().tolist() == [0.0]
    resumed.restore(saved)
    same_bits([resumed.distances(), resumed.start_norms], [first.distances(), first.start_norms])
    saved[0].fill_(7.0)
    same_bits(resumed.saved(), first.saved())


def test_a_start_of_other_weights_is_damage(segments):
    start = StartDistance(segments, "rule")
    with pytest.raises(DamagedStateError, match="`start` must have 4 entries, got 1"):
        start.restore([torch.ones(2)])
    with pytest.raises(DamagedStateError, match=r"`start.0` must be a tensor of numbers, shape \(2, 3\)"):
        start.restore([torch.ones(3, 2), *start.saved()[1:]])


def test_a_copy_that_would_be_too_large_is_refused():
    large = torch.nn.Parameter(torch.empty(2**24 + 1, device="meta"))
    with pytest.raises(ValueError, match="`Rule` needs a copy of the starting weights, 64 MB"):
        StartDistance(Segments.of(Plan.of([large]), "global"), "Rule")
