"""Errors teach: the name, the rule, the value and the remedy; and which optimizers a rule refuses."""

from __future__ import annotations

import math
import re

import pytest
import torch

from lightning_calib import EMARelative, MaxNorm, WeightRelative, ZScore
from lightning_calib.schedules import DistanceOverGradients, InverseNorm, Polyak, SpikeBackoff, refine_schedule
from lightning_calib.schedules.rule import Measurement

FORM = re.compile(r"^`(?P<name>\w+)` must be (?P<rule>.+?), got (?P<value>.+?)\. (?P<remedy>[A-Z].+\.)$", re.DOTALL)
V, T = ValueError, TypeError
NAN, INF = math.nan, math.inf

# function, arguments, exception, rule, value, part of the remedy
BAD = [
    (SpikeBackoff, {"policy": None}, T, "a policy", "None", "ZScore()"),
    (SpikeBackoff, {"policy": ZScore}, T, "a policy", repr(ZScore), "ZScore()"),
    (SpikeBackoff, {"policy": 1.5}, T, "a policy", "1.5", "MaxNorm(1.5)"),
    (SpikeBackoff, {"policy": True}, T, "a policy", "True", "ZScore()"),
    (SpikeBackoff, {"policy": WeightRelative()}, V, "needs no weights", "WeightRelative(", "ZScore()"),
    (SpikeBackoff, {"backoff": 0}, V, "in (0, 1)", "0", "0.5"),
    (SpikeBackoff, {"backoff": 1.0}, V, "in (0, 1)", "1.0", "0.5"),
    (SpikeBackoff, {"backoff": NAN}, V, "in (0, 1)", "nan", "0.5"),
    (SpikeBackoff, {"backoff": "0.5"}, T, "a number in (0, 1)", "'0.5'", "0.5"),
    (SpikeBackoff, {"recovery": 1}, V, "in (1, inf)", "1", "1.05"),
    (SpikeBackoff, {"recovery": INF}, V, "in (1, inf)", "inf", "1.05"),
    (SpikeBackoff, {"recovery": None}, T, "a number", "None", "1.05"),
    (Polyak, {"loss_min": INF}, V, "in (-inf, inf)", "inf", "0.0"),
    (Polyak, {"loss_min": -INF}, V, "in (-inf, inf)", "-inf", "0.0"),
    (Polyak, {"loss_min": NAN}, V, "in (-inf, inf)", "nan", "0.0"),
    (Polyak, {"loss_min": "0"}, T, "a number", "'0'", "0.0"),
    (Polyak, {"damping": 0.0}, V, "in (0, inf)", "0.0", "0.5"),
    (Polyak, {"damping": -1}, V, "in (0, inf)", "-1", "0.5"),
    (Polyak, {"damping": True}, T, "a number", "True", "0.5"),
    (Polyak, {"growth": 0.9}, V, "in [1, inf]", "0.9", "2.0"),
    (Polyak, {"growth": NAN}, V, "in [1, inf]", "nan", "2.0"),
    (Polyak, {"growth": None}, T, "a number", "None", "math.inf"),
    (Polyak, {"growth_steps": 0}, V, ">= 1", "0", "epoch"),
    (Polyak, {"growth_steps": 10.0}, T, "a whole number", "10.0", "epoch"),
    (DistanceOverGradients, {"initial_distance": 0}, V, "in (0, inf)", "0", "1e-4"),
    (DistanceOverGradients, {"initial_distance": INF}, V, "in (0, inf)", "inf", "1e-6"),
    (DistanceOverGradients, {"initial_distance": "1e-6"}, T, "a number", "'1e-6'", "1e-6"),
    (InverseNorm, {"target": 0.0}, V, "in (0, inf)", "0.0", "typical"),
    (InverseNorm, {"target": -2}, V, "in (0, inf)", "-2", "typical"),
    (InverseNorm, {"target": MaxNorm(1.0)}, T, "a number", "MaxNorm(", "typical"),
    (refine_schedule, {"optimizer": "AdamW"}, V, "one of 'sgd', 'adam'", "'AdamW'", '"adam"'),
    (refine_schedule, {"optimizer": None}, V, "one of 'sgd', 'adam'", "None", '"adam"'),
    (refine_schedule, {"smoothing": -0.1}, V, "in [0, 1]", "-0.1", "0.1"),
    (refine_schedule, {"smoothing": 1.5}, V, "in [0, 1]", "1.5", "0.1"),
    (refine_schedule, {"smoothing": "0.1"}, T, "a number in [0, 1]", "'0.1'", "0.1"),
    (refine_schedule, {"norms": None}, T, "numbers", "None", "logged"),
    (refine_schedule, {"norms": 3.0}, T, "numbers", "3.0", "logged"),
    (refine_schedule, {"norms": ["a"] * 1000}, T, "numbers", "['a', 'a'", "logged"),
    (refine_schedule, {"norms": []}, V, "T >= 2", "(0,)", "one sequence"),
    (refine_schedule, {"norms": [1.0]}, V, "T >= 2", "(1,)", "one sequence"),
    (refine_schedule, {"norms": torch.ones(3, 2)}, V, "shape (T,)", "(3, 2)", "one sequence"),
    (refine_schedule, {"norms": torch.tensor(1.0)}, V, "shape (T,)", "()", "one sequence"),
    (refine_schedule, {"norms": [1.0, -2.0, NAN, 1.0]}, V, "non-negative", "-2.0", "logarithms"),
    (refine_schedule, {"norms": [1.0, NAN, 0.0]}, V, "at least half", "'1 of 3'", "Leave out"),
    (refine_schedule, {"norms": [INF, NAN]}, V, "at least half", "'0 of 2'", "Leave out"),
]


def name_of(case: tuple) -> str:
    (argument, value) = next(iter(case[1].items()))
    return f"{case[0].__name__}-{argument}={value}"[:60].replace("\n", "")


@pytest.mark.parametrize("case", BAD, ids=name_of)
def test_a_bad_argument_is_named_with_rule_value_and_remedy(case: tuple) -> None:
    function, arguments, exception, rule, value, remedy = case
    (name,) = arguments
    if function is refine_schedule:
        arguments = {"norms": [1.0, 2.0, 3.0], **arguments}
    with pytest.raises(exception) as refusal:
        function(**arguments)
    assert type(refusal.value) is exception
    told = FORM.match(str(refusal.value))
    assert told, str(refusal.value)
    assert told["name"] == name
    assert rule in told["rule"]
    assert told["value"].startswith(value)
    assert remedy in told["remedy"]
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    ("rule", "part"),
    [(Polyak(), "loss"), (DistanceOverGradients(), "distances"), (DistanceOverGradients(), "start_norms")],
)
def test_a_measurement_that_lacks_what_the_rule_needs_is_refused(rule: object, part: str) -> None:
    norms = torch.ones(2)
    whole = Measurement(norms, norms > 0, torch.tensor(1.0), norms, norms)
    rule(whole, rule.init(norms))
    with pytest.raises(ValueError, match=rf"`{part}` must be a tensor for this rule, got None\. Measure it"):
        rule(whole._replace(**{part: None}), rule.init(norms))


ADAPTIVE = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop"]
ADAPTIVE += ["Adafactor", "Muon", "Lion", "LBFGS", "Prodigy"]


@pytest.mark.parametrize("name", [*ADAPTIVE, "ASGD", "DAdaptSGD", "DAdaptAdam", "FusedAdam", "SGDAdam"])
def test_dog_refuses_what_rescales_the_gradient_with_the_reason_and_a_way_out(name: str) -> None:
    reason = DistanceOverGradients().refuses(name)
    assert reason is not None
    for fragment in (name, "DistanceOverGradients", "the gradient itself", "SGD(lr=1.0)", "SpikeBackoff()"):
        assert fragment in reason


@pytest.mark.parametrize("name", ["SGD", "MySGD"])
def test_dog_accepts_sgd(name: str) -> None:
    assert DistanceOverGradients().refuses(name) is None


@pytest.mark.parametrize("rule", [SpikeBackoff(), Polyak(), InverseNorm()])
def test_the_other_rules_refuse_no_optimizer(rule: object) -> None:
    assert [rule.refuses(name) for name in [*ADAPTIVE, "SGD"]] == [None] * (len(ADAPTIVE) + 1)


def test_defaults_are_the_documented_ones() -> None:
    assert SpikeBackoff() == SpikeBackoff(policy=ZScore(), backoff=0.5, recovery=1.05)
    assert Polyak() == Polyak(loss_min=0.0, damping=0.5, growth=2.0, growth_steps=500)
    assert DistanceOverGradients() == DistanceOverGradients(initial_distance=1e-6)
    assert InverseNorm() == InverseNorm(target=1.0)


def test_the_ends_of_the_ranges_are_accepted() -> None:
    norms = torch.ones(2)
    row = Measurement(norms, norms > 0, torch.tensor(1.0), norms, norms)
    for rule in (
        SpikeBackoff(EMARelative(), 1e-3, 1.0001),
        Polyak(-5, 1, 1, 1),
        Polyak(growth=INF),
        DistanceOverGradients(5),
        InverseNorm(1),
    ):
        factors, _ = rule(row, rule.init(norms))
        assert factors.isfinite().all()
