"""Any value for any argument: it works, or it is refused in words that name the argument."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_modules import Tiny, fit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import nn

import lightning_calib
from lightning_calib import (
    AGC,
    EMARelative,
    GradientClip,
    InverseNorm,
    MaxNorm,
    Percentile,
    WeightRelative,
    ZScore,
    refine_schedule,
)
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Policy
from lightning_calib.schedules.rule import LearningRateRule, Measurement

BASE: dict[str, dict[str, Any]] = {
    "GradientValueClip": {"max_value": 1.0},
    "LearningRateControl": {"rule": InverseNorm()},
    "MaxNorm": {"max_norm": 1.0},
    "Report": {"runs": []},
    "refine_schedule": {"norms": [1.0, 2.0, 3.0]},
}
# What this package hands out; it takes none of them.
RECORDS = ["ClipSuggestion", "Finding", "Measurement", "Observation", "SegmentReport", "ShadowResult"]
# `clip_find` takes a Trainer and a model, and trains: see test_clip_find.py.
OTHERS = ["functional", "clip_find", "NonFiniteGradientError", "SpikeError", *RECORDS]
NAMES = [name for name in lightning_calib.__all__ if name not in OTHERS]
FUZZ = settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


LONG = 10**400  # no float can hold it
WIDE = 1e39  # no float32 can
NUMBERS = [0, 1, -1, 2**33, LONG, -LONG, 2**63, WIDE, 1e308, 5e-324, math.nan, math.inf, -math.inf]
NUMBERS += [Fraction(1, 2), Decimal("0.5"), 1j, np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), True]
OBJECTS = [object(), int, len, MaxNorm, MaxNorm(1.0), WeightRelative(), InverseNorm(), Path("x"), range(3), nn.Linear]
ARRAYS = [np.zeros(2), np.zeros(()), np.array(["global"]), np.array(["auto", "x"]), torch.zeros(()), torch.ones(3)]
ARRAYS += [torch.ones(2, 2), torch.tensor([1 + 1j, 2.0]), torch.ones(3, device="meta"), torch.ones(3).to_sparse()]
ARRAYS += [torch.tensor([True, False]), nn.Parameter(torch.ones(2)), torch.zeros(0)]
TEXTS = ["global", "auto", "net.*", "skip", "sgd", "", "a/b", b"x"]
NESTED = [[], {}, (), set(), [LONG], {"net.*": 0}, {"net.*": LONG}, {"x": 1.0}, {3: 1.0}, ["net.*"], [[1.0]], [None]]
HARD: list[Any] = [None, *NUMBERS, *OBJECTS, *ARRAYS, *TEXTS, *NESTED]


def anything() -> st.SearchStrategy[Any]:
    plain = st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=3)
    keys = st.text(max_size=2) | st.integers() | st.just("net.*")
    return st.recursive(
        plain | st.sampled_from(HARD),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=2),
        max_leaves=4,
    )


def refusal(call: Callable[[], Any], argument: str) -> Any:
    """What the call gives; None where it is refused in words."""
    try:
        return call()
    except (TypeError, ValueError, FileNotFoundError, MisconfigurationException) as error:
        text = str(error)
    assert text.startswith(f"`{argument}"), text
    assert len(text.split(". ")) >= 2, f"a remedy: {text}"
    assert len(text) < 700, text
    return None


def use(thing: Any, argument: str) -> None:
    """What was accepted has to work, or to be refused when the model is known."""
    if isinstance(thing, Callback):
        refusal(lambda: fit(Tiny(), [thing], 2), argument)
    elif isinstance(thing, Policy):
        weight = nn.Parameter(torch.ones(2))
        weight.grad = torch.ones(2)
        _, state = clip_grad_([weight], thing)
        clip_grad_([weight], thing, state)
    elif isinstance(thing, LearningRateRule):
        norms = torch.ones(2)
        row = Measurement(norms, norms > 0, torch.tensor(1.0), norms, norms)
        state = thing.init(norms)
        for _ in range(2):
            _, state = thing(row, state)


def take(name: str, argument: str, value: Any) -> None:
    made = refusal(lambda: getattr(lightning_calib, name)(**{**BASE.get(name, {}), argument: value}), argument)
    if (name, argument) != ("PreciseBatchNorm", "forward"):  # whose own errors are the user's
        use(made, argument)


ARGUMENTS = {name: list(inspect.signature(getattr(lightning_calib, name)).parameters) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_takes_or_refuses_what_is_hard(name):
    for argument in ARGUMENTS[name]:
        for value in (*HARD, 10**5000):  # which Python refuses to print
            take(name, argument, value)


@pytest.mark.parametrize("name", [name for name in NAMES if ARGUMENTS[name]])
def test_a_public_name_takes_or_refuses_any_argument(name):
    @FUZZ
    @given(st.data())
    def check(data):
        take(name, data.draw(st.sampled_from(ARGUMENTS[name])), data.draw(anything()))

    check()


def parameter() -> nn.Parameter:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 3.0)
    return weight


@pytest.mark.parametrize("argument", ["parameters", "policy", "state", "scope", "norm_type"])
@pytest.mark.parametrize("policy", [MaxNorm(1.0), ZScore(), EMARelative(warmup_steps=1)])
def test_clip_grad_takes_or_refuses_any_argument(argument, policy):
    @FUZZ
    @given(anything())
    def check(value):
        given_ = {"parameters": [parameter()], "policy": policy, argument: value}
        refusal(lambda: clip_grad_(**given_), argument)

    check()
    for value in HARD:
        check.hypothesis.inner_test(value)


@pytest.mark.parametrize("field", ["seen", "mean", "var"])
def test_clip_grad_takes_or_refuses_any_value_in_a_state(field):
    _, state = clip_grad_([parameter()], ZScore())

    @FUZZ
    @given(anything())
    def check(value):
        refusal(lambda: clip_grad_([parameter()], ZScore(), {**state._asdict(), field: value}), "state")
        refusal(lambda: clip_grad_([parameter()], ZScore(), state._replace(**{field: value})), "state")

    check()


@FUZZ
@given(
    st.lists(st.floats(min_value=0, width=32) | st.integers(0, 10**9) | st.just(math.nan), max_size=6), st.floats(0, 1)
)
def test_a_schedule_from_any_norms(norms, smoothing):
    found = refusal(lambda: refine_schedule(norms, smoothing=smoothing), "norms")
    if found is not None:
        assert found.isfinite().all()
        assert float(found.max()) == 1.0


FOUND: list[tuple[Callable[[], Any], str]] = [
    (lambda: MaxNorm(LONG), "`max_norm` must be in (0, inf], and a float beyond 2**53, got 1000"),
    (lambda: MaxNorm(10**5000), "`max_norm` must be in (0, inf], and a float beyond 2**53, got a very long int"),
    (lambda: MaxNorm(WIDE), "`max_norm` must be in (0, inf], and at most 3.4e+38 where it is finite, got 1e+39"),
    (lambda: WeightRelative(min_weight_norm=WIDE), "`min_weight_norm` must be in (0, inf), and at most 3.4e+38"),
    (lambda: ZScore(warmup_steps=LONG), "`warmup_steps` must be a whole number >= 2 and <= 9007199254740992, got 1000"),
    (lambda: Percentile(window=2**24 + 1), "`window` must be a whole number >= 1 and <= 16777214, got 16777217"),
    (lambda: GradientClip(-1.0), "`policy` is taken for MaxNorm: `max_norm` must be in (0, inf], got -1.0"),
    (lambda: GradientClip(rules={"a": 0}), "`rules['a']` is taken for MaxNorm: `max_norm` must be in (0, inf], got 0"),
    (lambda: GradientClip(scope=np.array(["unit"])), "`scope` must be one of 'global'"),
    (lambda: AGC(exclude=np.array(["auto"])), '`exclude` must be "auto" or a sequence of globs'),
    (lambda: clip_grad_([parameter()], MaxNorm(1.0), scope=[]), "`scope` must be one of 'global'"),
    (lambda: clip_grad_(np.zeros(()), MaxNorm(1.0)), "`parameters` must be a module, an optimizer or tensors"),
    (lambda: refine_schedule("123"), "`norms` must be numbers, got '123'"),
    (lambda: refine_schedule([1.0, LONG]), "`norms` must be numbers, got [1.0, 1000"),
    (lambda: refine_schedule(torch.tensor([1 + 1j, 2.0])), "`norms` must be numbers, got tensor("),
    (lambda: refine_schedule(torch.ones(3, device="meta")), "`norms` must be numbers, got tensor("),
]


@pytest.mark.parametrize(("call", "text"), FOUND, ids=[text[:60] for _, text in FOUND])
def test_refused_in_words(call, text):
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert str(refused.value).startswith(text)
    assert len(str(refused.value)) < 400


def test_a_whole_number_is_as_good_as_a_float():
    weights = [parameter(), parameter()]
    states: list[Any] = [None, None]
    for _ in range(4):
        for i, z_max in enumerate((2**33, 2.0**33)):  # its square is no int64
            _, states[i] = clip_grad_([weights[i]], ZScore(z_max, warmup_steps=2), states[i])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_sparse_norms_are_norms():
    norms = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(refine_schedule(norms.to_sparse()), refine_schedule(norms), rtol=0, atol=0)
