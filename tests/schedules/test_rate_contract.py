"""What every learning-rate rule promises: purity, the mask, a state that a checkpoint can hold, and its range."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable

import pytest
import torch
from helpers import gradient_families

from lightning_calib import EMARelative, MaxNorm, Percentile, ZScore
from lightning_calib.schedules import DistanceOverGradients, InverseNorm, Polyak, SpikeBackoff
from lightning_calib.schedules.rule import LearningRateRule, Measurement

RULES: dict[str, tuple[Callable[[], LearningRateRule], list[str]]] = {
    "spike_backoff": (
        lambda: SpikeBackoff(ZScore(warmup_steps=5)),
        ["factors", "policy_seen", "policy_mean", "policy_var"],
    ),
    "spike_of_max_norm": (lambda: SpikeBackoff(MaxNorm(2.0)), ["factors"]),
    "spike_of_percentile": (
        lambda: SpikeBackoff(Percentile(80, window=7, warmup_steps=2)),
        ["factors", "policy_seen", "policy_values"],
    ),
    "spike_of_average": (lambda: SpikeBackoff(EMARelative(1.5, 0.9, 5)), ["factors", "policy_seen", "policy_mean"]),
    "polyak": (lambda: Polyak(growth_steps=3), ["rate"]),
    "polyak_free": (lambda: Polyak(growth=math.inf), ["rate"]),
    "dog": (lambda: DistanceOverGradients(1e-3), ["farthest", "root_squares"]),
    "inverse_norm": (lambda: InverseNorm(0.7), []),
}
EVERY = pytest.mark.parametrize("name", RULES)
STATEFUL = pytest.mark.parametrize("name", [name for name, (_, fields) in RULES.items() if fields])
GROUPS = 3
JUNK = {"zero": 0.0, "nan": math.nan, "inf": math.inf, "minus inf": -math.inf}


def measurements(rule: LearningRateRule, steps: int = 40, dtype: torch.dtype = torch.float64) -> list[Measurement]:
    """Norms with spikes, losses that reach below zero, distances that come and go; only what the rule asks for."""
    generator = torch.Generator().manual_seed(0)
    norms = torch.randn(steps, GROUPS, generator=generator).exp().to(dtype)
    losses = (torch.randn(steps, generator=generator) + 1).to(dtype)
    distances = torch.rand(steps, GROUPS, generator=generator).to(dtype)
    return [
        Measurement(
            norms[i],
            norms[i] > 0,
            losses[i] if rule.needs_loss else None,
            distances[i] if rule.needs_distance else None,
            torch.ones(GROUPS, dtype=dtype) if rule.needs_distance else None,
        )
        for i in range(steps)
    ]


def play(rule: LearningRateRule, rows: list[Measurement]) -> tuple[torch.Tensor, tuple]:
    state, told = rule.init(rows[0].norms), []
    for row in rows:
        factors, state = rule(row, state)
        told.append(factors)
    return torch.stack(told), state


def with_norms(row: Measurement, where: torch.Tensor, value: float) -> Measurement:
    norms = torch.where(where, value, row.norms)
    return row._replace(norms=norms, observed=norms.isfinite() & (norms > 0))


def same_state(actual: tuple, expected: tuple) -> None:
    for a, b in zip(actual, expected, strict=True):
        gradient_families.same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY
def test_shapes_dtypes_and_range(name: str, dtype: torch.dtype) -> None:
    make, fields = RULES[name]
    rule = make()
    rows = measurements(rule, dtype=dtype)
    factors, state = play(rule, rows)
    assert list(state._asdict()) == fields
    assert factors.dtype == dtype
    assert factors.shape == (40, GROUPS)
    assert factors.isfinite().all()
    assert (factors >= 0).all()
    assert name.startswith(("polyak", "dog")) or (factors > 0).all()
    if name.startswith("spike"):
        assert (factors <= 1).all()
        assert (factors == 1).any()
        assert (factors < 1).any()
    assert len(factors.unique()) > 3
    for first, last in zip(rule.init(rows[0].norms), state, strict=True):
        assert (first.shape, first.dtype, last.requires_grad) == (last.shape, last.dtype, False)


@EVERY
def test_measurement_and_state_are_not_modified_and_nothing_is_shared(name: str) -> None:
    rule = RULES[name][0]()
    rows = measurements(rule, 12)
    state = rule.init(rows[0].norms)
    for i, row in enumerate(rows):
        if i % 3 == 1:
            row = with_norms(row, torch.tensor([True, False, False]), math.nan)
        given = [t for t in (*row, *state) if t is not None]
        held, versions = [t.clone() for t in given], [t._version for t in given]
        factors, new = rule(row, state)
        assert versions == [t._version for t in given]
        for actual, wanted in zip(given, held, strict=True):
            gradient_families.same_bits(actual, wanted)
        assert not any(factors.data_ptr() == t.data_ptr() for t in (*given, *new))
        again, twin = rule(row, state)
        gradient_families.same_bits(again, factors)
        same_state(twin, new)
        state = new


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
@EVERY
def test_a_step_without_a_usable_norm_has_factor_1_and_leaves_no_trace(name: str, junk: float) -> None:
    rule = RULES[name][0]()
    rows = measurements(rule)
    _, state = play(rule, rows[:20])
    factors, after = rule(with_norms(rows[20], torch.ones(GROUPS, dtype=torch.bool), junk), state)
    gradient_families.same_bits(factors, torch.ones(GROUPS, dtype=torch.float64))
    same_state(after, state)


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
@EVERY
def test_one_group_without_a_usable_norm_has_factor_1_and_keeps_its_state(name: str, junk: float) -> None:
    rule = RULES[name][0]()
    rows = measurements(rule)
    _, state = play(rule, rows[:20])
    factors, after = rule(with_norms(rows[20], torch.tensor([False, True, False]), junk), state)
    assert factors[1] == 1
    usual, usually = rule(rows[20], state)
    if name.startswith("polyak"):  # one step for all groups: no length without the whole gradient
        if junk != 0:
            gradient_families.same_bits(factors, torch.ones(GROUPS, dtype=torch.float64))
            same_state(after, state)
        else:
            gradient_families.same_bits(factors[0], factors[2])
        return
    gradient_families.same_bits(factors[[0, 2]], usual[[0, 2]])
    for old, now, wanted in zip(state, after, usually, strict=True):
        gradient_families.same_bits(now[1], old[1])
        gradient_families.same_bits(now[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["loss", "distances", "start_norms"])
@EVERY
def test_whatever_else_is_not_finite_leaves_no_trace(name: str, part: str, junk: float) -> None:
    rule = RULES[name][0]()
    rows = measurements(rule)
    _, state = play(rule, rows[:20])
    value = getattr(rows[20], part)
    if value is None:
        return
    factors, after = rule(rows[20]._replace(**{part: torch.full_like(value, junk)}), state)
    gradient_families.same_bits(factors, torch.ones(GROUPS, dtype=torch.float64))
    same_state(after, state)


@EVERY
def test_skipped_steps_do_not_change_what_follows(name: str) -> None:
    rule = RULES[name][0]()
    rows = measurements(rule)
    factors, state = play(rule, rows)
    nothing = torch.ones(GROUPS, dtype=torch.bool)
    mixed = [x for row in rows for x in (with_norms(row, nothing, math.nan), row, with_norms(row, nothing, 0.0))]
    skipping, last = play(rule, mixed)
    gradient_families.same_bits(skipping[1::3], factors)
    same_state(last, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY
def test_a_saved_state_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    rule = RULES[name][0]()
    rows = measurements(rule, dtype=dtype)
    factors, state = play(rule, rows)
    _, middle = play(rule, rows[:20])
    file = io.BytesIO()
    torch.save(middle._asdict(), file)
    file.seek(0)
    other = type(middle)(**torch.load(file, weights_only=True))
    for row, wanted in zip(rows[20:], factors[20:], strict=True):
        again, other = rule(row, other)
        gradient_families.same_bits(again, wanted)
    same_state(other, state)


@STATEFUL
def test_forgetting_shows(name: str) -> None:
    """A fresh state in the middle gives another answer: otherwise the test above could not fail."""
    if name == "polyak_free":
        return  # without smoothing the last step does not matter
    rule = RULES[name][0]()
    rows = measurements(rule)
    factors, _ = play(rule, rows)
    forgotten, _ = play(rule, rows[20:])
    assert not torch.equal(forgotten, factors[20:])


@EVERY
def test_state_can_be_sized_without_memory(name: str) -> None:
    rule = RULES[name][0]()
    norms = torch.zeros(GROUPS)
    real, planned = rule.init(norms), rule.init(norms.to("meta"))
    assert type(real) is type(planned)
    assert [t.device.type for t in planned] == ["meta"] * len(planned)
    assert [(t.shape, t.dtype) for t in planned] == [(t.shape, t.dtype) for t in real]


@EVERY
def test_a_step_brings_nothing_to_the_host(name: str) -> None:
    """A tensor without memory has no value to look at: a branch on one, or `.item()`, would raise."""
    rule = RULES[name][0]()
    row = Measurement(*(None if t is None else t.to("meta") for t in measurements(rule, 1)[0]))
    factors, state = rule(row, rule.init(row.norms))
    assert [t.device.type for t in (factors, *state)] == ["meta"] * (1 + len(state))


@EVERY
def test_groups_are_judged_alone_but_by_polyak(name: str) -> None:
    rule = RULES[name][0]()
    rows = measurements(rule)
    factors, _ = play(rule, rows)
    alone, _ = play(rule, [Measurement(*(t[[1]] if t is not None and t.ndim else t for t in row)) for row in rows])
    if name.startswith("polyak"):
        gradient_families.same_bits(factors[:, 0], factors[:, 1])
        assert not torch.equal(alone[:, 0], factors[:, 1])
    else:
        gradient_families.same_bits(alone[:, 0], factors[:, 1])


@EVERY
def test_norms_over_fifty_decades_give_finite_factors(name: str) -> None:
    rule = RULES[name][0]()
    norms = torch.tensor([1e-45, 1e-25, 1e-5, 1.0, 1e19, 1e38])  # float32, from its least to nearly its greatest
    row = Measurement(norms, norms > 0, torch.tensor(1.0), torch.ones(6), torch.ones(6))
    state = rule.init(norms)
    for _ in range(5):
        factors, state = rule(row, state)
        assert factors.isfinite().all()
        assert (factors >= 0).all()
        assert all(t.isfinite().all() or name == "spike_of_percentile" for t in state)


@EVERY
def test_rules_are_frozen_values(name: str) -> None:
    rule, twin = RULES[name][0](), RULES[name][0]()
    assert rule == twin
    assert hash(rule) == hash(twin)
    assert type(rule).__name__ in repr(rule)
    assert rule.kind == twin.kind
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(rule, dataclasses.fields(rule)[0].name, 3.0)


def test_kinds_tell_states_apart() -> None:
    kinds = [make().kind for make, _ in RULES.values()]
    assert len(set(kinds)) == len(kinds) - 1  # the two of Polyak remember the same
    assert SpikeBackoff(ZScore(robust=True)).kind != SpikeBackoff(ZScore(robust=False)).kind


def test_what_a_rule_asks_for() -> None:
    asked = {name: (make().needs_loss, make().needs_distance) for name, (make, _) in RULES.items()}
    assert {name for name, (loss, _) in asked.items() if loss} == {"polyak", "polyak_free"}
    assert {name for name, (_, distance) in asked.items() if distance} == {"dog"}
