"""Between live state and a checkpoint: what fits comes back to the bit, and damage is told with its key."""

from __future__ import annotations

import pytest
import torch
from helpers.bare_runs import bare_run
from helpers.tiny_modules import same_bits

from lightning_calib import EMARelative, Percentile
from lightning_calib.functional.judge import fresh_state
from lightning_calib.functional.saved_state import DamagedStateError
from lightning_calib.functional.segments import Segments
from lightning_calib.steps.policy_parts import Part, PartsMemory
from lightning_calib.steps.saved_state import Losses, of_optimizer, pack, to_host, unpack

POLICY = Percentile(60, window=4, warmup_steps=1)


@pytest.fixture
def view():
    return bare_run().view


def learnt(view, scope="layer", policy=POLICY):
    part = Part(policy, Segments.of(view.plan, scope))
    for _ in range(3):
        part.judge(part.observe(view.reading()), clip=True)
    return part


def test_what_was_packed_comes_back_to_the_bit(view):
    part = learnt(view)
    packed = pack(POLICY.kind, part.segments, part.state)
    fresh = fresh_state(POLICY, part.segments)
    same_bits(unpack(packed, POLICY.kind, part.segments, fresh, "key"), part.state)
    torch.save(packed, "packed.pt")
    same_bits(torch.load("packed.pt", weights_only=True), packed)


def test_what_was_packed_and_unpacked_has_memory_of_its_own(view):
    part = learnt(view)
    packed = pack(POLICY.kind, part.segments, part.state)
    first = next(value for value in part.state if isinstance(value, torch.Tensor))
    found = unpack(packed, POLICY.kind, part.segments, part.state, "key")
    before = to_host(packed["state"])
    first.fill_(7)
    same_bits(packed["state"], before)
    same_bits(found._asdict(), before)


@pytest.mark.parametrize("of", ["another kind", "other segments", "another version"])
def test_what_is_of_something_else_is_not_taken_up(view, of):
    part = learnt(view)
    packed = pack(POLICY.kind, part.segments, part.state)
    segments = Segments.of(view.plan, "parameter") if of == "other segments" else part.segments
    kind = "EMARelative" if of == "another kind" else POLICY.kind
    packed["version"] = 2 if of == "another version" else 1
    assert unpack(packed, kind, segments, part.state, "key") is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda packed: packed.pop("kind"), "`key.kind` is missing"),
        (lambda packed: packed.update(version="1"), "`key.version` must be a whole number"),
        (lambda packed: packed.update(surplus=1), "`key` has the unknown key 'surplus'"),
        (lambda packed: packed.pop("state"), "`key.state` is missing"),
        (lambda packed: packed["state"].popitem(), "is missing"),
    ],
)
def test_damage_is_told_with_its_key(view, change, text):
    part = learnt(view)
    packed = pack(POLICY.kind, part.segments, part.state)
    change(packed)
    with pytest.raises(DamagedStateError, match=text):
        unpack(packed, POLICY.kind, part.segments, part.state, "key")


def test_what_else_was_packed_must_be_named(view):
    part = learnt(view)
    packed = {**pack(POLICY.kind, part.segments, part.state), "start": []}
    same_bits(unpack(packed, POLICY.kind, part.segments, part.state, "key", "start"), part.state)


# Of one optimizer


@pytest.mark.parametrize(
    ("state", "section", "wanted"),
    [
        ({}, "optimizers", None),
        ({"optimizers": {}}, "optimizers", None),
        ({"optimizers": {"1": {}}}, "optimizers", None),
        ({"optimizers": {"0": {"a": 1}}}, "optimizers", {"a": 1}),
        ({"optimizers": {"0": {}}}, "dashboard", None),
        ({"optimizers": {"0": {}}, "dashboard": None}, "dashboard", None),
        ({"dashboard": {"0": {"b": 2}}}, "dashboard", {"b": 2}),
    ],
)
def test_what_a_section_has_of_an_optimizer(state, section, wanted):
    assert of_optimizer(state, section, 0) == wanted


@pytest.mark.parametrize(
    ("state", "section", "text"),
    [
        ({"optimizers": {"0": {}}}, "tally", "`state.tally` is missing"),
        ({"tally": {"0": {}}, "optimizers": {}}, "optimizers", "`optimizers.0` is missing"),
        ({"optimizers": 3}, "optimizers", "`optimizers` must be a dictionary, got 3"),
        ({"optimizers": {"0": [1]}}, "optimizers", "`optimizers.0` must be a dictionary"),
    ],
)
def test_a_section_that_must_be_there_and_is_not_is_damage(state, section, text):
    with pytest.raises(DamagedStateError, match=text):
        of_optimizer(state, section, 0)


def test_losses_are_told_once_each_and_then_forgotten():
    losses = Losses()
    for _ in range(2):
        with losses.of("the norms"):
            raise DamagedStateError("`a` is missing")
    with losses.of("nothing"):
        pass
    assert losses.sentence("ZClip") == (
        "ZClip: its saved state is damaged: `a` is missing (lost: the norms). "
        "What is lost starts afresh, the rest is kept."
    )
    assert losses.sentence("ZClip") == ""
    with pytest.raises(ZeroDivisionError), losses.of("a defect of ours is no damage"):
        _ = 1 / 0


# The parts of a rescaling callback


def test_parts_go_on_where_they_were(view):
    memory, losses = PartsMemory([learnt(view), learnt(view, "global", EMARelative(warmup_steps=1))]), Losses()
    fresh = PartsMemory([Part(part.policy, part.segments) for part in memory.parts])
    assert fresh.restore(memory.saved(), "parts", losses)
    for one, other in zip(fresh.parts, memory.parts, strict=True):
        same_bits(one.state, other.state)
        seen = one.observe(view.reading())
        same_bits(one.judge(seen, clip=True).targets, other.judge(seen, clip=True).targets)


def test_parts_of_other_parameters_do_not_fit_and_damaged_ones_are_told(view):
    memory, losses = PartsMemory([learnt(view)]), Losses()
    other = PartsMemory([Part(POLICY, Segments.of(view.plan, "global"))])
    assert not other.restore(memory.saved(), "parts", losses)
    assert not PartsMemory([]).restore(memory.saved(), "parts", losses)
    assert losses.sentence("x") == ""
    before, saved = memory.parts[0].state, memory.saved()
    saved["parts"][0].pop("state")
    assert memory.restore(saved, "optimizers.0", losses)
    assert memory.parts[0].state is before
    assert "`optimizers.0.parts.0.state` is missing (lost: what Percentile(window=4) has learnt)" in losses.sentence(
        "x"
    )
    assert memory.restore({"parts": 1}, "optimizers.0", losses)
    assert "`optimizers.0.parts` must be a list" in losses.sentence("x")


def test_the_threshold_is_the_median_of_the_targets_that_are_one(view):
    assert PartsMemory([]).threshold() is None
    fresh = PartsMemory([Part(POLICY, Segments.of(view.plan, "layer"))])
    assert fresh.threshold() is None
    fresh.parts[0].judge(fresh.parts[0].observe(view.reading()), clip=True)
    assert fresh.threshold() is None  # in the warm-up nothing is bounded
    part = learnt(view)
    targets = part.last[1]
    torch.testing.assert_close(PartsMemory([part]).threshold(), targets.mean())  # of two, the middle
