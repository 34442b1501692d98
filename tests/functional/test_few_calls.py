"""How many operations a step takes does not depend on how many tensors there are; what comes out is the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.gradient_families import same_bits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_calib import MaxNorm, WeightRelative
from lightning_calib.functional.elementwise import centralize_all_, clamp_, clamp_all_
from lightning_calib.functional.judge import fresh_state, judge, observe
from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.rescale import _rescale_on_device, rescale_
from lightning_calib.functional.segments import Segments

SHAPES = [(4, 8), (8,), (4, 3, 3, 3), (16,)]


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do; what a foreach call does inside is not seen."""

    def __enter__(self) -> Operations:
        self.count, self.lists = 0, 0
        return super().__enter__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if str(function) == "aten._foreach_mul_.List":
            self.lists = max(self.lists, len(args[0]))
        return function(*args, **(kwargs or {}))


def several(copies: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(copies)
    found = []
    for _ in range(copies):
        for shape in SHAPES:
            value = torch.randn(shape, generator=generator).to(device, dtype)
            found.append(nn.Parameter(value))
            found[-1].grad = torch.randn(shape, generator=generator).to(device, dtype)
    return found


def step(scope: str, policy: MaxNorm | WeightRelative, *, matrices: bool = False) -> Callable[[Plan], None]:
    def run(plan: Plan) -> None:
        members = [i for i, one in enumerate(plan.tensors) if one.ndim > 1] if matrices else None
        segments = Segments.of(plan, scope, members)  # type: ignore[arg-type]
        with Operations() as operations:
            gradients = plan.gradients()
            reading = measure(plan, gradients, units=scope == "unit")
            seen = observe(segments, reading, weights=policy.needs_weights)
            report, _ = judge(policy, seen, fresh_state(policy, segments))
            rescale_(plan, gradients, segments.spread(report.coefficients))
        counts.append((operations.count, operations.lists))

    counts: list[tuple[int, int]] = []
    run.counts = counts  # type: ignore[attr-defined]
    return run


def clamped(plan: Plan) -> None:
    clamp_all_(plan, torch.full((len(plan.tensors),), 0.1, device=plan.device))


def centralised(plan: Plan) -> None:
    centralize_all_(plan, range(len(plan.tensors)))


STEPS = {
    "global": lambda: step("global", MaxNorm(0.1)),
    "parameter": lambda: step("parameter", MaxNorm(0.1)),
    "unit": lambda: step("unit", MaxNorm(0.1)),
    "AGC": lambda: step("unit", WeightRelative(1e-3), matrices=True),
    "AGC, quiet": lambda: step("unit", WeightRelative(1e3), matrices=True),
    "clamp": lambda: clamped,
    "centralise": lambda: centralised,
}


def operations_of(run: Callable[[Plan], None], copies: int, device: str, dtype: torch.dtype) -> tuple[int, int]:
    plan = Plan.of(several(copies, device, dtype))
    kept = [one.grad.clone() for one in plan.tensors if one.grad is not None]
    run(plan)  # what is laid once
    for one, gradient in zip(plan.tensors, kept, strict=True):
        one.grad = gradient
    with torch.no_grad(), Operations() as operations:
        run(plan)
    counts: list[tuple[int, int]] = getattr(run, "counts", [(operations.count, operations.lists)])
    return counts[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", STEPS)
def test_no_operation_for_each_tensor(name: str, device: str, dtype: torch.dtype) -> None:
    """On "meta" is the path of a GPU: there a list of factors would be a launch for each tensor, and is not used.

    On the CPU whole tensors of bf16 are multiplied one by one, because the calls for lists round the factor to it.
    """
    few, many = (operations_of(STEPS[name](), copies, device, dtype) for copies in (20, 100))
    if name in ("global", "parameter") and device == "cpu" and dtype == torch.bfloat16:
        assert many[0] - few[0] >= 4 * 80
        return
    assert many[0] - few[0] <= 24  # a few for each 2^16 elements
    assert device == "cpu" or many[1] == 0


def pair(dtype: torch.dtype) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Twice the same gradients: many of few shapes, some alone, transposed in memory, empty, without axes, missing."""
    generator = torch.Generator().manual_seed(0)
    shapes = [*SHAPES * 20, (), (), (0, 3), (1, 7), (3000,), (70, 70), (5, 9), (1, 1), (2, 1, 1)]
    made: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for k, shape in enumerate(shapes):
        value = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (k % 5 - 2)
        for found in made:
            found.append(nn.Parameter(torch.zeros(shape, dtype=dtype)))
            gradient = value.to(dtype, copy=True)
            found[-1].grad = gradient.mT.contiguous().mT if k % 3 == 0 and len(shape) == 2 else gradient
    for found in made:
        found[3].grad = None
    return made


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["one", "tensor", "unit"])
@pytest.mark.parametrize("write", [rescale_, _rescale_on_device])
def test_the_product_has_the_bits_of_one_multiplication(write: Any, kind: str, dtype: torch.dtype) -> None:
    """Of the gradient and a factor that has not been rounded to it; the path of a GPU is walked on the CPU, too."""
    ours, theirs = pair(dtype)
    plan = Plan.of(ours)
    generator = torch.Generator().manual_seed(1)
    count = {"one": 1, "tensor": len(ours), "unit": plan.unit_starts[-1]}[kind]
    factors = torch.rand(count, generator=generator, dtype=plan.dtype)
    if kind != "one":
        factors[::3] = 1.0
    write(plan, plan.gradients(), factors)
    spread = factors.expand(len(ours)) if kind == "one" else factors
    each = torch.split(spread, list(plan.unit_counts)) if kind == "unit" else spread.split(1)
    for our, their, factor in zip(ours, theirs, each, strict=True):
        if their.grad is not None:
            wide = their.grad.to(plan.dtype)
            shape = [-1, *[1] * (wide.ndim - 1)] if kind == "unit" and wide.ndim > 1 else [1] * wide.ndim
            same_bits(our.grad, (wide * factor.view(shape)).to(dtype))
        else:
            assert our.grad is None


@pytest.mark.parametrize("factor", [1 / 3, 1e-7, 1e-42, 0.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_one_factor_multiplies_as_the_number_does(dtype: torch.dtype, factor: float) -> None:
    """Small, denormal and large elements, both zeros."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(999, 2, generator=generator, dtype=torch.float64)
    value *= 10 ** (70 * torch.rand(999, 2, generator=generator, dtype=torch.float64) - 35)
    value[:3] = torch.tensor([[0.0, -0.0], [1e-45, -1e-40], [3e37, -1e-38]], dtype=torch.float64)
    value = (torch.view_as_complex(value) if dtype.is_complex else value).to(dtype)
    parameter = nn.Parameter(torch.zeros_like(value))
    parameter.grad = value.clone()
    plan = Plan.of([parameter])
    tensor = torch.tensor([factor], dtype=plan.dtype)
    rescale_(plan, plan.gradients(), tensor)
    found, wanted = parameter.grad, value * tensor.item()
    if dtype.is_complex:
        found, wanted = torch.view_as_real(found), torch.view_as_real(wanted)
    same_bits(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamping_together_has_the_bits_of_clamping_alone(dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype)
    ours[7].grad[0] = theirs[7].grad[0] = math.nan
    ours[11].grad[0] = theirs[11].grad[0] = math.inf
    bounds = torch.full((len(ours),), 0.3)
    bounds[[7, 9]] = math.inf
    versions = [None if one.grad is None else one.grad._version for one in ours]
    clamp_all_(Plan.of(ours), bounds)
    for our, their, bound, version in zip(ours, theirs, bounds.tolist(), versions, strict=True):
        clamp_([their], bound)
        if their.grad is None:
            assert our.grad is None
        else:
            same_bits(our.grad, their.grad)
            assert bound < math.inf or our.grad._version == version


@pytest.mark.parametrize("dtype", DTYPES)
def test_centralising_together_has_the_bits_of_centralising_alone(dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype)
    members = [i for i in range(len(ours)) if i % 7]
    centralize_all_(Plan.of(ours), members)
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        grad = their.grad
        if grad is not None and i in members and grad.ndim > 1 and grad.numel() and grad[0].numel() > 1:
            grad = grad - grad.mean(dim=tuple(range(1, grad.ndim)), keepdim=True)
        assert (grad is None) == (our.grad is None)
        if grad is not None:
            same_bits(our.grad, grad)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_read_together_are_those_of_each(dtype: torch.dtype, norm_type: float) -> None:
    ours, _ = pair(dtype)
    plan = Plan.of(ours)
    assert plan.by_tensor.batches
    assert plan.by_unit.batches
    assert plan.by_tensor.others
    wanted = [
        torch.zeros((), dtype=torch.float64)
        if one.grad is None or not one.grad.numel()
        else torch.linalg.vector_norm(one.grad.double(), norm_type)
        for one in ours
    ]
    for units in (False, True):
        found = measure(plan, plan.gradients(), norm_type, units=units).tensors
        torch.testing.assert_close(found.double(), torch.stack(wanted), rtol=2e-6, atol=0)  # sums of 4,900 terms


def test_what_is_copied_at_a_time_stays_below_a_megabyte() -> None:
    plan = Plan.of([nn.Parameter(torch.zeros(8, 64, dtype=torch.float64)) for _ in range(600)])
    for layout in (plan.by_tensor, plan.by_unit):
        assert len(layout.batches) > 1
        assert max(sum(plan.tensors[i].nbytes for i in batch) for batch in layout.batches) <= 2**19
        assert sorted(i for batch in (*layout.batches, layout.others) for i in batch) == list(range(600))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_with_missing_and_sparse_members(sparse: bool) -> None:
    parameters = [nn.Parameter(torch.zeros(4, 3)) for _ in range(20)]
    for k, one in enumerate(parameters):
        one.grad = None if k % 4 == 0 else torch.full((4, 3), float(k))
    if sparse:
        grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2, 3), (4, 3), check_invariants=True)
        parameters[5].grad = grad
    plan = Plan.of(parameters)
    wanted = torch.tensor([0.0 if k % 4 == 0 else k * 12**0.5 for k in range(20)])
    wanted[5] = 12**0.5 if sparse else wanted[5]
    torch.testing.assert_close(measure(plan, plan.gradients()).tensors, wanted)
    by_unit = measure(plan, plan.gradients(), units=True)
    torch.testing.assert_close(by_unit.tensors, wanted)
    rescale_(plan, plan.gradients(), torch.full((80,), 0.5))
    torch.testing.assert_close(measure(plan, plan.gradients(), units=True).tensors, wanted / 2)
