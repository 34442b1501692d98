"""What a policy of one's own must fulfil is said when it is first used, with the remedy."""

import re
from collections import namedtuple
from functools import cached_property
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import nn

from lightning_calib import Policy
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.contract import check_policy
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segments import Segments

FORM = re.compile(r"^`.+` must .+, got .+\. [A-Z].+\.$", re.DOTALL)


class Seen(NamedTuple):
    mean: torch.Tensor


Grown = namedtuple("Grown", ["values"])
Grown.grows = ("values",)


class Good(Policy):
    """Each broken policy below changes one thing of it."""

    def init(self, norms):
        return Seen(torch.zeros_like(norms))

    def __call__(self, observation, state):
        return torch.full_like(observation.norms, 0.5), Seen(torch.lerp(state.mean, observation.norms, 0.1))


def starts(make):
    return type("Mine", (Good,), {"init": lambda self, norms: make(norms)})


def returns(make):
    return type("Mine", (Good,), {"__call__": lambda self, seen, state: make(seen, state)})


def keeps(seen, state, self=None):
    return torch.full_like(seen.norms, 0.5), state


def writes_norms(seen, state):
    return seen.norms.mul_(0.5), state


def writes_state(seen, state):
    state.mean.add_(seen.norms)
    return seen.norms, state


def writes_mask(seen, state):
    seen.observed[0] = False
    return seen.norms, state


class Remembers(Good):
    def __init__(self):
        self.history, self.mean = [], None


class Appends(Remembers):
    def __call__(self, observation, state):
        self.history.append(observation.norms)
        return super().__call__(observation, state)


class Assigns(Remembers):
    def __call__(self, observation, state):
        self.mean = observation.norms
        return super().__call__(observation, state)


class Adds(Good):
    def __call__(self, observation, state):
        self.last = observation.norms
        return super().__call__(observation, state)


class ReadsWeights(Good):
    def __call__(self, observation, state):
        return observation.weight_norms.clamp(min=1e-3), state


class AsksInWords(Good):
    needs_weights = "yes"


V, T = ValueError, TypeError
BROKEN = {
    "a dict as state": (starts(lambda n: {"mean": n}), T, "`Mine.init(norms)` must be a NamedTuple of tensors"),
    "a tensor as state": (starts(torch.zeros_like), T, "`Mine.init(norms)` must be a NamedTuple of tensors"),
    "a bare tuple": (starts(lambda n: (torch.zeros_like(n),)), T, "`Mine.init(norms)` must be a NamedTuple"),
    "None": (starts(lambda n: None), T, "got None. Write `class Seen(NamedTuple)"),
    "a number in the state": (starts(lambda n: Seen(0.0)), T, "`Mine.init(norms).mean` must be a tensor, got 0.0"),
    "another device": (starts(lambda n: Seen(torch.zeros(len(n)))), V, "on the device of `norms`, meta, got a float32"),
    "a sparse state": (
        starts(lambda n: Seen(torch.zeros(2, device=n.device, layout=torch.sparse_coo))),
        V,
        "must be a dense tensor",
    ),
    "a state with a graph": (starts(lambda n: Seen(nn.Parameter(n))), V, "must be a tensor that requires no gradient"),
    "a state from numbers": (
        starts(lambda n: Seen(n.new_full((), n.sum().item()))),
        V,
        "its numbers are not there yet",
    ),
    "no pair": (returns(lambda o, s: o.norms), T, "`Mine(...)` must be a pair, the targets and the next state"),
    "the state alone": (returns(lambda o, s: s), T, "`Mine(...)` must be a pair"),
    "a number as targets": (
        returns(lambda o, s: (1.0, s)),
        T,
        "the targets of Mine(...)` must be a tensor of shape (2,)",
    ),
    "one target": (returns(lambda o, s: (o.norms.sum(), s)), V, "got a float32 tensor of shape () on cpu"),
    "wide targets": (returns(lambda o, s: (o.norms.double(), s)), V, "got a float64 tensor of shape (2,) on cpu"),
    "targets below 0": (returns(lambda o, s: (-o.norms, s)), V, "must be norms >= 0, and inf for no opinion, got -1.0"),
    "targets that are nan": (returns(lambda o, s: (o.norms * torch.nan, s)), V, "got nan for norms of 1"),
    "another state": (returns(lambda o, s: (o.norms, Grown(s.mean))), T, "must be a Seen, as `init` returned"),
    "no state": (returns(lambda o, s: (o.norms, None)), T, "must be a Seen, as `init` returned, got None"),
    "a state of numbers": (
        returns(lambda o, s: (o.norms, Seen(1.0))),
        T,
        "the next state's mean of Mine(...)` must be",
    ),
    "another shape": (
        returns(lambda o, s: (o.norms, Seen(s.mean.sum()))),
        V,
        "a float32 tensor of shape (2,) on cpu, as",
    ),
    "another dtype": (returns(lambda o, s: (o.norms, Seen(s.mean.double()))), V, "got a float64 tensor of shape (2,)"),
    "writes norms": (returns(writes_norms), V, "one that writes into `observation.norms`"),
    "writes the mask": (returns(writes_mask), V, "one that writes into `observation.observed`"),
    "writes the state": (returns(writes_state), V, "one that writes into `state.mean`"),
    "appends": (Appends, V, "changes its attribute `history`: that would be in no checkpoint"),
    "assigns": (Assigns, V, "changes its attribute `mean`"),
    "adds an attribute": (Adds, V, "changes its attribute `last`"),
    "undeclared weights": (
        ReadsWeights,
        V,
        "`ReadsWeights.needs_weights` must be True for a class that reads `weight_norms`",
    ),
    "a text for True": (AsksInWords, T, "`AsksInWords.needs_weights` must be True or False, got 'yes'"),
}


def tensors() -> list[nn.Parameter]:
    found = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    for one in found:
        one.grad = torch.ones_like(one)
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_policy_is_refused_in_words(name):
    make, kind, part = BROKEN[name]
    given = tensors()
    with pytest.raises(kind) as refusal:
        clip_grad_(given, make(), scope="parameter")
    assert part in str(refusal.value)
    assert FORM.match(str(refusal.value)), str(refusal.value)
    assert all(bool((one.grad == 1).all()) for one in given)


@pytest.mark.parametrize("name", BROKEN)
def test_it_is_refused_again_and_with_a_saved_state_too(name):
    make, kind, _ = BROKEN[name]
    for state in (None, {"mean": torch.zeros(2)}):
        with pytest.raises(kind):
            clip_grad_(tensors(), make(), state, scope="parameter")


class Keeps(Good):
    """Computes a constant once: that is no memory."""

    needs_weights: ClassVar[bool] = True

    @cached_property
    def share(self):
        return 0.5

    def __call__(self, observation, state):
        return self.share * observation.weight_norms, state


class Grows(Good):
    def init(self, norms):
        return Grown(norms.new_zeros(len(norms), 1))

    def __call__(self, observation, state):
        return observation.norms, Grown(torch.cat([state.values, observation.norms.unsqueeze(1)], 1))


class Undecided(Good):
    def __call__(self, observation, state):
        return torch.full_like(observation.norms, torch.inf), state


class Draws(Good):
    def __call__(self, observation, state):
        return torch.rand_like(observation.norms), state


@pytest.mark.parametrize("make", [Good, Keeps, Grows, Undecided, Draws])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_good_policy_passes(make, dtype, mode):
    segments = Segments.of(Plan.of([torch.ones(2, dtype=dtype), torch.ones(3, dtype=dtype)]), "parameter")
    random = torch.get_rng_state()
    with mode():
        check_policy(make(), segments)
    assert torch.equal(torch.get_rng_state(), random)


def test_what_grows_may_not_change_in_another_dimension():
    class Wider(Grows):
        def __call__(self, observation, state):
            return observation.norms, Grown(state.values.repeat(2, 1))

    with pytest.raises(ValueError, match=r"the next state's values of Wider"):
        clip_grad_(tensors(), Wider(), scope="parameter")


def test_an_error_of_its_own_comes_through():
    class Mine(Good):
        def __call__(self, observation, state):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        clip_grad_(tensors(), Mine())


def test_a_policy_without_segments_is_not_asked():
    class Mine(Good):
        def __call__(self, observation, state):
            return observation.norms.max() * torch.ones_like(observation.norms), state

    check_policy(Mine(), Segments.of(Plan.of(tensors()), "parameter", []))


def test_two_forms_of_one_class_are_tried_each():
    """A kind of its own tells them apart."""

    class Mine(Good):
        def __init__(self, width):
            self.width = width

        @property
        def kind(self):
            return f"Mine({self.width})"

        def __call__(self, observation, state):
            return observation.norms.expand(self.width, -1).squeeze(0), state

    clip_grad_(tensors(), Mine(1), scope="parameter")
    with pytest.raises(ValueError, match=r"the targets of Mine"):
        clip_grad_(tensors(), Mine(2), scope="parameter")
