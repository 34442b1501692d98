"""State is a value: named tensors that a checkpoint can hold, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable

import pytest
import torch
from helpers import gradient_families, public_policies
from torch import nn

from lightning_calib import EMARelative, GradientStabilizer, MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Observation, Policy
from lightning_calib.policies.global_warmup import GlobalWarmup

POLICIES: dict[str, tuple[Callable[[], Policy], list[str]]] = {
    "max_norm": (lambda: MaxNorm(1.0), []),
    "weight_relative": (lambda: WeightRelative(), []),
    "percentile": (lambda: Percentile(60, window=7, warmup_steps=2), ["seen", "values"]),
    "all_history": (lambda: Percentile(60, window=None, warmup_steps=0), ["seen", "values", "steps", "tail"]),
    "z_score_robust": (lambda: ZScore(warmup_steps=5), ["seen", "mean", "var"]),
    "z_score_paper": (lambda: ZScore(warmup_steps=5, robust=False), ["seen", "mean", "var"]),
    "ema_relative": (lambda: EMARelative(warmup_steps=5), ["seen", "mean"]),
    "gradient_stabilizer": (lambda: GradientStabilizer(), ["seen", "mean", "rms"]),
    "bounded percentile": (
        lambda: Percentile(60, window=7, warmup_steps=2, warmup_max_norm=1.0),
        ["seen", "values"],
    ),
    "bounded z_score": (lambda: ZScore(warmup_steps=5, warmup_max_norm=1.0), ["seen", "mean", "var"]),
    "bounded ema_relative": (lambda: EMARelative(warmup_steps=5, warmup_max_norm=1.0), ["seen", "mean"]),
    "global_warmup": (
        lambda: GlobalWarmup(EMARelative(warmup_steps=1), max_norm=3.0, warmup_steps=5),
        ["seen", "mean", "steps"],
    ),
}
EVERY = pytest.mark.parametrize("name", POLICIES)


def test_no_public_policy_is_left_out() -> None:
    public_policies.assert_none_is_left_out(make() for make, _ in POLICIES.values())


def step(policy: Policy, row: torch.Tensor, state: tuple) -> tuple[torch.Tensor, tuple]:
    return policy(Observation(row, row.isfinite() & (row > 0), torch.ones_like(row)), state)


def norms(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 1 if name == "all_history" else 3, generator=generator).exp().to(dtype)


def restored(state: tuple) -> tuple:
    """Through a file and back, as a checkpoint would."""
    file = io.BytesIO()
    torch.save(state._asdict(), file)
    file.seek(0)
    return type(state)(**torch.load(file, weights_only=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY
def test_names_dtypes_and_first_dimension_are_kept_from_step_to_step(name: str, dtype: torch.dtype) -> None:
    make, fields = POLICIES[name]
    policy, rows = make(), norms(name, dtype)
    state = policy.init(rows[0])
    for row in rows[:10]:
        assert list(state._asdict()) == fields
        assert isinstance(state, tuple)
        for field, tensor in state._asdict().items():
            assert isinstance(tensor, torch.Tensor)
            assert tensor.dtype == (torch.int64 if field in ("seen", "steps") else dtype)
            assert tensor.shape[:1] == (() if field == "steps" else row.shape)
            assert not tensor.requires_grad
        targets, state = step(policy, row, state)
        assert targets.dtype == dtype


@EVERY
def test_a_saved_state_goes_on_bit_for_bit(name: str) -> None:
    policy, rows = POLICIES[name][0](), norms(name)
    state = policy.init(rows[0])
    for row in rows[:20]:
        _, state = step(policy, row, state)
    other = restored(state)
    for row in rows[20:]:
        targets, state = step(policy, row, state)
        again, other = step(policy, row, other)
        gradient_families.same_bits(again, targets)
    for a, b in zip(other, state, strict=True):
        gradient_families.same_bits(a, b)


@pytest.mark.parametrize("name", [n for n, (_, fields) in POLICIES.items() if fields])
def test_forgetting_shows(name: str) -> None:
    """A fresh state in the middle gives another answer: otherwise the test above could not fail."""
    policy, rows = POLICIES[name][0](), norms(name)
    state = policy.init(rows[0])
    for row in rows[:20]:
        _, state = step(policy, row, state)
    targets, _ = step(policy, rows[20], state)
    forgotten, _ = step(policy, rows[20], policy.init(rows[0]))
    assert not torch.equal(targets, forgotten)


@EVERY
def test_state_can_be_sized_without_memory(name: str) -> None:
    policy, rows = POLICIES[name][0](), norms(name)
    planned = policy.init(rows[0].to("meta"))
    real = policy.init(rows[0])
    assert [t.device.type for t in planned] == ["meta"] * len(planned)
    assert [(t.shape, t.dtype) for t in planned] == [(t.shape, t.dtype) for t in real]


@pytest.mark.parametrize("scope", ["global", "layer", "unit"])
@EVERY
def test_state_from_a_file_continues_clip_grad(name: str, scope: str) -> None:
    if name == "all_history" and scope != "global":
        return
    policy = POLICIES[name][0]()
    nets, states = (gradient_families.Net(), gradient_families.Net()), [None, None]
    generator = torch.Generator().manual_seed(1)
    for count in range(12):
        gradients = gradient_families.spikes(list(nets[0].parameters()), count, generator)
        for j, net in enumerate(nets):
            gradient_families.assign(list(net.parameters()), gradients)
            _, states[j] = clip_grad_(net, policy, states[j], scope=scope)
        states[1] = restored(states[1])
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            gradient_families.same_bits(b.grad, a.grad)


def test_a_state_of_more_than_64_megabytes_is_refused_with_its_size_and_a_remedy() -> None:
    weight = nn.Parameter(torch.zeros(10_000, 2))
    weight.grad = torch.ones(10_000, 2)
    expected = 10_000 * (2000 * 4 + 8) / 2**20
    with pytest.raises(ValueError, match=rf"10000 segments .*{expected:.0f} MB.*more than 64 MB.*`window`") as refusal:
        clip_grad_([weight], Percentile(window=2000), scope="unit")
    assert "'unit'" in str(refusal.value)
    gradient_families.same_bits(weight.grad, torch.ones(10_000, 2))
    clip_grad_([weight], Percentile(window=800), scope="unit")  # 31 MB


def test_all_history_refuses_several_segments() -> None:
    with pytest.raises(ValueError, match=r"`window` must be .*several segments, got None .*Use window=1000"):
        clip_grad_(gradient_families.Net(), Percentile(window=None), scope="layer")


@EVERY
def test_policies_are_frozen_values(name: str) -> None:
    make, _ = POLICIES[name]
    policy = make()
    assert policy == make()
    assert hash(policy) == hash(make())
    field = dataclasses.fields(policy)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(policy, field, 3.0)
    assert type(policy).__name__ in repr(policy)


def test_policies_keep_nothing_between_two_series() -> None:
    for make, _ in POLICIES.values():
        policy = make()
        rows = norms("all_history")
        runs = []
        for _ in range(2):
            state, targets = policy.init(rows[0]), []
            for row in rows:
                target, state = step(policy, row, state)
                targets.append(target)
            runs.append(torch.stack(targets))
        gradient_families.same_bits(runs[1], runs[0])
        assert not runs[0].isnan().any()
        assert math.isfinite(float(runs[0][-1]))


@pytest.mark.parametrize(("first", "then"), [("global", "layer"), ("layer", "global"), ("layer", "unit")])
def test_a_state_of_other_segments_is_refused_and_not_stretched(first: str, then: str) -> None:
    net = gradient_families.Net()
    parameters = list(net.parameters())
    gradients = gradient_families.typical(parameters, 0, torch.Generator().manual_seed(0))
    gradient_families.assign(parameters, gradients)
    policy = EMARelative(warmup_steps=1)
    _, state = clip_grad_(net, policy, None, scope=first)
    with pytest.raises(ValueError, match=r"`state` must be "):
        clip_grad_(net, policy, state, scope=then)
    for p, g in zip(parameters, gradients, strict=True):
        gradient_families.same_bits(p.grad, g)
