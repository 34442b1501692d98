"""ZScore judges each segment as if it were alone, whether the others are in their warm-up or past it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny_modules import same_bits

from lightning_calib import ZScore
from lightning_calib.functional.judge import Observation

WARMUP = 3


def judged(policy, series):
    """The targets and states of every step, of series with one norm per segment and step."""
    state, found = policy.init(series[0]), []
    for norms in series:
        targets, state = policy(Observation(norms, norms.isfinite() & (norms > 0)), state)
        found.append((targets, *state))
    return found


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("bound", [None, 1.5])
def test_together_is_as_alone(robust, bound):
    torch.manual_seed(1)
    series = torch.rand(30, 4) + 1
    series[20:22] *= 50  # all spike
    series[0:10:2, 1] = 0.0  # these three are past their warm-up later
    series[0:20, 2] = math.nan
    series[:, 3] = math.inf
    policy = ZScore(warmup_steps=WARMUP, robust=robust, warmup_max_norm=bound)
    together = judged(policy, series)
    for k in range(series.shape[1]):
        alone = judged(policy, series[:, k : k + 1])
        same_bits([[one[k : k + 1] for one in step] for step in together], [list(step) for step in alone])
    assert [int(seen) for seen in together[-1][1]] == [30, 25, 10, 0]
