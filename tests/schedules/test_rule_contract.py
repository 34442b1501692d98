"""What a rule of one's own must fulfil is said when it is laid for an optimizer, with the remedy."""

import re
from typing import NamedTuple

import pytest
import torch
from helpers.tiny_modules import Tiny, fit
from torch import nn

from lightning_calib import LearningRateControl, LearningRateRule, MaxNorm, Policy, SpikeBackoff
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segments import Segments
from lightning_calib.schedules.contract import check_rule

FORM = re.compile(r"^`.+` must .+, got .+\. [A-Z].+\.$", re.DOTALL)
V, T = ValueError, TypeError


class Seen(NamedTuple):
    mean: torch.Tensor


class Good(LearningRateRule):
    def init(self, norms):
        return Seen(torch.zeros_like(norms))

    def __call__(self, measurement, state):
        return torch.full_like(measurement.norms, 0.5), state


def returns(make, **attributes):
    return type("Mine", (Good,), {"__call__": lambda self, seen, state: make(seen, state), **attributes})


def writes(seen, state):
    return seen.norms.mul_(0.5), state


BROKEN = {
    "no NamedTuple": (type("Mine", (Good,), {"init": lambda s, n: [n]}), T, "`Mine.init(norms)` must be a NamedTuple"),
    "no pair": (returns(lambda m, s: m.norms), T, "`Mine(...)` must be a pair, the factors and the next state"),
    "one factor": (returns(lambda m, s: (torch.tensor(1.0), s)), V, "the factors of Mine(...)` must be of the shape"),
    "a number": (returns(lambda m, s: (0.5, s)), T, "Use for instance `torch.full_like(measurement.norms, 1.0)`"),
    "below 0": (returns(lambda m, s: (-m.norms, s)), V, "must be finite numbers >= 0, got -1.0 for norms of 1"),
    "infinite": (returns(lambda m, s: (m.norms / 0, s)), V, "must be finite numbers >= 0, got inf for norms of 1"),
    "writes": (returns(writes), V, "one that writes into `measurement.norms`"),
    "another state": (returns(lambda m, s: (m.norms, s.mean)), T, "must be a Seen, as `init` returned"),
    "undeclared loss": (returns(lambda m, s: (m.norms * m.loss, s)), V, "`Mine.needs_loss` must be True for a class"),
    "undeclared distances": (
        returns(lambda m, s: (m.norms * m.distances, s)),
        V,
        "`Mine.needs_distance` must be True for a class that reads `distances` and `start_norms`, got False",
    ),
    "a text for True": (returns(writes, needs_loss="no"), T, "`Mine.needs_loss` must be True or False, got 'no'"),
    "a tuple for Setting": (returns(writes, meant_for=("SGD", 1.0)), T, "`Mine.meant_for` must be a Setting or None"),
}


def groups() -> Segments:
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    return Segments.of(Plan.of_optimizer(torch.optim.SGD([{"params": [one]} for one in weights], lr=0.1)), "group")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_refused_in_words(name):
    make, kind, part = BROKEN[name]
    with pytest.raises(kind) as refusal:
        check_rule(make(), groups())
    assert part in str(refusal.value)
    assert FORM.match(str(refusal.value)), str(refusal.value)


def test_a_broken_rule_is_refused_before_training():
    with pytest.raises(ValueError, match="the factors of Mine"):
        fit(Tiny(), [LearningRateControl(BROKEN["one factor"][0]())], 2)


@pytest.mark.parametrize(
    ("attributes", "read"),
    [
        ({}, lambda m: m.norms),
        ({"needs_loss": True}, lambda m: m.loss),
        ({"needs_distance": True}, lambda m: m.start_norms),
    ],
)
def test_a_good_rule_passes(attributes, read):
    check_rule(returns(lambda m, s: (m.norms * read(m), s), **attributes)(), groups())


def test_a_state_above_64_mb_is_refused():
    make = type("Mine", (Good,), {"init": lambda s, n: Seen(n.new_zeros(2**23, 3))})
    with pytest.raises(ValueError, match=r"would take 96 MB of every checkpoint, more than 64 MB"):
        fit(Tiny(), [LearningRateControl(make())], 2)


class Listed(Policy):
    __hash__ = None

    def init(self, norms):
        return Seen(norms)

    def __call__(self, observation, state):
        return observation.norms, state


def test_spike_backoff_tells_what_its_policy_must_be():
    with pytest.raises(TypeError, match=r"`policy` must be hashable, got .*frozen=True"):
        SpikeBackoff(Listed())
    broken = type("Mine", (Good, Policy), {"init": lambda s, n: ()})
    with pytest.raises(TypeError, match=r"`Mine.init\(norms\)` must be a NamedTuple"):
        check_rule(SpikeBackoff(broken()), groups())
    check_rule(SpikeBackoff(MaxNorm(1.0)), groups())
