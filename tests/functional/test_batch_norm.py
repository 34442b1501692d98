"""Pooled moments of BatchNorm inputs against one float64 reduction over everything seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_calib.functional.batch_norm import Population, tracking

EXACT = {"rtol": 1e-6, "atol": 1e-6}  # of a buffer in float32


def batches(*shape: int, sizes: tuple[int, ...] = (8, 8, 3), offset: float = 0.0) -> list[Tensor]:
    """Batches of unequal sizes and unequal means, so that neither may be averaged."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, *shape, generator=generator) * (i + 1) + i + offset for i, n in enumerate(sizes)]


def oracle(seen: list[Tensor]) -> tuple[Tensor, Tensor]:
    channels = torch.cat([x.double().transpose(0, 1).flatten(1) for x in seen], dim=1)
    return channels.mean(1), channels.var(1, correction=0)


def population(layer: nn.Module, seen: list[Tensor]) -> nn.Module:
    with Population([layer]) as found:
        for x in seen:
            layer(x)
    assert found.write() == []
    return layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(5), (5,)),
        (nn.BatchNorm1d(5, momentum=None), (5, 7)),
        (nn.BatchNorm2d(5, affine=False), (5, 3, 4)),
        (nn.BatchNorm3d(5), (5, 2, 3, 2)),
        (nn.SyncBatchNorm(5), (5, 3, 4)),
    ],
    ids=str,
)
def test_the_statistics_are_those_of_all_numbers_together(layer, shape):
    seen = batches(*shape)
    mean, variance = oracle(seen)
    population(layer, seen)
    torch.testing.assert_close(layer.running_mean, mean.float(), **EXACT)
    torch.testing.assert_close(layer.running_var, variance.float(), **EXACT)
    averaged = torch.stack([oracle([x])[1] for x in seen]).mean(0)
    assert (averaged / variance - 1).abs().max() > 0.1, "the mean of the batches' variances would pass"


def test_a_mean_far_from_zero_costs_no_digits():
    seen = batches(5, 6, 6, offset=1e6)  # a difference of two mean squares would keep no digit
    layer = population(nn.BatchNorm2d(5), seen)
    torch.testing.assert_close(layer.running_var, oracle(seen)[1].float(), **EXACT)


def test_a_constant_channel_has_no_variance():
    seen = [torch.full((7, 5), 0.1), torch.full((3, 5), 0.1)]
    layer = population(nn.BatchNorm1d(5), seen)
    torch.testing.assert_close(layer.running_mean, torch.full((5,), 0.1))
    assert bool((layer.running_var >= 0).all())
    torch.testing.assert_close(layer.running_var, torch.zeros(5), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    seen = [x.to(dtype) for x in batches(5, 4)]
    layer = population(nn.BatchNorm1d(5).to(dtype), seen)
    mean, variance = oracle(seen)
    torch.testing.assert_close(layer.running_mean, mean.to(dtype))
    torch.testing.assert_close(layer.running_var, variance.to(dtype))


def test_an_empty_input_and_a_named_argument():
    seen = batches(5, 4)
    layer = nn.BatchNorm1d(5).train()
    with Population([layer]) as found:
        for x in seen:
            layer(input=x)
        layer.eval()(torch.zeros(0, 5, 4))
    found.write()
    torch.testing.assert_close(layer.running_mean, oracle(seen)[0].float(), **EXACT)


def test_the_hooks_are_gone_and_what_saw_nothing_keeps_its_values():
    layer, other = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    with Population([layer, other]) as found:
        layer(batches(5)[0])
    assert found.write() == []
    assert len(found) == 1
    assert not layer._forward_pre_hooks
    torch.testing.assert_close(other.running_mean, torch.zeros(5), rtol=0, atol=0)


def test_what_is_not_finite_is_named_and_not_written():
    layer = nn.BatchNorm1d(5)
    x = batches(5)[0]
    x[0, 0] = torch.inf
    before = layer.running_var.clone()
    with Population([layer]) as found:
        layer.eval()(x)
    assert found.write() == [layer]
    torch.testing.assert_close(layer.running_var, before, rtol=0, atol=0)


def test_only_layers_that_keep_statistics_are_found_each_once():
    shared = nn.BatchNorm1d(3)
    none = nn.BatchNorm1d(3, track_running_stats=False)
    instance = nn.InstanceNorm1d(3, track_running_stats=True)
    assert tracking(nn.Sequential(shared, none, nn.Sequential(shared), instance)) == [shared]
    with pytest.raises(ValueError, match=r"keeps no running statistics. Take the layers from `tracking`."):
        population(none, batches(3))
