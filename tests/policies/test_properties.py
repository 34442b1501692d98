"""What holds for every policy at every scope, whatever the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import oracles
import pytest
import torch
from helpers import gradient_families
from torch import Tensor, nn

from lightning_calib import EMARelative, MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Policy

SCOPES = ["global", "group", "layer", "parameter", "unit"]
# From the scale of weights and gradients to a policy: only the fixed threshold has a unit of its own.
POLICIES: dict[str, Callable[[float], Policy]] = {
    "max_norm": lambda scale: MaxNorm(4.0 * scale),
    "percentile": lambda scale: Percentile(60, window=4, warmup_steps=2),
    "z_score_robust": lambda scale: ZScore(z_max=0.5, decay=0.9, warmup_steps=2),
    "ema_relative": lambda scale: EMARelative(factor=1.0, decay=0.9, warmup_steps=2),
    "weight_relative": lambda scale: WeightRelative(factor=1.0, min_weight_norm=1e-3 * scale),
}
EVERY_POLICY = pytest.mark.parametrize("policy_name", POLICIES)
EVERY_SCOPE = pytest.mark.parametrize("scope", SCOPES)
STEPS = 8


def play(policy: Policy, scope: str, scale: float = 1.0) -> tuple[list, list[Tensor], gradient_families.Net]:
    """Some steps in double precision: (report, gradients before, gradients after) of each, and the labels."""
    net = gradient_families.Net(dtype=torch.float64)
    parameters = list(net.parameters())
    with torch.no_grad():
        for p in parameters:
            p.mul_(scale)
    optimizer = gradient_families.two_groups(net)
    _, labels, _ = oracles.label_elements(net, scope, optimizer)
    generator, state, steps = torch.Generator().manual_seed(4), None, []
    for step in range(STEPS):
        before = [
            g * scale * (0.1 if step == 4 else 1.0) for g in gradient_families.spikes(parameters, step, generator)
        ]
        gradient_families.assign(parameters, before)
        report, state = clip_grad_(optimizer if scope == "group" else net, policy, state, scope=scope)
        steps.append((report, before, [p.grad.clone() for p in parameters]))
    visited = torch.stack([report.clipped for report, _, _ in steps])
    assert visited.any()
    assert not visited.all()
    return steps, [torch.from_numpy(label) for label in labels], net


@EVERY_SCOPE
@EVERY_POLICY
def test_no_norm_grows_and_none_exceeds_its_target(policy_name: str, scope: str) -> None:
    steps, labels, _ = play(POLICIES[policy_name](1.0), scope)
    for report, before, after in steps:
        for k in range(len(report.norms)):
            old, new = (
                torch.cat([g[label == k].flatten() for g, label in zip(gs, labels, strict=True)]).norm()
                for gs in (before, after)
            )
            bound = torch.minimum(old, report.targets[k])
            assert new <= bound * (1 + 1e-12)  # one rounding per element
            torch.testing.assert_close(new, bound, rtol=1e-12, atol=0.0)


@EVERY_SCOPE
@EVERY_POLICY
def test_each_segment_keeps_its_direction(policy_name: str, scope: str) -> None:
    """Every element of a segment is multiplied by one and the same non-negative number."""
    steps, labels, _ = play(POLICIES[policy_name](1.0), scope)
    for report, before, after in steps:
        for k in range(len(report.norms)):
            ratios = torch.cat(
                [(a / b)[label == k].flatten() for a, b, label in zip(after, before, labels, strict=True)]
            )
            assert (ratios >= 0).all()
            torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-14, atol=0.0)  # two roundings


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e7])
@EVERY_SCOPE
@EVERY_POLICY
def test_coefficients_do_not_depend_on_the_unit_of_the_gradient(policy_name: str, scope: str, scale: float) -> None:
    plain, _, _ = play(POLICIES[policy_name](1.0), scope)
    scaled, _, _ = play(POLICIES[policy_name](scale), scope, scale)
    for (one, _, _), (other, _, _) in zip(plain, scaled, strict=True):
        # Rounding only; logarithms near 16 add a few units in the last place.
        torch.testing.assert_close(other.coefficients, one.coefficients, rtol=1e-11, atol=0.0)
        torch.testing.assert_close(other.targets, scale * one.targets, rtol=1e-11, atol=0.0)


@EVERY_POLICY
@pytest.mark.parametrize("scope", ["global", "parameter", "unit"])
def test_the_order_of_the_parameters_does_not_matter(policy_name: str, scope: str) -> None:
    nets = gradient_families.Net(dtype=torch.float64), gradient_families.Net(dtype=torch.float64)
    order = [7, 2, 9, 0, 4, 10, 1, 3, 8, 5, 6]
    lists = list(nets[0].parameters()), [list(nets[1].parameters())[i] for i in order]
    policy, states, clipped = POLICIES[policy_name](1.0), [None, None], []
    generator = torch.Generator().manual_seed(4)
    for step in range(STEPS):
        gradients = [g * (0.1 if step == 4 else 1.0) for g in gradient_families.spikes(lists[0], step, generator)]
        gradient_families.assign(lists[0], gradients)
        gradient_families.assign(lists[1], [gradients[i] for i in order])
        for j in range(2):
            report, states[j] = clip_grad_(lists[j], policy, states[j], scope=scope)
        clipped.append(report.clipped)
        for position, i in enumerate(order):
            # The same numbers; a global norm sums them in another order.
            torch.testing.assert_close(lists[1][position].grad, lists[0][i].grad, rtol=1e-12, atol=0.0)
    assert torch.stack(clipped).any()
    assert not torch.stack(clipped).all()


@EVERY_POLICY
def test_splitting_a_tensor_leaves_global_alone(policy_name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    whole = [nn.Parameter(weight.clone())]
    parts = [nn.Parameter(part.clone()) for part in weight.split([1, 3, 2])]
    policy, states, clipped = POLICIES[policy_name](1.0), [None, None], []
    for step in range(STEPS):
        gradient = torch.randn(6, 4, generator=generator, dtype=torch.float64) * (0.1 if step in (4, 6) else 2.0)
        gradient_families.assign(whole, [gradient])
        gradient_families.assign(parts, list(gradient.split([1, 3, 2])))
        one, states[0] = clip_grad_(whole, policy, states[0])
        other, states[1] = clip_grad_(parts, policy, states[1])
        torch.testing.assert_close(other, one, rtol=1e-12, atol=0.0)  # another order of summation
        torch.testing.assert_close(torch.cat([p.grad for p in parts]), whole[0].grad, rtol=1e-12, atol=0.0)
        clipped.append(one.clipped)
    assert torch.stack(clipped).any()
    assert not torch.stack(clipped).all()


@pytest.mark.parametrize("family", gradient_families.FAMILIES)
@EVERY_SCOPE
def test_an_infinite_limit_leaves_every_bit_alone(scope: str, family: str) -> None:
    make, fill = gradient_families.FAMILIES[family]
    net = make()
    parameters = list(net.parameters())
    gradients = fill(parameters, 1, torch.Generator().manual_seed(0))
    gradient_families.assign(parameters, gradients)
    source = gradient_families.two_groups(net) if scope == "group" else net
    report, _ = clip_grad_(source, MaxNorm(math.inf), scope=scope)
    assert (report.coefficients == 1).all()
    for p, g in zip(parameters, gradients, strict=True):
        assert (p.grad is None) == (g is None)
        if g is not None:
            gradient_families.same_bits(gradient_families.dense(p.grad), gradient_families.dense(g))


@EVERY_SCOPE
def test_clipping_twice_to_a_fixed_limit_is_clipping_once(scope: str) -> None:
    net = gradient_families.Net(dtype=torch.float64)
    parameters = list(net.parameters())
    gradient_families.assign(parameters, gradient_families.spikes(parameters, 3, torch.Generator().manual_seed(0)))
    source = gradient_families.two_groups(net) if scope == "group" else net
    first, _ = clip_grad_(source, MaxNorm(3.0), scope=scope)
    once = [p.grad.clone() for p in parameters]
    clip_grad_(source, MaxNorm(3.0), scope=scope)
    assert first.clipped.any()
    for p, g in zip(parameters, once, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-14, atol=0.0)  # the norm of a clipped segment is 3 up to rounding


def shared(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [*parameters, parameters[0], parameters[-1]]


@pytest.mark.parametrize("scope", ["global", "parameter", "unit"])
def test_a_tensor_given_twice_is_scaled_once(scope: str) -> None:
    ones = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))]
    gradient_families.assign(ones, [torch.full((3, 2), 5.0), torch.full((4,), 5.0)])
    report, _ = clip_grad_(shared(ones), MaxNorm(1.0), scope=scope)
    total = sum(p.grad.double().square().sum() for p in ones).sqrt()
    segments = {"global": 1, "parameter": 2, "unit": 4}[scope]
    assert len(report.norms) == segments
    # float32: default tolerance of a few roundings.
    torch.testing.assert_close(total, torch.tensor(segments, dtype=torch.float64).sqrt(), rtol=1e-6, atol=0.0)
