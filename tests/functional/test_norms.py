"""One pass over every kind of gradient, against float64."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from helpers import gradient_families
from torch import Tensor, nn

from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan

NORM_TYPES = [1.0, 2.0, 3.0, math.inf]
EVERY = pytest.mark.parametrize("units", [False, True], ids=["tensors", "units"])


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def read(
    values: list[Tensor | None], norm_type: float = 2.0, *, units: bool = False, like: list | None = None
) -> Tensor:
    """Norms of tensors given as they are; `like` has the shapes where a value is missing."""
    shapes = [v if v is not None else like[i] for i, v in enumerate(values)]
    plan = Plan.of([nn.Parameter(gradient_families.dense(v)) for v in shapes])
    return measure(plan, values, norm_type, units=units).tensors


@EVERY
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("family", gradient_families.FAMILIES)
def test_norms_of_every_family_equal_float64(family: str, norm_type: float, units: bool) -> None:
    if family == "decades" and norm_type == 3.0:
        return  # the cube of 1e13 does not fit into float32
    make, fill = gradient_families.FAMILIES[family]
    net = make()
    plan = Plan.of(net)
    for step in (0, 1, 5):
        gradients = fill(plan.tensors, step, torch.Generator().manual_seed(step))
        reading = measure(plan, gradients, norm_type, units=units)
        parameters, labels, count = oracles.label_elements(net, "parameter")
        wide = [None if g is None else oracles.to_numpy(g) for g in gradients]
        expected = double(oracles.segment_norms(wide, labels, count, norm_type))
        # float32: about a hundred terms of 6e-8 each, and cubes and cube roots for p = 3.
        rtol = 1e-12 if reading.tensors.dtype == torch.float64 else 2e-6
        torch.testing.assert_close(reading.tensors.double(), expected, rtol=rtol, atol=0.0, equal_nan=True)
        if units:
            parameters, labels, count = oracles.label_elements(net, "unit")
            expected = double(oracles.segment_norms(wide, labels, count, norm_type))
            torch.testing.assert_close(reading.units.double(), expected, rtol=rtol, atol=0.0, equal_nan=True)
        assert len(parameters) == len(plan.tensors)


@EVERY
def test_half_types_accumulate_in_float32(units: bool) -> None:
    big = torch.full((4, 100), 60000.0, dtype=torch.float16)
    expected = torch.tensor([60000.0 * 20])
    assert not torch.linalg.vector_norm(big).isfinite()  # what its own dtype makes of it
    torch.testing.assert_close(read([big], units=units), expected)  # float32: default tolerance
    small = torch.full((4, 4), 2.0**-14, dtype=torch.float16)
    torch.testing.assert_close(read([small], units=units), torch.tensor([2.0**-12]))
    brain = torch.full((1, 1000), 1.0, dtype=torch.bfloat16)
    torch.testing.assert_close(read([brain], units=units), torch.tensor([1000.0]).sqrt())


@EVERY
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_duplicate_indices_are_added_before_the_norm(norm_type: float, units: bool) -> None:
    indices = torch.tensor([[0, 2, 0, 2, 3]])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, -2.0], [5.0, 5.0], [-3.0, 0.0]])
    sparse = torch.sparse_coo_tensor(indices, values, (5, 2), check_invariants=True)
    dense = sparse.to_dense()
    plan = Plan.of([nn.Parameter(torch.zeros(5, 2))])
    reading = measure(plan, [sparse], norm_type, units=units)
    torch.testing.assert_close(reading.tensors[0], torch.linalg.vector_norm(dense, norm_type))
    if units:
        torch.testing.assert_close(reading.units, torch.linalg.vector_norm(dense, norm_type, dim=1))
    assert not sparse.is_coalesced()


@EVERY
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_a_sparse_gradient_without_entries_reads_zero_and_moves_no_neighbour(norm_type: float, units: bool) -> None:
    nothing = torch.sparse_coo_tensor(
        torch.empty(1, 0, dtype=torch.long), torch.empty(0, 2), (5, 2), check_invariants=True
    )
    dense = torch.full((2, 2), 3.0)
    like = [torch.zeros(3), nothing, dense]
    expected = torch.stack([torch.zeros(()), torch.zeros(()), torch.linalg.vector_norm(dense, norm_type)])
    torch.testing.assert_close(read([None, nothing, dense], norm_type, units=units, like=like), expected)


@EVERY
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_missing_and_empty_gradients_read_zero(norm_type: float, units: bool) -> None:
    values = [None, torch.empty(0, 3), torch.full((3, 1), 2.0), torch.empty(2, 0), None]
    like = [torch.ones(2, 2), None, None, None, torch.ones(())]
    expected = torch.tensor([0.0, 0.0, float(torch.linalg.vector_norm(values[2], norm_type)), 0.0, 0.0])
    torch.testing.assert_close(read(values, norm_type, units=units, like=like), expected)
    torch.testing.assert_close(read([None], norm_type, units=units, like=[torch.ones(2, 2)]), torch.zeros(1))
    plan = Plan.of([])
    assert measure(plan, [], norm_type, units=units).tensors.shape == (0,)


@EVERY
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_complex_gradients_count_by_their_magnitude(norm_type: float, units: bool) -> None:
    value = torch.tensor([[3 + 4j, 0], [5j, 1]], dtype=torch.complex64)
    expected = torch.linalg.vector_norm(torch.tensor([[5.0, 0.0], [5.0, 1.0]]), norm_type).view(1)
    torch.testing.assert_close(read([value], norm_type, units=units), expected)


@EVERY
def test_a_non_finite_element_shows_in_its_own_norm_only(units: bool) -> None:
    values = [
        torch.ones(2, 2),
        torch.tensor([[1.0, math.nan], [1.0, 1.0]]),
        torch.tensor([[math.inf, 1.0], [1.0, 1.0]]),
    ]
    plan = Plan.of([nn.Parameter(torch.zeros(2, 2)) for _ in values])
    reading = measure(plan, values, units=units)
    torch.testing.assert_close(reading.tensors, torch.tensor([2.0, math.nan, math.inf]), equal_nan=True)
    if units:
        finite = reading.units.isfinite().tolist()
        assert finite == [True, True, False, True, False, True]


@pytest.mark.parametrize("factors", ["one", "per tensor", "per unit"])
@EVERY
def test_a_rescaled_reading_equals_reading_again(factors: str, units: bool) -> None:
    net = gradient_families.Net(dtype=torch.float64)
    plan = Plan.of(net)
    gradients = gradient_families.typical(plan.tensors, 0, torch.Generator().manual_seed(0))
    reading = measure(plan, gradients, units=units)
    if factors == "per unit" and not units:
        return
    count = {"one": 1, "per tensor": len(plan.tensors), "per unit": plan.unit_starts[-1]}[factors]
    factor = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    scope = {"one": "global", "per tensor": "parameter", "per unit": "unit"}[factors]
    _, labels, _ = oracles.label_elements(net, scope)
    scaled = [g * factor[torch.from_numpy(label)] for g, label in zip(gradients, labels, strict=True)]
    again = measure(plan, scaled, units=units)
    after = reading.rescaled(factor)
    torch.testing.assert_close(after.tensors, again.tensors, rtol=1e-13, atol=0.0)  # one rounding per product
    if units:
        torch.testing.assert_close(after.units, again.units, rtol=1e-13, atol=0.0)


@EVERY
def test_reading_changes_nothing(units: bool) -> None:
    for make, fill in gradient_families.FAMILIES.values():
        plan = Plan.of(make())
        gradients = fill(plan.tensors, 1, torch.Generator().manual_seed(0))
        before = [None if g is None else gradient_families.dense(g) for g in gradients]
        versions = [None if g is None else g._version for g in gradients]
        measure(plan, gradients, units=units)
        assert versions == [None if g is None else g._version for g in gradients]
        for old, new in zip(before, gradients, strict=True):
            if new is not None:
                gradient_families.same_bits(gradient_families.dense(new), old)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("hole", [None, 0, 3])
def test_units_of_large_and_small_tensors_are_told_apart(norm_type: float, hole: int | None) -> None:
    """Rows of one length in several tensors, vectors of that length, one dtype apart, one gradient missing."""
    shapes = [(3, 8), (8,), (2, 2, 4), (4000, 8), (5000, 8), (6, 8), (1, 8)]
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(s, generator=generator) * (i + 1) for i, s in enumerate(shapes)]
    values[5] = values[5].to(torch.bfloat16)
    plan = Plan.of([nn.Parameter(torch.zeros_like(v)) for v in values])
    given = [None if i == hole else v for i, v in enumerate(values)]
    units = measure(plan, given, norm_type, units=True).units.split(list(plan.unit_counts))
    assert plan.unit_counts == (3, 1, 2, 4000, 5000, 6, 1)
    for i, (unit, value) in enumerate(zip(units, values, strict=True)):
        rows = value.double().reshape(len(unit), -1) * (i != hole)
        expected = torch.linalg.vector_norm(rows, norm_type, dim=1)
        torch.testing.assert_close(unit.double(), expected, rtol=1e-6, atol=0.0)  # float32: sums of eight terms
