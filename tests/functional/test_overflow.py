"""Norms of finite elements whose p-th powers do not fit into the type: read again, scaled, on the CPU by itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_calib import MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.norms import Reading, measure
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segments import Segments

EVERY = pytest.mark.parametrize("units", [False, True], ids=["tensors", "units"])
NARROW = 3.4028234663852886e38  # the largest float32


def exact(value: Tensor, norm_type: float) -> float:
    """The p-norm by Python's numbers, scaled by the largest, of which no power overflows."""
    numbers = [abs(complex(one)) for one in value.to_dense().flatten().tolist()]
    top = max(numbers)
    return top * math.fsum((one / top) ** norm_type for one in numbers) ** (1 / norm_type)


def plan_of(*values: Tensor) -> Plan:
    return Plan.of([nn.Parameter(torch.zeros(one.shape, dtype=one.dtype)) for one in values])


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


VALUES = {
    "float32": (noise(6, 5) * 1e25, 2.0),
    "float32 near its end": (noise(6, 5).clamp(-1, 1) * 3e37, 2.0),
    "bfloat16": ((noise(6, 5) * 1e30).to(torch.bfloat16), 2.0),
    "float64": (noise(6, 5, dtype=torch.float64) * 1e200, 2.0),
    "float64 near its end": (noise(6, 5, dtype=torch.float64).clamp(-1, 1) * 3e307, 2.0),
    "complex": (noise(6, 5, dtype=torch.complex64) * 1e25, 2.0),
    "complex128": (noise(6, 5, dtype=torch.complex128) * 1e200, 2.0),
    "cubes": (noise(6, 5) * 1e15, 3.0),
    "cubes in float64": (noise(6, 5, dtype=torch.float64) * 1e120, 3.0),
    "tenth powers": (noise(6, 5) * 1e6, 10.0),
    "tenth powers of halves": ((noise(6, 5) * 1e4).half(), 10.0),
    "a vector": (noise(30) * 1e25, 2.0),
}


@EVERY
@pytest.mark.parametrize(("value", "norm_type"), VALUES.values(), ids=VALUES)
def test_a_norm_that_fits_is_right_though_its_powers_do_not(value: Tensor, norm_type: float, units: bool) -> None:
    plain = torch.linalg.vector_norm(value, norm_type, dtype=torch.promote_types(value.dtype, torch.float32))
    assert not plain.isfinite()
    before = value.clone()
    reading = measure(plan_of(value), [value], norm_type, units)
    rtol = 1e-14 if value.dtype in (torch.float64, torch.complex128) else 1e-6  # thirty terms
    wanted = torch.tensor([exact(value, norm_type)], dtype=torch.float64)
    torch.testing.assert_close(reading.tensors.double(), wanted, rtol=rtol, atol=0)
    torch.testing.assert_close(reading.norm.double(), wanted[0], rtol=rtol, atol=0)
    if units and value.ndim > 1:
        rows = torch.tensor([exact(row, norm_type) for row in value], dtype=torch.float64)
        torch.testing.assert_close(reading.units.double(), rows, rtol=rtol, atol=0)
    torch.testing.assert_close(value, before, rtol=0, atol=0)


@EVERY
def test_a_sparse_gradient_with_duplicates_and_missing_rows(units: bool) -> None:
    indices, values = torch.tensor([[0, 2, 0, 3]]), torch.tensor([[1e20, 2e20], [3e20, 4.0], [1e20, -2e20], [1.0, 2.0]])
    sparse = torch.sparse_coo_tensor(indices, values, (5, 2), check_invariants=True)
    reading = measure(plan_of(torch.zeros(5, 2)), [sparse], 2.0, units)
    torch.testing.assert_close(reading.tensors, torch.tensor([math.sqrt(4e40 + 9e40)]))
    if units:
        torch.testing.assert_close(reading.units, torch.tensor([2e20, 0.0, 3e20, math.sqrt(5), 0.0]))


@EVERY
@pytest.mark.parametrize("transposed", [False, True])
def test_neighbours_keep_their_bits(units: bool, transposed: bool) -> None:
    """A tensor, or a row, whose square fits is what it is without the others."""
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2) if transposed else nn.Conv2d(4, 6, 2, groups=2)
    plan = Plan.of(nn.Sequential(layer, nn.Linear(3, 3)))
    plain = [noise(*one.shape) for one in plan.tensors]
    alone = measure(plan, plain, 2.0, units)
    huge = [plain[0].clone(), *plain[1:]]
    row = huge[0][:2, 1] if transposed else huge[0][1]  # unit 1, in the first group
    row *= 2.0**80  # exact
    found = measure(plan, huge, 2.0, units)
    wanted = alone.pieces.clone()
    wanted[1 if units else 0] = exact(row if units else huge[0], 2.0)
    kept = torch.ones(len(wanted), dtype=torch.bool).index_fill_(0, torch.tensor([1 if units else 0]), False)
    torch.testing.assert_close(found.pieces[kept], wanted[kept], rtol=0, atol=0)
    torch.testing.assert_close(found.pieces, wanted)


@EVERY
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so_beside_what_has_overflowed(bad: float, units: bool) -> None:
    values = [torch.full((2, 3), 1e20), torch.tensor([[1.0, bad], [3.0, 4.0]]), torch.full((2,), 1e30)]
    reading = measure(plan_of(*values), values, 2.0, units)
    wanted = torch.tensor([1e20 * math.sqrt(6), abs(bad), 1e30 * math.sqrt(2)])
    torch.testing.assert_close(reading.tensors, wanted, equal_nan=True)
    if units:
        rows = torch.tensor([1e20 * math.sqrt(3)] * 2 + [abs(bad), 5.0, 1e30 * math.sqrt(2)])
        torch.testing.assert_close(reading.units, rows, equal_nan=True)
    assert not reading.norm.isfinite()


@EVERY
def test_a_norm_above_the_largest_number_of_its_type_counts_as_not_finite(units: bool) -> None:
    """Two tensors that fit, whose norm does not; and one that does not fit by itself."""
    values = [torch.full((1, 1), 3e38), torch.full((1, 1), 3e38)]
    reading = measure(plan_of(*values), values, 2.0, units)
    torch.testing.assert_close(reading.tensors, torch.tensor([3e38, 3e38]))
    assert reading.norm.item() == math.inf
    (one,) = measure(plan_of(torch.zeros(4, 4)), [torch.full((4, 4), 3e38)], 2.0, units).tensors
    assert one.item() == math.inf
    edge = measure(plan_of(torch.zeros(1, 1)), [torch.full((1, 1), NARROW)], 2.0, units)
    assert edge.norm.item() == NARROW


def test_folds_of_float64_norms_do_not_overflow_either() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    plan = Plan.of(net)
    values = [noise(*one.shape, dtype=torch.float64) * 1e154 for one in plan.tensors]
    for reading in (measure(plan, values), measure(plan, values, units=True)):
        flat = [one.flatten() for one in values]
        layers = [exact(torch.cat(flat[:2]), 2.0), exact(torch.cat(flat[2:]), 2.0)]
        for scope, wanted in (("global", [exact(torch.cat(flat), 2.0)]), ("layer", layers)):
            folded = Segments.of(plan, scope).fold(reading)
            torch.testing.assert_close(folded, torch.tensor(wanted, dtype=torch.float64), rtol=1e-14, atol=0)
    factor = torch.full((1,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(reading.rescaled(factor).norm, reading.norm * 0.5, rtol=1e-14, atol=0)
    none = reading.rescaled(torch.zeros(1, dtype=torch.float64))
    assert none.norm.item() == 0.0


def test_what_fits_is_read_once_and_what_is_asked_for_twice() -> None:
    value = noise(6, 5)
    plan = plan_of(value)
    plain, asked = measure(plan, [value]), measure(plan, [value], scaled=True)
    assert (plain.scaled, asked.scaled) == (False, True)
    torch.testing.assert_close(asked.pieces, plain.pieces, rtol=0, atol=0)
    assert measure(plan, [value * 1e30]).scaled
    largest = measure(plan, [value * 1e30], math.inf, scaled=True)
    assert isinstance(largest, Reading)
    torch.testing.assert_close(largest.norm, (value * 1e30).abs().max(), rtol=0, atol=0)


@pytest.mark.parametrize("scope", ["global", "parameter", "unit", "layer"])
def test_forty_large_elements_are_clipped(scope: str) -> None:
    net = nn.Linear(40, 1, bias=False)
    net.weight.grad = torch.full((1, 40), 1.5e19)
    report, _ = clip_grad_(net, MaxNorm(1.0), scope=scope)
    assert report.observed.all()
    torch.testing.assert_close(report.norms, torch.tensor([1.5e19 * math.sqrt(40)]))
    torch.testing.assert_close(net.weight.grad.norm(), torch.tensor(1.0))


def test_a_segment_beyond_the_type_is_left_alone_and_the_others_are_clipped() -> None:
    tensors = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    for one, value in zip(tensors, (3e38, 3e37, 3.0), strict=True):
        one.grad = torch.full((4,), value)
    report, _ = clip_grad_(tensors, MaxNorm(1.0), scope="parameter")
    assert report.observed.tolist() == [False, True, True]
    torch.testing.assert_close(tensors[0].grad, torch.full((4,), 3e38), rtol=0, atol=0)
    torch.testing.assert_close(tensors[1].grad, torch.full((4,), 0.5))
    torch.testing.assert_close(tensors[2].grad, torch.full((4,), 0.5))


def test_large_norms_enter_a_policys_memory_and_large_weights_its_judgement() -> None:
    tensor = nn.Parameter(torch.full((4,), 1e25))
    state = None
    for value in (1e20, 1e20, 1e20, 1e22):
        tensor.grad = torch.full((4,), value)
        report, state = clip_grad_([tensor], Percentile(50, window=5, warmup_steps=2), state)
    torch.testing.assert_close(report.targets, torch.tensor([2e20]))
    torch.testing.assert_close(tensor.grad, torch.full((4,), 1e20))
    report, _ = clip_grad_([tensor], WeightRelative(1e-6))
    torch.testing.assert_close(report.targets, torch.tensor([2e19]))


@pytest.mark.parametrize("at", [2, 8], ids=["in the warm-up", "behind it"])
@pytest.mark.parametrize("robust", [False, True])
def test_a_norm_whose_square_overflows_does_not_end_the_z_score(robust: bool, at: int) -> None:
    """Neither the moments nor the targets are infinite for good."""
    tensor, state = nn.Parameter(torch.zeros(2)), None
    for step in range(10):
        tensor.grad = torch.tensor([1.0 + 0.1 * (step % 3), 2e30 if step == at else 1.0])
        report, state = clip_grad_([tensor], ZScore(warmup_steps=5, decay=0.5, robust=robust), state)
        assert report.observed.all()
        assert report.clipped.item() == (step == at > 5)
    assert all(bool(one.isfinite().all()) for one in state)
    assert report.targets.isfinite().all()
