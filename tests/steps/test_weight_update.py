"""How far a step moved the weights: exact for small tensors, an estimate for large ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_calib.steps.weight_update import SamplePlan, WeightSample, strides


def moved(before, after, given=None):
    tensors = tuple(nn.Parameter(one.clone()) for one in before)
    sample = WeightSample(SamplePlan(tensors), given)
    with torch.no_grad():
        for tensor, new in zip(tensors, after, strict=True):
            tensor.copy_(new)
    return sample.moved()


def test_of_small_tensors_the_update_is_exact():
    generator = torch.Generator().manual_seed(0)
    before = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(3, 4), (5,), (2, 3, 3, 3)]]
    steps = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in before]
    found = moved(before, [one + step for one, step in zip(before, steps, strict=True)])
    torch.testing.assert_close(found.weights, torch.stack([one.norm() for one in before]))
    torch.testing.assert_close(found.updates, torch.stack([one.norm() for one in steps]))
    torch.testing.assert_close(found.update, torch.cat([one.flatten() for one in steps]).norm())
    ratios = (found.updates / found.weights)[[0, 2]]
    torch.testing.assert_close(found.ratio, ratios.nanmedian())


def test_vectors_alone_have_no_ratio():
    assert moved([torch.ones(3)], [torch.zeros(3)]).ratio is None


def test_a_weight_of_norm_zero_has_no_ratio():
    found = moved([torch.zeros(2, 2), torch.ones(2, 2)], [torch.ones(2, 2), torch.full((2, 2), 1.5)])
    assert float(found.ratio) == 0.5
    assert math.isnan(moved([torch.zeros(2, 2)], [torch.ones(2, 2)]).ratio)


def test_a_weight_without_a_gradient_has_no_ratio():
    before = [torch.zeros(0, 2), *(torch.full((2, 2), float(i)) for i in range(1, 6))]
    after = [one * 1.5 if i == 2 else one.clone() for i, one in enumerate(before)]
    only, none = ([False, False, one, False, False, False] for one in (True, False))
    found = moved(before, after, only)
    assert float(found.ratio) == 0.5
    assert float(moved(before, after).ratio) == 0.0
    assert float(moved(before, after, [True] * 6).ratio) == 0.0
    assert math.isnan(moved(before, after, none).ratio)
    assert found.updates.tolist() == moved(before, after).updates.tolist()
    assert moved([torch.ones(3)], [torch.zeros(3)], [False]).ratio is None


def test_a_tensor_without_elements_has_no_place():
    found = moved([torch.zeros(0, 3), torch.ones(4)], [torch.zeros(0, 3), torch.zeros(4)])
    assert found.updates.tolist() == [2.0]


def test_nothing_moved():
    found = moved([torch.ones(2, 2)], [torch.ones(2, 2)])
    assert (float(found.update), float(found.ratio)) == (0.0, 0.0)


def test_complex_weights_have_magnitudes():
    found = moved([torch.zeros(1, 2, dtype=torch.complex64)], [torch.tensor([[3.0, 4.0j]])])
    assert float(found.update) == 5.0


@pytest.mark.parametrize("channels_last", [False, True])
def test_of_a_large_tensor_the_update_is_estimated(channels_last):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(64, 64, 6, 6, generator=generator)
    step = 0.1 * torch.randn(before.shape, generator=generator)
    before = before.to(memory_format=torch.channels_last) if channels_last else before
    (stride,) = strides([before])
    assert stride > 1
    found = moved([before], [before + step])
    torch.testing.assert_close(float(found.update), float(step.norm()), rtol=0.02, atol=0)
    torch.testing.assert_close(float(found.weights), float(before.norm()), rtol=0.02, atol=0)


def test_a_stride_visits_all_columns():
    (stride,) = strides([torch.empty(512, 512)])
    assert stride >= 4
    assert math.gcd(stride, 512) == 1
    assert strides([]) == []
    assert strides([torch.empty(256, 256)]) == [1]
