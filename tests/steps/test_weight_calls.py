"""A logged step copies and compares its weights in a few calls, however many tensors there are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers.tiny_modules import same_bits
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_calib.steps.weight_update import SamplePlan, WeightSample


class Calls(TorchFunctionMode):
    """Counts what is called of torch from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[getattr(func, "__name__", str(func))] += 1
        return func(*args, **(kwargs or {}))


def weights(count: int, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> tuple[nn.Parameter, ...]:
    torch.manual_seed(0)
    return tuple(nn.Parameter(torch.randn(3, 4).to(dtypes[i % len(dtypes)])) for i in range(count))


def step(plan: SamplePlan) -> Counter[str]:
    with Calls() as calls:
        WeightSample(plan).moved()
    return calls.counts


def test_the_number_of_calls_does_not_grow_with_the_number_of_tensors():
    few, many = (step(SamplePlan(weights(count))) for count in (4, 400))
    assert few == many
    assert sum(many.values()) < 30


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float64, torch.bfloat16, torch.complex64)])
def test_each_tensor_is_as_alone(dtypes):
    tensors = weights(12, dtypes)
    together, alone = WeightSample(SamplePlan(tensors)), [WeightSample(SamplePlan([one])) for one in tensors]
    with torch.no_grad():
        for one in tensors:
            one *= 1.01
    found, each = together.moved(), [one.moved() for one in alone]
    same_bits([found.weights, found.updates], [torch.cat([one[i] for one in each]) for i in (2, 3)])


def test_a_plan_serves_every_logged_step():
    tensors = weights(5)
    plan = SamplePlan(tensors)
    for _ in range(2):
        used, fresh = WeightSample(plan), WeightSample(SamplePlan(tensors))
        with torch.no_grad():
            for one in tensors:
                one += 0.1
        same_bits(list(used.moved()), list(fresh.moved()))
