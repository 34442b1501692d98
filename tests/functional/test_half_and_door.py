"""Coefficients that a half type cannot hold, and the door's memory of its plan and its state."""

import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_calib import EMARelative, MaxNorm, Percentile, ZScore
from lightning_calib.functional import clip_grad_


def holding(gradient):
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient
    return weight


@pytest.mark.parametrize("scope", ["global", "parameter", "unit"])
def test_a_coefficient_below_the_half_types_range_does_not_erase_the_gradient(scope):
    weight = holding(torch.full((1000, 100), 6e4, dtype=torch.float16))
    clip_grad_([weight, holding(torch.ones(3))], MaxNorm(1.0), scope=scope)
    length = 1.0 if scope != "unit" else 1000**0.5
    assert float(weight.grad.double().norm()) == pytest.approx(length, rel=5e-4)  # fp16 keeps 11 bits


def test_a_bf16_gradient_is_rounded_once():
    torch.manual_seed(0)
    weight, scalar = holding(torch.randn(64, 64).bfloat16()), holding(torch.tensor(3.0, dtype=torch.bfloat16))
    wanted = weight.grad.float()
    report, _ = clip_grad_([weight, scalar], MaxNorm(0.3))
    torch.testing.assert_close(weight.grad, (wanted * report.coefficients).bfloat16(), rtol=0, atol=0)
    assert 0 < float(scalar.grad) < 3


def norms(model, scope):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return clip_grad_(model, MaxNorm(1e9), scope=scope)[0].norms


def test_the_plan_is_laid_once_and_again_when_the_parameters_change():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))

    assert norms(model, "layer").shape == norms(model, "layer").shape == (2,)
    model.append(nn.Linear(1, 4))
    torch.testing.assert_close(norms(model, "layer"), torch.tensor([8.0, 3.0, 8.0]).sqrt())
    model[0].weight = nn.Parameter(torch.zeros(2, 3))
    model[0].weight.requires_grad_(False)
    assert norms(model, "parameter").shape == (6,)
    gone = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("policy", [ZScore(), ZScore(robust=False), Percentile(50, window=4), EMARelative()])
def test_a_state_comes_back_from_a_mapping(policy, tmp_path):
    def run(state, norms):
        for norm in norms:
            report, state = clip_grad_([holding(torch.tensor([norm]))], policy, state)
        return report, state

    straight, _ = run(None, [1.0, 2.0, 3.0, 4.0, 5.0])
    _, state = run(None, [1.0, 2.0, 3.0])
    torch.save(state._asdict(), tmp_path / "state.pt")
    resumed, _ = run(torch.load(tmp_path / "state.pt", weights_only=True), [4.0, 5.0])
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [(ZScore(robust=False), ZScore()), (Percentile(window=10), Percentile(window=1000)), (MaxNorm(1.0), EMARelative())],
)
def test_a_state_of_another_policy_is_refused(one, other):
    _, state = clip_grad_([holding(torch.ones(2))], one)
    with pytest.raises(ValueError, match=r"`state` must be .*Pass None to start afresh"):
        clip_grad_([holding(torch.ones(2))], other, state)
