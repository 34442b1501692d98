"""Saved values against fresh ones: what fits is taken up as it is, what does not is refused with its key."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import pytest
import torch
from helpers import gradient_families
from torch import Tensor, nn

from lightning_calib import EMARelative, MaxNorm, Percentile, SpikeBackoff, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.estimators import empty_history, empty_ring, push_history
from lightning_calib.functional.saved_state import DamagedStateError, ListOf, OrNone, check_saved, restored

NAN, INF = math.nan, math.inf
NUMBERS, COUNTS, FLAGS = torch.zeros(2), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)

# a fresh value, values that fit, values that do not
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    (0, [0, 7], [-1, True, 1.0, None, "1", 2**63, torch.tensor(1)]),
    (-1, [-1, 0, 5], [-2]),
    (0.0, [0.0, -1.5], [1, True, NAN, INF, None, "1"]),
    (NAN, [0.0, NAN, INF], [1, None]),
    (False, [True, False], [0, 1, None, "no"]),
    ("", ["", "text"], [None, b"text", 3]),
    (OrNone(0), [None, 3], [-1, 0.5]),
    ([0, ""], [[1, "a"]], [[1], [1, "a", 2], ["a", 1], None, {}, "1a"]),
    (ListOf(0, 2), [[], [1, 2]], [[1, 2, 3], [-1], [None], None, (1, 2)]),
    ({"a": 0}, [{"a": 1}], [{}, {"a": 1, "b": 2}, {"a": -1}, {"b": 1}, None, [], {0: 1}]),
    (NUMBERS, [torch.ones(2), -torch.ones(2).double(), torch.ones(2).half()], [
        torch.ones(1), torch.ones(2, 1), torch.ones(()), torch.tensor([0.0, NAN]), torch.tensor([INF, 0.0]), [0.0, 0.0],
        COUNTS, FLAGS, torch.ones(2).to(torch.complex64), torch.ones(2, device="meta"), torch.ones(2).to_sparse(), None,
        torch.tensor([1e300, 0.0], dtype=torch.float64),
    ]),
    (torch.tensor([INF, 0.0]), [torch.tensor([0.0, INF])], [torch.tensor([NAN, 0.0]), torch.tensor([-INF, 0.0])]),
    (torch.tensor([NAN, 0.0]), [torch.tensor([INF, -INF])], [torch.ones(3)]),
    (COUNTS, [COUNTS + 3, COUNTS.int()], [COUNTS - 1, NUMBERS, FLAGS]),
    (COUNTS - 1, [COUNTS - 5], [NUMBERS]),
    (FLAGS, [~FLAGS], [COUNTS, NUMBERS]),
    (torch.zeros(0), [torch.zeros(0)], [torch.zeros(1)]),
]  # fmt: skip


@pytest.mark.parametrize(("like", "good", "bad"), CASES, ids=[str(case[0])[:40] for case in CASES])
def test_what_fits_and_what_does_not(like: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check_saved(value, like, "here")
    for value in bad:
        with pytest.raises(DamagedStateError, match="`here"):
            check_saved(value, like, "here")


def test_the_key_is_that_of_the_first_value_that_does_not_fit() -> None:
    like = {"rows": [{"count": 0}, {"count": 0}]}
    with pytest.raises(DamagedStateError, match=r"^`here.rows.1.count` must be a whole number >= 0, got 'x'$"):
        check_saved({"rows": [{"count": 1}, {"count": "x"}]}, like, "here")
    with pytest.raises(DamagedStateError, match=r"^`here.rows.1.count` is missing$"):
        check_saved({"rows": [{"count": 1}, {}]}, like, "here")
    with pytest.raises(DamagedStateError, match=r"^`here.rows.0` has the unknown key 'more'$"):
        check_saved({"rows": [{"count": 1, "more": 1}, {}]}, like, "here")


class Both(NamedTuple):
    steps: int
    mean: Tensor


def test_a_restored_value_is_a_copy_of_the_type_of_the_fresh_one() -> None:
    saved = {"steps": 3, "mean": torch.ones(2, dtype=torch.float64, requires_grad=True)}
    found = restored(saved, Both(0, torch.zeros(2)), "here")
    assert (found.steps, found.mean.dtype, found.mean.requires_grad) == (3, torch.float32, False)
    assert found.mean.tolist() == [1.0, 1.0]
    assert found.mean.data_ptr() != saved["mean"].data_ptr()


def history(steps: int) -> Any:
    found = empty_history(torch.zeros(1))
    for step in range(steps):
        value = torch.tensor([float((7 * step) % 13 + 1)])
        found = push_history(found, value, torch.tensor([step % 5 != 0]))
    return found


@pytest.mark.parametrize("steps", [0, 3, 1024, 1025, 1280])
def test_a_history_that_has_grown_is_taken_up(steps: int) -> None:
    saved = history(steps)
    found = restored(saved._asdict(), history(0), "here")
    assert found.values.shape == (1, 1024 if steps < 1280 else 2048)
    for a, b in zip(found, saved, strict=True):
        gradient_families.same_bits(a, b)


def older(steps: int) -> dict[str, Any]:
    """The same history as it was saved when there was one part."""
    found = history(steps)
    both = torch.cat([found.values, found.tail], dim=1).sort().values
    capacity = 1024 if steps <= 1024 else 2048
    values = torch.full((1, capacity), INF)
    values[0, : int(found.seen)] = both[0, : int(found.seen)]
    return {"seen": found.seen, "values": values, "steps": found.steps}


@pytest.mark.parametrize("steps", [0, 3, 300, 1024, 1025])
def test_a_history_that_was_saved_without_its_tail_is_taken_up(steps: int) -> None:
    found = restored(older(steps), history(0), "here")
    assert found.tail.isinf().all()
    gradient_families.same_bits(found.values, older(steps)["values"])
    with pytest.raises(DamagedStateError, match="`here"):
        restored({**older(steps), "seen": torch.tensor([steps + 1])}, history(0), "here")
    later = history(1030)._asdict()
    del later["tail"]  # and six values with it
    with pytest.raises(DamagedStateError, match="`here` contradicts itself"):
        restored(later, history(0), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": torch.tensor(2**40)},  # the next pushes would double the capacity each time
        {"seen": torch.tensor([4])},
        {"seen": torch.tensor([1])},
        {"values": history(3).values.flip(1)},
        {"values": torch.ones(1, 1000)},
        {"values": torch.ones(2, 1024)},
        {"values": torch.full((1, 2048), NAN)},
        {"tail": history(1030).tail},  # which is empty in the first 1,024 steps
        {"tail": torch.ones(1, 255)},
    ],
)
def test_a_history_that_contradicts_itself_is_not(change: dict[str, Tensor]) -> None:
    with pytest.raises(DamagedStateError, match="`here"):
        restored({**history(3)._asdict(), **change}, history(0), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"tail": history(1030).tail.flip(1)},
        {"tail": history(1040).tail},  # more than the steps since it was empty
        {"steps": torch.tensor(1030 + 256)},  # it would have been emptied into more places than there are
        {"seen": torch.tensor([1000])},
    ],
)
def test_a_long_history_that_contradicts_itself_is_not(change: dict[str, Tensor]) -> None:
    with pytest.raises(DamagedStateError, match="`here"):
        restored({**history(1030)._asdict(), **change}, history(0), "here")


def test_a_ring_keeps_its_length() -> None:
    fresh = empty_ring(torch.zeros(2), 4)
    restored(fresh._asdict(), fresh, "here")
    with pytest.raises(DamagedStateError, match=r"`here.values` must be a tensor of numbers, shape \(2, 4\)"):
        restored({**fresh._asdict(), "values": torch.full((2, 5), INF)}, fresh, "here")


def test_a_spike_backoff_over_a_grown_history_is_taken_up() -> None:
    rule = SpikeBackoff(Percentile(50, window=None, warmup_steps=2))
    fresh = rule.init(torch.zeros(1))
    state = history(1030)
    saved = {"factors": torch.ones(1), **{f"policy_{name}": value for name, value in state._asdict().items()}}
    gradient_families.same_bits(restored(saved, fresh, "here").policy_values, state.values)
    old = {"factors": torch.ones(1), **{f"policy_{name}": value for name, value in older(1030).items()}}
    gradient_families.same_bits(restored(old, fresh, "here").policy_values, older(1030)["values"])
    with pytest.raises(DamagedStateError, match="contradicts itself"):
        restored({**saved, "policy_steps": torch.tensor(2**40)}, fresh, "here")


# The door for loops without Lightning


def weight() -> nn.Parameter:
    found = nn.Parameter(torch.ones(2))
    found.grad = torch.ones(2)
    return found


DAMAGED: list[tuple[Any, dict[str, Any], str]] = [
    (ZScore(warmup_steps=2), {"mean": torch.tensor([NAN])}, "`state.mean` must hold finite numbers"),
    (ZScore(warmup_steps=2), {"mean": "x"}, "`state.mean` must be a tensor of numbers, shape (1,), got 'x'"),
    (ZScore(warmup_steps=2), {"mean": None}, "`state.mean` must be a tensor"),
    (ZScore(warmup_steps=2), {"seen": torch.tensor([1.0])}, "`state.seen` must be a tensor of whole numbers"),
    (ZScore(warmup_steps=2), {"seen": torch.tensor([-1])}, "`state.seen` must hold whole numbers >= 0, got -1"),
    (EMARelative(warmup_steps=1), {"mean": torch.zeros(3)}, "`state.mean` must be a tensor of numbers, shape (1,)"),
    (Percentile(window=None), {"steps": torch.tensor(2**40)}, "`state` contradicts itself"),
    (Percentile(window=4), {"values": torch.full((1, 4), NAN)}, "`state.values` must hold finite numbers"),
]


@pytest.mark.parametrize(("policy", "change", "reason"), DAMAGED, ids=[f"{case[0]} {case[1]}" for case in DAMAGED])
def test_clip_grad_refuses_a_damaged_mapping(policy: Any, change: dict[str, Any], reason: str) -> None:
    _, state = clip_grad_([weight()], policy)
    target = weight()
    with pytest.raises(ValueError, match=rf"^{re.escape(reason)}.*\. Pass None to start afresh\.$"):
        clip_grad_([target], policy, {**state._asdict(), **change})
    gradient_families.same_bits(target.grad, torch.ones(2))
    clip_grad_([target], policy, state._asdict())


@pytest.mark.parametrize("junk", [3, "state", [1], {"a": 1}, (), Both(0, torch.zeros(1)), torch.zeros(1)])
def test_clip_grad_refuses_what_is_no_state(junk: Any) -> None:
    for policy in (ZScore(), MaxNorm(1.0)):
        with pytest.raises(ValueError, match=r"^`state` must be what `.*` returned for 1 segments"):
            clip_grad_([weight()], policy, junk)


@pytest.mark.parametrize("field", ["seen", "mean", "var"])
@pytest.mark.parametrize("value", [None, "x", 1.0, torch.ones(3), torch.ones(1, dtype=torch.bool)])
def test_clip_grad_refuses_a_state_whose_fields_are_no_such_tensors(field: str, value: Any) -> None:
    """Its numbers are not looked at: it is what the call before has returned, and a look would wait for the device."""
    _, state = clip_grad_([weight()], ZScore())
    with pytest.raises(ValueError, match=r"^`state` must be "):
        clip_grad_([weight()], ZScore(), state._replace(**{field: value}))
