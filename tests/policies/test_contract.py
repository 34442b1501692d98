"""The contract of every policy at every scope on every family of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracles
import pytest
import torch
from helpers import gradient_families, public_policies
from helpers.properties import BOUNDED, runs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_calib import EMARelative, GradientStabilizer, MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Observation, Policy, judge
from lightning_calib.policies.global_warmup import GlobalWarmup

SCOPES = ["global", "group", "layer", "parameter", "unit"]
POLICIES: dict[str, Callable[[], Policy]] = {
    "max_norm": lambda: MaxNorm(4.0),
    "percentile": lambda: Percentile(60, window=4, warmup_steps=2),
    "z_score_paper": lambda: ZScore(z_max=0.5, decay=0.9, warmup_steps=2, robust=False),
    "z_score_robust": lambda: ZScore(z_max=0.5, decay=0.9, warmup_steps=2),
    "ema_relative": lambda: EMARelative(factor=1.0, decay=0.9, warmup_steps=2),
    "percentile, bounded": lambda: Percentile(60, window=4, warmup_steps=2, warmup_max_norm=4.0),
    "z_score_paper, bounded": lambda: ZScore(0.5, 0.9, warmup_steps=2, robust=False, warmup_max_norm=4.0),
    "z_score_robust, bounded": lambda: ZScore(0.5, 0.9, warmup_steps=2, warmup_max_norm=4.0),
    "ema_relative, bounded": lambda: EMARelative(1.0, 0.9, warmup_steps=2, warmup_max_norm=4.0),
    "gradient_stabilizer": lambda: GradientStabilizer(),
    "weight_relative": lambda: WeightRelative(factor=1.0),
    "global_warmup": lambda: GlobalWarmup(EMARelative(1.0, 0.9, warmup_steps=1), max_norm=5.0, warmup_steps=3),
    "all_history": lambda: Percentile(60, window=None, warmup_steps=0),
}
CELLS = [(p, s) for p in POLICIES for s in SCOPES if p != "all_history" or s == "global"]
STEPS = 7


def test_no_public_policy_is_left_out() -> None:
    public_policies.assert_none_is_left_out(make() for make in POLICIES.values())


def tolerance(gradient: Tensor) -> dict[str, float]:
    """One rounding of the product in the gradient's own dtype.

    Subnormal numbers of half types are coarser; duplicates of a sparse gradient, of order 1, are added after it.
    """
    info = torch.finfo(gradient.dtype)
    atol = 8 * info.eps if gradient.is_sparse else info.smallest_normal * info.eps if info.bits == 16 else 0.0
    return {"rtol": 2 * info.eps, "atol": atol}


def copies(state: tuple) -> list[Tensor]:
    return [tensor.clone() for tensor in state]


@pytest.mark.parametrize("family", gradient_families.FAMILIES)
@pytest.mark.parametrize(("policy_name", "scope"), CELLS)
def test_contract(policy_name: str, scope: str, family: str) -> None:
    make, fill = gradient_families.FAMILIES[family]
    net = make()
    optimizer = gradient_families.two_groups(net)
    parameters, labels, count = oracles.label_elements(net, scope, optimizer)
    wide = any(p.dtype == torch.float64 for p in parameters)
    source, policy, state = optimizer if scope == "group" else net, POLICIES[policy_name](), None
    weights = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        gradients = fill(parameters, step, generator)
        gradient_families.assign(parameters, gradients)
        held = None if state is None else copies(state)
        report, new = clip_grad_(source, policy, state, scope=scope)

        for tensor in report:  # shapes and dtypes
            assert tensor.shape == (count,)
        assert report.observed.dtype == torch.bool
        assert {report.norms.dtype, report.targets.dtype, report.coefficients.dtype} == {
            torch.float64 if wide else torch.float32
        }

        arrays = [None if g is None else oracles.to_numpy(g) for g in gradients]
        norms = torch.tensor(oracles.segment_norms(arrays, labels, count), dtype=torch.float64)
        # float32: sums of a few hundred squares.
        torch.testing.assert_close(report.norms.double(), norms, rtol=1e-12 if wide else 1e-6, atol=0.0, equal_nan=True)
        assert report.observed.tolist() == [math.isfinite(n) and n > 0 for n in norms.tolist()]

        if held is not None:  # purity, and the mask on what is remembered
            for tensor, old, now in zip(state, held, new, strict=True):
                gradient_families.same_bits(tensor, old)
                if now.ndim and now.shape[0] == count and now.shape == old.shape:
                    gradient_families.same_bits(now[~report.observed], old[~report.observed])
        assert all(not tensor.is_floating_point() or not tensor.isnan().any() for tensor in new)
        state = new

        assert (report.coefficients[~report.observed] == 1).all()
        assert ((report.coefficients >= 0) & (report.coefficients <= 1)).all()
        for parameter, label, gradient, weight in zip(parameters, labels, gradients, weights, strict=True):
            gradient_families.same_bits(parameter.detach(), weight)
            if gradient is None:
                assert parameter.grad is None
                continue
            assert parameter.grad.dtype == parameter.dtype
            assert parameter.grad.layout == gradient.layout
            before, after = gradient_families.dense(gradient), gradient_families.dense(parameter.grad)
            factor = report.coefficients[torch.from_numpy(label)]
            gradient_families.same_bits(after[factor == 1], before[factor == 1])
            expected = (before.double() * factor.double()).to(parameter.dtype)
            torch.testing.assert_close(after, expected, equal_nan=True, **tolerance(gradient))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("policy_name", [p for p in POLICIES if p != "all_history"])
def test_the_contract_is_seen_firing_and_not_firing(policy_name: str, scope: str) -> None:
    """Without this the test above could pass on a policy that never acts."""
    net = gradient_families.Net()
    parameters, policy, state, clipped = list(net.parameters()), POLICIES[policy_name](), None, []
    source = gradient_families.two_groups(net) if scope == "group" else net
    generator = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        quiet = 0.01 if step in (4, 6) else 1.0
        gradients = gradient_families.spikes(parameters, step, generator)
        gradient_families.assign(parameters, [quiet * g for g in gradients])
        report, state = clip_grad_(source, policy, state, scope=scope)
        clipped.append(report.clipped)
    assert torch.stack(clipped).any()
    assert not torch.stack(clipped).all()


JUNK = st.sampled_from([0.0, math.nan, math.inf, -math.inf])
COLUMNS = 3
# Norms over the whole range of their type, now and then many alike; a mask under which some are not seen.
NORM = st.one_of(st.floats(0, exclude_min=True, allow_infinity=False), st.floats(0.1, 10.0), st.just(1.0))
ROW = st.tuples(
    st.lists(NORM, min_size=COLUMNS, max_size=COLUMNS), st.lists(st.booleans(), min_size=COLUMNS, max_size=COLUMNS)
)
ROWS = runs(ROW, 12).map(
    lambda rows: (torch.tensor([row for row, _ in rows], dtype=torch.float64), torch.tensor([seen for _, seen in rows]))
)
EVERY_POLICY = pytest.mark.parametrize("policy_name", POLICIES)


def rows_for(policy_name: str, rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The whole history is kept of one segment only."""
    return (rows[0][:, :1], rows[1][:, :1]) if policy_name == "all_history" else rows


def run(policy: Policy, norms: Tensor, seen: Tensor, junk: float) -> tuple[Tensor, tuple]:
    """Targets where seen (-1 elsewhere) and the last state."""
    state, targets = policy.init(norms[0]), []
    for row, mask in zip(norms, seen, strict=True):
        shown = torch.where(mask, row, junk)
        target, state = policy(Observation(shown, mask, torch.ones_like(row)), state)
        targets.append(torch.where(mask, target, -1.0))
    return torch.stack(targets), state


@EVERY_POLICY
@BOUNDED
@given(rows=ROWS)
def test_coefficients_and_state_are_numbers_whatever_the_norms(policy_name: str, rows: tuple[Tensor, Tensor]) -> None:
    policy, (norms, seen) = POLICIES[policy_name](), rows_for(policy_name, rows)
    state = policy.init(norms[0])
    for row, mask in zip(norms, seen, strict=True):
        observation = Observation(torch.where(mask, row, math.nan), mask, torch.ones_like(row))
        clipped, normalised = (judge(policy, observation, state, clip=clip)[0] for clip in (True, False))
        assert (clipped.targets[mask] >= 0).all()
        assert ((clipped.coefficients >= 0) & (clipped.coefficients <= 1)).all()
        assert ((normalised.coefficients >= 0) & normalised.coefficients.isfinite()).all()
        assert (normalised.coefficients[~mask] == 1).all()
        _, state = policy(observation, state)
        assert all(not tensor.is_floating_point() or not tensor.isnan().any() for tensor in state)


@EVERY_POLICY
@BOUNDED
@given(rows=ROWS, junk=JUNK)
def test_what_is_not_observed_reaches_nothing(policy_name: str, rows: tuple[Tensor, Tensor], junk: float) -> None:
    """Neither another segment's target nor any state, bit for bit, whatever stands there."""
    policy, (norms, seen) = POLICIES[policy_name](), rows_for(policy_name, rows)
    targets, state = run(policy, norms, seen, junk)
    expected, state_expected = run(policy, norms, seen, 1.5)
    gradient_families.same_bits(targets, expected)
    for actual, wanted in zip(state, state_expected, strict=True):
        gradient_families.same_bits(actual, wanted)


@pytest.mark.parametrize("policy_name", [p for p in POLICIES if p not in ("all_history", "global_warmup")])
@BOUNDED
@given(rows=ROWS)
def test_segments_are_judged_alone(policy_name: str, rows: tuple[Tensor, Tensor]) -> None:
    """All together, or each by itself with its unseen steps left out: the same bits."""
    policy, (norms, seen) = POLICIES[policy_name](), rows
    targets, state = run(policy, norms, seen, 0.0)
    for k in range(COLUMNS):
        mask = seen[:, k]
        if not mask.any():
            continue
        alone, last = run(policy, norms[mask][:, [k]], torch.ones(int(mask.sum()), 1, dtype=torch.bool), 0.0)
        gradient_families.same_bits(targets[mask][:, [k]], alone)
        for together, single in zip(state, last, strict=True):
            gradient_families.same_bits(together[[k]], single)


@EVERY_POLICY
@BOUNDED
@given(rows=ROWS)
def test_observation_and_state_are_not_modified(policy_name: str, rows: tuple[Tensor, Tensor]) -> None:
    policy, (norms, seen) = POLICIES[policy_name](), rows_for(policy_name, rows)
    state = policy.init(norms[0])
    for row, mask in zip(norms, seen, strict=True):
        observation = Observation(torch.where(mask, row, math.nan), mask, torch.ones_like(row))
        held = [t.clone() for t in (*observation, *state)]
        versions = [t._version for t in (*observation, *state)]
        targets, new = policy(observation, state)
        assert versions == [t._version for t in (*observation, *state)]
        for actual, wanted in zip((*observation, *state), held, strict=True):
            gradient_families.same_bits(actual, wanted)
        assert targets.shape == row.shape
        assert targets.dtype == row.dtype
        assert not any(targets.data_ptr() == t.data_ptr() for t in (*observation, *state, *new) if t.numel())
        state = new
