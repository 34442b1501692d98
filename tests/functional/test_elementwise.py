"""Element-wise methods against torch and a loop."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from helpers import gradient_families
from torch import nn

from lightning_calib.functional.elementwise import centralize_, clamp_
from lightning_calib.functional.plan import Plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_clamp_equals_clip_grad_value_of_torch(dtype: torch.dtype) -> None:
    ours, theirs = gradient_families.Net(dtype=dtype), gradient_families.Net(dtype=dtype)
    for net in (ours, theirs):
        parameters = list(net.parameters())
        gradient_families.assign(parameters, gradient_families.missing(parameters, 0, torch.Generator().manual_seed(0)))
    clamp_(ours.parameters(), 0.7)
    torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.7)
    sizes = torch.cat([p.grad.abs().flatten().double() for p in ours.parameters() if p.grad is not None])
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            gradient_families.same_bits(a.grad, b.grad)
    assert (sizes == sizes.max()).any()
    assert not (sizes == sizes.max()).all()


def holding(gradient: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    parameter.grad = gradient
    return parameter


def test_clamp_adds_duplicates_of_a_sparse_gradient_first() -> None:
    values = torch.tensor([[0.6, -2.0], [0.1, 0.2], [0.6, 1.5]])
    table = holding(torch.sparse_coo_tensor(torch.tensor([[2, 0, 2]]), values, (4, 2), check_invariants=True))
    clamp_([table], 1.0)
    expected = torch.tensor([[0.1, 0.2], [0.0, 0.0], [1.0, -0.5], [0.0, 0.0]])
    gradient_families.same_bits(table.grad.to_dense(), expected)
    assert table.grad.is_sparse


def test_clamp_keeps_nan_and_bounds_inf() -> None:
    vector = holding(torch.tensor([math.nan, math.inf, -math.inf, 0.5]))
    clamp_([nn.Parameter(torch.zeros(2)), vector], 2.0)
    gradient_families.same_bits(vector.grad, torch.tensor([math.nan, 2.0, -2.0, 0.5]))


def test_clamp_refuses_complex_numbers() -> None:
    with pytest.raises(TypeError, match=r"Complex gradients cannot be clamped by value\. Clip their norm"):
        clamp_([holding(torch.ones(2, dtype=torch.complex64))], 1.0)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (4, 3, 2), (4, 3, 2, 2), (2, 3, 2, 2, 2), (0, 3), (3, 0)])
def test_centralisation_equals_the_loop_over_rows(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(oracles.centralized(gradient.numpy()))
    parameter = holding(gradient)
    centralize_(Plan.of([parameter]), 0)
    # A mean of a few numbers near 1 in double precision, in another order.
    torch.testing.assert_close(parameter.grad, expected, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize(
    "layer",
    [nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(4, 6, 2, groups=2)],
    ids=["transposed", "transposed groups", "groups"],
)
def test_centralisation_of_convolutions_is_per_output_channel(layer: nn.Module) -> None:
    weight = layer.double().weight
    weight.grad = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(oracles.centralized(oracles.to_numpy(weight.grad), layer))
    bias = layer.bias.grad = torch.ones_like(layer.bias)
    plan = Plan.of(layer)
    for i in range(len(plan.tensors)):
        centralize_(plan, i)
    torch.testing.assert_close(weight.grad, expected, rtol=0.0, atol=1e-14)  # as above
    gradient_families.same_bits(layer.bias.grad, torch.ones_like(bias))


def test_centralisation_leaves_sparse_and_missing_gradients_alone() -> None:
    values = torch.tensor([[0.6, -2.0], [0.1, 0.2]])
    table = holding(torch.sparse_coo_tensor(torch.tensor([[2, 0]]), values, (4, 2), check_invariants=True))
    plan = Plan.of([table, nn.Parameter(torch.zeros(2, 2))])
    centralize_(plan, 0)
    centralize_(plan, 1)
    gradient_families.same_bits(table.grad.to_dense(), torch.tensor([[0.1, 0.2], [0.0, 0.0], [0.6, -2.0], [0.0, 0.0]]))
    assert plan.tensors[1].grad is None


def test_a_centralised_step_does_not_move_the_response_to_a_constant_input() -> None:
    """What it is for."""
    layer = nn.Linear(6, 4, bias=False).double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 6, dtype=torch.float64, generator=generator)
    layer(inputs).square().sum().backward()
    constant = torch.ones(1, 6, dtype=torch.float64)
    before = layer(constant)
    centralize_(Plan.of(layer), 0)
    with torch.no_grad():
        layer.weight.sub_(layer.weight.grad)
    torch.testing.assert_close(layer(constant), before, rtol=1e-12, atol=1e-12)  # cancellation of six terms
