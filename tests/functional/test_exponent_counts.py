"""Counts per power of two, against a loop over numbers."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.event_files import count_magnitudes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_calib.functional.exponent_counts import _bincount, exponent_counts
from lightning_calib.functional.plan import Plan

LOW, HIGH = -48, 15
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


def count(values, owners=None, factor=None):
    plan = Plan.of([nn.Parameter(torch.zeros_like(one.to_dense())) for one in values])
    return exponent_counts(plan, values, owners or list(range(len(values))), LOW, HIGH, factor)


def wanted(*values):
    flat = [x for value in values for x in value.flatten().abs().double().tolist()]
    return torch.tensor(count_magnitudes(flat), dtype=torch.float64)


def wild(dtype, *shape):
    """50 decades, where the type has them, with everything that is special."""
    generator = torch.Generator().manual_seed(7)
    normal, spread = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    value = (normal * (12 * spread).exp()).to(dtype)
    special = [0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, -2.0, 4.0, 65504.0, 2.0**-48, 2.0**-24, 3e-45]
    value.view(-1)[: len(special)] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return value


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type(dtype):
    value = wild(dtype, 40, 30)
    found = count([value])
    torch.testing.assert_close(found[0], wanted(value), rtol=0, atol=0)
    assert found[0, 0] >= 2
    assert found[0, 1] >= 3
    assert found[0, [3, -1]].min() > 0 or dtype == torch.float16, "both ends take in what lies beyond"


def test_the_smallest_numbers_are_not_zeros():
    value = torch.tensor([0.0, 1e-40, -1e-45, 1.2e-38], dtype=torch.float32)
    assert count([value])[0, [0, 3]].tolist() == [1, 3]


def test_exact_powers_open_their_column():
    for exponent in (-48, -1, 0, 1, 14):
        found = count([torch.tensor([2.0**exponent, math.nextafter(2.0**exponent, 0.0)], dtype=torch.float64)])[0]
        place = 3 + exponent - LOW
        assert found[place] == (2 if exponent == LOW else 1)
        assert exponent == LOW or found[place - 1] == 1
        assert found[2] == exponent


def test_any_layout_in_memory():
    value = wild(torch.float32, 6, 5, 8, 9)
    for one in (value.to(memory_format=torch.channels_last), value.transpose(0, 3), value[:, :, ::2], value[1:]):
        torch.testing.assert_close(count([one])[0], wanted(one), rtol=0, atol=0)


def test_more_elements_than_one_chunk():
    value = wild(torch.float32, 3 * 2**18 + 5)
    torch.testing.assert_close(count([value])[0], wanted(value), rtol=0, atol=0)


def test_modules_sum_over_their_tensors_and_a_missing_one_adds_nothing():
    a, b, c = (wild(torch.float32, n, 20) for n in (2, 3, 4))
    plan = Plan.of([nn.Parameter(torch.zeros_like(one)) for one in (a, b, c, a, a[:0])])
    found = exponent_counts(plan, [a, b, c, None, a[:0]], [1, 0, 1, 2, 2], LOW, HIGH)
    torch.testing.assert_close(found[:2], torch.stack([wanted(b), wanted(a, c)]), rtol=0, atol=0)
    assert found[2].tolist() == [0, 0, -math.inf, *[0] * 64]


def test_what_a_sparse_gradient_lacks_is_zero():
    indices = torch.tensor([[3, 1, 3]])  # row 3 twice: its parts must be added first
    value = torch.sparse_coo_tensor(
        indices, torch.tensor([[1.0, 4.0], [0.5, 0.0], [1.0, -4.0]]), (6, 2), check_invariants=True
    )
    torch.testing.assert_close(count([value])[0], wanted(value.to_dense()), rtol=0, atol=0)
    empty = torch.sparse_coo_tensor(torch.zeros(1, 0).long(), torch.zeros(0, 2), (6, 2), check_invariants=True)
    assert count([empty])[0, :3].tolist() == [12, 0, -math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_factor_comes_first(dtype):
    value = wild(dtype, 400)
    found = count([value], factor=torch.tensor(2.0**-10))
    torch.testing.assert_close(found[0], wanted(value.float() * 2.0**-10), rtol=0, atol=0)


def test_the_gradient_keeps_its_bits():
    value = wild(torch.float32, 400)
    kept = value.clone()
    count([value], factor=torch.tensor(0.5))
    assert torch.equal(value.view(torch.int32), kept.view(torch.int32))


class Operators(TorchDispatchMode):
    """The names of what torch is asked for."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [256, 2048])
def test_counting_on_a_gpu_asks_for_nothing_that_a_deterministic_run_forbids(size, deterministic):
    with FakeTensorMode(), Operators() as operators:
        found = _bincount(torch.ones(99, dtype=torch.int32, device="cuda"), size)
    assert found.shape == (size,)
    assert "index_add_" in operators.called
    assert not operators.called & {"histc", "bincount"}


def test_a_missing_gradient_takes_no_digit_from_the_counts_of_the_others():
    many = torch.ones(1).expand(2**24 + 1)
    found = exponent_counts(Plan.of([many, torch.ones(1)]), [many, None], [0, 1], -48, 15)
    assert found[0, 3 + 48].item() == 2**24 + 1


def test_a_factor_is_not_rounded_to_the_type_of_the_gradient():
    value = torch.tensor([1.6640625], dtype=torch.bfloat16)  # times 6 / 5: just below 2
    found = exponent_counts(Plan.of([value]), [value], [0], -48, 15, torch.tensor(6 / 5))
    assert found[0, 2].item() == 0
