"""Errors teach: the name, the rule, the value and the remedy, for every argument."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import gradient_families

from lightning_calib import EMARelative, GradientStabilizer, MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_

FORM = re.compile(r"^`(?P<name>\w+)` must be (?P<rule>.+?), got (?P<value>.+?)\. (?P<remedy>[A-Z].+\.)$", re.DOTALL)
V, T = ValueError, TypeError
NAN, INF = math.nan, math.inf

# constructor, arguments, exception, name, rule, value
BAD = [
    (MaxNorm, {"max_norm": 0}, V, "in (0, inf]", "0"),
    (MaxNorm, {"max_norm": -1.5}, V, "in (0, inf]", "-1.5"),
    (MaxNorm, {"max_norm": NAN}, V, "in (0, inf]", "nan"),
    (MaxNorm, {"max_norm": "1.0"}, T, "a number in (0, inf]", "'1.0'"),
    (MaxNorm, {"max_norm": None}, T, "a number", "None"),
    (MaxNorm, {"max_norm": True}, T, "a number", "True"),
    (Percentile, {"percentile": -0.1}, V, "in [0, 100]", "-0.1"),
    (Percentile, {"percentile": 100.5}, V, "in [0, 100]", "100.5"),
    (Percentile, {"percentile": NAN}, V, "in [0, 100]", "nan"),
    (Percentile, {"percentile": "95"}, T, "a number in [0, 100]", "'95'"),
    (Percentile, {"window": 0}, V, ">= 1", "0"),
    (Percentile, {"window": -3}, V, ">= 1", "-3"),
    (Percentile, {"window": 10.0}, T, "a whole number", "10.0"),
    (Percentile, {"window": True}, T, "a whole number", "True"),
    (Percentile, {"warmup_steps": -1}, V, ">= 0", "-1"),
    (Percentile, {"warmup_steps": 1.5}, T, "a whole number", "1.5"),
    (Percentile, {"warmup_steps": None}, T, "a whole number", "None"),
    (ZScore, {"z_max": 0.0}, V, "in (0, inf)", "0.0"),
    (ZScore, {"z_max": -2.5}, V, "in (0, inf)", "-2.5"),
    (ZScore, {"z_max": INF}, V, "in (0, inf)", "inf"),
    (ZScore, {"z_max": NAN}, V, "in (0, inf)", "nan"),
    (ZScore, {"z_max": "2.5"}, T, "a number", "'2.5'"),
    (ZScore, {"decay": 1.5}, V, "in [0, 1)", "1.5"),
    (ZScore, {"decay": 1}, V, "in [0, 1)", "1"),
    (ZScore, {"decay": -0.1}, V, "in [0, 1)", "-0.1"),
    (ZScore, {"decay": None}, T, "a number", "None"),
    (ZScore, {"warmup_steps": 1}, V, ">= 2", "1"),
    (ZScore, {"warmup_steps": 25.0}, T, "a whole number", "25.0"),
    *(
        (policy, {"warmup_max_norm": value}, error, rule, repr(value))
        for policy in (Percentile, ZScore, EMARelative)
        for value, error, rule in [
            (0.0, V, "in (0, inf]"),
            (-1.0, V, "in (0, inf]"),
            (NAN, V, "in (0, inf]"),
            ("1.0", T, "a number in (0, inf]"),
            (True, T, "a number in (0, inf]"),
        ]
    ),
    *(
        (Percentile, {"percentile": value}, V, "0 or in [1, 100]", repr(value))
        for value in (1e-9, 0.05, 0.1, 0.5, 0.95, 0.999)
    ),
    (ZScore, {"robust": "yes"}, T, "True or False", "'yes'"),
    (ZScore, {"robust": 1}, T, "True or False", "1"),
    (EMARelative, {"factor": 0.9}, V, "in [1, inf)", "0.9"),
    (EMARelative, {"factor": INF}, V, "in [1, inf)", "inf"),
    (EMARelative, {"factor": "1.05"}, T, "a number", "'1.05'"),
    (EMARelative, {"decay": 1.0}, V, "in [0, 1)", "1.0"),
    (EMARelative, {"decay": NAN}, V, "in [0, 1)", "nan"),
    (EMARelative, {"decay": [0.9]}, T, "a number", "[0.9]"),
    (EMARelative, {"warmup_steps": 0}, V, ">= 1", "0"),
    (EMARelative, {"warmup_steps": "100"}, T, "a whole number", "'100'"),
    (GradientStabilizer, {"decay_short": -0.1}, V, "in [0, 1)", "-0.1"),
    (GradientStabilizer, {"decay_short": 1.0}, V, "in [0, 1)", "1.0"),
    (GradientStabilizer, {"decay_short": NAN}, V, "in [0, 1)", "nan"),
    (GradientStabilizer, {"decay_short": "0.7"}, T, "a number in [0, 1)", "'0.7'"),
    (GradientStabilizer, {"decay_long": 0.69}, V, "in [0.7, 1)", "0.69"),
    (GradientStabilizer, {"decay_long": 1}, V, "in [0.7, 1)", "1"),
    (GradientStabilizer, {"decay_long": None}, T, "a number in [0.7, 1)", "None"),
    (GradientStabilizer, {"eps": 0.0}, V, "in (0, inf)", "0.0"),
    (GradientStabilizer, {"eps": INF}, V, "in (0, inf)", "inf"),
    (GradientStabilizer, {"eps": True}, T, "a number in (0, inf)", "True"),
    (WeightRelative, {"factor": 0}, V, "in (0, inf)", "0"),
    (WeightRelative, {"factor": -0.01}, V, "in (0, inf)", "-0.01"),
    (WeightRelative, {"factor": None}, T, "a number", "None"),
    (WeightRelative, {"min_weight_norm": 0.0}, V, "in (0, inf)", "0.0"),
    (WeightRelative, {"min_weight_norm": -1e-3}, V, "in (0, inf)", "-0.001"),
    (WeightRelative, {"min_weight_norm": "1e-3"}, T, "a number", "'1e-3'"),
    # Arguments of clip_grad_ itself.
    (clip_grad_, {"policy": True}, T, "a number or a policy", "True"),
    (clip_grad_, {"policy": None}, T, "policy", "None"),
    (clip_grad_, {"policy": MaxNorm}, T, "policy", repr(MaxNorm)),
    (clip_grad_, {"policy": "zclip"}, T, "policy", "'zclip'"),
    (clip_grad_, {"scope": "tensor"}, V, "one of 'global', 'group', 'layer', 'parameter', 'unit'", "'tensor'"),
    (clip_grad_, {"scope": None}, V, "one of 'global'", "None"),
    (clip_grad_, {"norm_type": 0}, V, "in (0, inf]", "0"),
    (clip_grad_, {"norm_type": -2.0}, V, "in (0, inf]", "-2.0"),
    (clip_grad_, {"norm_type": NAN}, V, "in (0, inf]", "nan"),
    (clip_grad_, {"norm_type": "fro"}, T, "a number in (0, inf]", "'fro'"),
    (clip_grad_, {"parameters": ["weight"]}, T, "tensors", "'weight'"),
    (clip_grad_, {"parameters": "weight"}, T, "tensors", "'w"),
    (clip_grad_, {"parameters": 3}, T, "tensors", "3"),
    (clip_grad_, {"parameters": None}, T, "tensors", "None"),
]


def name_of(case: tuple) -> str:
    (argument, value) = next(iter(case[1].items()))
    return f"{case[0].__name__}-{argument}={value}"[:60]


@pytest.mark.parametrize("case", BAD, ids=name_of)
def test_a_bad_argument_is_named_with_rule_value_and_remedy(case: tuple) -> None:
    function, arguments, exception, rule, value = case
    (name,) = arguments
    if function is clip_grad_:
        arguments = {"parameters": gradient_families.Net(), "policy": MaxNorm(1.0), **arguments}
    with pytest.raises(exception) as refusal:
        function(**arguments)
    assert type(refusal.value) is exception
    told = FORM.match(str(refusal.value))
    assert told, str(refusal.value)
    assert told["name"] == name
    assert rule in told["rule"]
    assert told["value"].startswith(value)
    assert len(told["remedy"].split()) >= 2


@pytest.mark.parametrize(
    ("fraction", "remedy"),
    [
        (0.95, "Use 95.0 for the 95th percentile."),
        (0.1, "Use 10.0 for the 10th percentile."),
        (0.01, "Use 1.0 for the 1st percentile."),
        (0.22, "Use 22.0 for the 22nd percentile."),
        (0.93, "Use 93.0 for the 93rd percentile."),
        (0.07, "Use 7.0 for the 7th percentile."),
        (0.11, "Use 11.0 for the 11th percentile."),
        (0.12, "Use 12.0 for the 12th percentile."),
        (0.13, "Use 13.0 for the 13th percentile."),
        (0.999, "Use 99.9 for the 99.9th percentile."),
        (0.001, "Use 1.0 for the 1st percentile."),
    ],
)
def test_a_fraction_is_told_which_percentile_it_would_be(fraction: float, remedy: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`percentile` must be 0 or in [1, 100], got {fraction}. {remedy}")):
        Percentile(fraction)


@pytest.mark.parametrize("number", [1, 2.5, 0.1])
def test_a_bare_number_is_max_norm(number: float) -> None:
    (_, gradient), (_, expected) = ((clip_grad_([w := ones()], policy), w.grad) for policy in (number, MaxNorm(number)))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
    assert gradient.norm() < 10


def ones() -> torch.nn.Parameter:
    weight = torch.nn.Parameter(torch.zeros(10, 10))
    weight.grad = torch.ones(10, 10)
    return weight


@pytest.mark.parametrize("number", [0, -1.0, NAN])
def test_a_number_that_cannot_be_a_norm_is_told_as_what_it_was_taken(number: float) -> None:
    with pytest.raises(ValueError, match=re.escape("`policy` is taken for MaxNorm: `max_norm` must be in (0, inf]")):
        clip_grad_([ones()], number)


GOOD: list[Callable[[], object]] = [
    lambda: MaxNorm(1),
    lambda: MaxNorm(INF),
    lambda: MaxNorm(np.float64(0.5)),
    lambda: Percentile(0),
    lambda: Percentile(0.0, warmup_steps=0),
    lambda: Percentile(1),
    lambda: Percentile(1.0, warmup_steps=0),
    lambda: Percentile(95, 10, 2, 1e-3),
    lambda: ZScore(2.5, 0.97, 2, True, INF),
    lambda: EMARelative(1.05, 0.98, 2, 1),
    lambda: Percentile(100.0, window=1, warmup_steps=0),
    lambda: Percentile(window=None),
    lambda: ZScore(0.1, decay=0, warmup_steps=2, robust=False),
    lambda: EMARelative(1, decay=0.0, warmup_steps=1),
    lambda: WeightRelative(5, 1e-9),
    lambda: GradientStabilizer(0, 0, 1e-30),
    lambda: GradientStabilizer(0.9, 0.9),
    lambda: GradientStabilizer(0.0, 0.999999),
]


@pytest.mark.parametrize("make", GOOD)
def test_the_ends_of_the_ranges_are_accepted_and_work(make: Callable[[], object]) -> None:
    policy, state = make(), None
    for norm in (1.0, 1.0, 2.0, 0.5, 3.0):
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.tensor([norm])
        report, state = clip_grad_([weight], policy, state)
        assert not report.targets.isnan().any()
        assert 0 < float(weight.grad) <= norm


def test_defaults_are_the_documented_ones() -> None:
    assert Percentile() == Percentile(percentile=95.0, window=1000, warmup_steps=100, warmup_max_norm=None)
    assert ZScore() == ZScore(z_max=2.5, decay=0.97, warmup_steps=25, robust=True, warmup_max_norm=None)
    assert EMARelative() == EMARelative(factor=1.05, decay=0.98, warmup_steps=100, warmup_max_norm=None)
    assert GradientStabilizer() == GradientStabilizer(decay_short=0.7, decay_long=0.9, eps=1e-8)
    assert WeightRelative() == WeightRelative(factor=0.01, min_weight_norm=1e-3)
    with pytest.raises(TypeError, match="max_norm"):
        MaxNorm()
