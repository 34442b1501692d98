"""From targets to coefficients, and from coefficients to gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import oracles
import pytest
import torch
from helpers import gradient_families
from torch import Tensor, nn

from lightning_calib import MaxNorm, WeightRelative
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Observation, Policy, fresh_state, judge, observe
from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.rescale import rescale_
from lightning_calib.functional.segments import Segments

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Given(Policy):
    """Targets as they come: someone's own policy needs no more than this."""

    targets: tuple[float, ...]

    def init(self, norms: Tensor) -> tuple:
        return ()

    def __call__(self, observation: Observation, state: tuple) -> tuple[Tensor, tuple]:
        return torch.tensor(self.targets, dtype=observation.norms.dtype), state


# norm, target, coefficient when clipping, coefficient when normalising
CASES = [
    (4.0, 1.0, 0.25, 0.25),
    (4.0, 4.0, 1.0, 1.0),
    (4.0, 8.0, 1.0, 2.0),
    (4.0, INF, 1.0, 1.0),
    (4.0, NAN, 1.0, 1.0),
    (4.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 1.0, 1.0),
    (INF, 1.0, 1.0, 1.0),
    (NAN, 1.0, 1.0, 1.0),
    (NAN, NAN, 1.0, 1.0),
    (1e30, 1.0, 1e-30, 1e-30),
    (1e-42, 1.0, 1.0, 1.0),  # 1e42 is beyond float32
    (1e-42, 1e-43, 0.1, 0.1),
]


@pytest.mark.parametrize("clip", [True, False], ids=["clip", "normalise"])
def test_coefficients_follow_the_rule(clip: bool) -> None:
    norms, targets, clipped, normalised = (torch.tensor(column) for column in zip(*CASES, strict=True))
    observation = Observation(norms, norms.isfinite() & (norms > 0))
    report, _ = judge(Given(tuple(targets.tolist())), observation, (), clip=clip)
    # One division in float32, of numbers with two digits in the last row.
    torch.testing.assert_close(report.coefficients[:-1], (clipped if clip else normalised)[:-1], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(report.coefficients[-1], clipped[-1], rtol=1e-2, atol=0.0)
    gradient_families.same_bits(report.clipped, report.coefficients < 1)
    gradient_families.same_bits(report.norms, norms)
    gradient_families.same_bits(report.targets, targets)


@pytest.mark.parametrize("scope", ["global", "group", "layer", "parameter", "unit"])
def test_tensors_outside_the_members_keep_their_bits(scope: str) -> None:
    """Two sets of members of one plan, each clipped on its own: what rules are made of."""
    net = gradient_families.Net(dtype=torch.float64)
    optimizer = gradient_families.two_groups(net)
    plan = Plan.of_optimizer(optimizer, net)
    gradients = gradient_families.typical(plan.tensors, 0, torch.Generator().manual_seed(0))
    gradient_families.assign(plan.tensors, gradients)
    inside = [i for i, name in enumerate(plan.names) if name.endswith("weight")]
    segments = Segments.of(plan, scope, inside)
    reading = measure(plan, plan.gradients(), units=scope == "unit")
    policy = WeightRelative(factor=0.3)
    report, _ = judge(policy, observe(segments, reading, weights=True), fresh_state(policy, segments))
    versions = [p.grad._version for p in plan.tensors]
    rescale_(plan, plan.gradients(), segments.spread(report.coefficients))
    for i, (p, g) in enumerate(zip(plan.tensors, gradients, strict=True)):
        if i not in inside:
            gradient_families.same_bits(p.grad, g)
            assert p.grad._version == versions[i]
    assert report.clipped.any()

    alone = [plan.tensors[i] for i in inside]
    _, labels, count = oracles.label_elements(net, scope, optimizer)
    of = {id(p): label for p, label in zip(net.parameters(), labels, strict=True)}
    oracle = oracles.ClipOracle([of[id(p)] for p in alone], [oracles.WeightRelativeOracle(0.3, 1e-3)] * count)
    expected = oracle.step([oracles.to_numpy(gradients[i]) for i in inside], [oracles.to_numpy(p) for p in alone])
    for p, wanted in zip(alone, expected, strict=True):
        torch.testing.assert_close(p.grad, torch.tensor(wanted), rtol=1e-12, atol=0.0)  # double precision


@pytest.mark.parametrize("scope", ["global", "parameter", "unit"])
def test_complex_gradients_are_clipped_by_their_magnitude(scope: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    weight.grad = torch.tensor([[3 + 4j, 0], [0, 0.1j]], dtype=torch.complex64)
    before = weight.grad.clone()
    report, _ = clip_grad_([weight], MaxNorm(1.0), scope=scope)
    assert report.norms.dtype == torch.float32
    norm = 5.0 if scope == "unit" else math.hypot(5.0, 0.1)
    expected = before / norm
    if scope == "unit":
        expected[1] = before[1]
    torch.testing.assert_close(weight.grad, expected)  # complex64: default tolerance of a few roundings
    assert report.clipped.any()


def test_gradients_of_any_memory_layout_are_scaled_in_place() -> None:
    """Channels last, transposed and expanded-then-copied gradients: the view that a backward pass may leave."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2).double()
    weight = layer.weight
    plain = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    results = []
    for arrange in (
        lambda g: g.clone(),
        lambda g: g.clone(memory_format=torch.channels_last),
        lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        weight.grad = arrange(plain)
        storage = weight.grad.data_ptr()
        report, _ = clip_grad_(layer, MaxNorm(4.3), scope="unit")
        assert weight.grad.data_ptr() == storage
        assert report.clipped.any()
        assert not report.clipped.all()
        results.append(weight.grad.clone())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-14, atol=0.0)  # another order of summation


@pytest.mark.parametrize("scope", ["global", "group", "layer", "parameter", "unit"])
def test_no_members_at_all_is_no_obstacle(scope: str) -> None:
    """A rule, or an exclusion, may leave nothing for the rest."""
    net = gradient_families.Net()
    plan = Plan.of_optimizer(gradient_families.two_groups(net), net)
    gradients = gradient_families.typical(plan.tensors, 0, torch.Generator().manual_seed(0))
    gradient_families.assign(plan.tensors, gradients)
    segments = Segments.of(plan, scope, [])
    policy = WeightRelative()
    observation = observe(segments, measure(plan, plan.gradients(), units=scope == "unit"), weights=True)
    assert observation.norms.shape == (len(segments),)
    report, _ = judge(policy, observation, fresh_state(policy, segments))
    rescale_(plan, plan.gradients(), segments.spread(report.coefficients))
    assert not report.observed.any()
    for p, g in zip(plan.tensors, gradients, strict=True):
        gradient_families.same_bits(p.grad, g)
