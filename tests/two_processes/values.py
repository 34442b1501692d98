"""Cases for `launch.py`: tensors in, tensors out; DTensors of every placement against the same in one process."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.newer import newer
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from two_processes.launch import case, counted, everywhere, whole
from two_processes.zoo import (
    CLOSE,
    KINDS,
    fill,
    meshes,
    pair,
    placed,
    places,
    same_everywhere,
    same_gradients,
    spread,
    zoo,
)

from lightning_calib import MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional.clip import clip_grad_
from lightning_calib.functional.elementwise import centralize_all_, clamp_
from lightning_calib.functional.finiteness import look_closer, not_finite
from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.rescale import rescale_
from lightning_calib.functional.segments import Segments
from lightning_calib.policies.ema_relative import EMARelative
from lightning_calib.steps.start_distance import StartDistance
from lightning_calib.steps.weight_update import SamplePlan, WeightSample

DTensor = newer("torch.distributed.tensor", "DTensor", "torch 2.5")
Partial = newer("torch.distributed.tensor", "Partial", "torch 2.5")
Replicate = newer("torch.distributed.tensor", "Replicate", "torch 2.5")
Shard = newer("torch.distributed.tensor", "Shard", "torch 2.5")
CommDebugMode = newer("torch.distributed.tensor.debug", "CommDebugMode", "torch 2.5")


@case
def norms_are_the_tensors_and_the_units_and_take_one_collective_per_mesh() -> None:
    for name, place in places().items():
        plain, ours = pair(place)
        a, b = Plan.of(plain), Plan.of(ours)
        measure(b, b.gradients(), units=True)  # where the pieces lie is found out once
        for kind in KINDS:
            for units in (False, True):
                expected = measure(a, a.gradients(), kind, units)
                with CommDebugMode() as debug, counted() as calls:
                    found = measure(b, b.gradients(), kind, units)
                told = f"{name}, {kind}, units={units}: "
                assert calls == {"all_reduce": meshes(ours)}, told + str(calls)
                assert debug.get_total_counts() == meshes(ours), told + str(debug.get_comm_counts())
                torch.testing.assert_close(
                    found.pieces, expected.pieces, **CLOSE, msg=lambda text, told=told: told + text
                )
                torch.testing.assert_close(found.tensors, expected.tensors, **CLOSE)
                for scope in ("global", "layer", "parameter", "unit") if units else ():
                    folded = Segments.of(b, scope).fold(found)
                    torch.testing.assert_close(folded, Segments.of(a, scope).fold(expected), **CLOSE)
                same_everywhere(found.pieces)


@case
def a_shard_of_nothing_and_a_missing_gradient_do_not_hang() -> None:
    plain, ours = pair(places()["rows"])
    assert any(p.to_local().numel() == 0 for p in ours.parameters()) == (distributed.get_rank() == 1)
    for module in (plain, ours):
        module["large"].weight.grad = module["conv"].bias.grad = None
    for kind in KINDS:
        for units in (False, True):
            a, b = Plan.of(plain), Plan.of(ours)
            found = measure(b, b.gradients(), kind, units).pieces
            torch.testing.assert_close(found, measure(a, a.gradients(), kind, units).pieces, **CLOSE)


@case
def half_types_accumulate_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        plain, ours = zoo(dtype), placed(zoo(dtype), places()["mixed"])
        for module in (plain, ours):
            fill(module, 1, 1e4)  # the squares, and the norms, are beyond float16
        a, b = Plan.of(plain), Plan.of(ours)
        for units in (False, True):
            found = measure(b, b.gradients(), 2.0, units).pieces
            assert found.dtype == torch.float32
            assert bool(found.isfinite().all())
            torch.testing.assert_close(found, measure(a, a.gradients(), 2.0, units).pieces, **CLOSE)


@case
def norms_whose_squares_overflow_are_read_again_by_all() -> None:
    """On one process a row of the large matrix has overflowed, on the other nothing has."""
    for name, place in places().items():
        for dtype, scale, kind in ((torch.float32, 1e25, 2.0), (torch.float64, 1e200, 2.0), (torch.float32, 1e15, 3.0)):
            plain, ours = zoo(dtype), placed(zoo(dtype), place)
            for module in (plain, ours):
                fill(module, 1)
                grad = module["large"].weight.grad
                huge = torch.ones(77, 200, dtype=dtype)
                huge[3] *= scale
                grad.mul_(spread(huge, grad.device_mesh, grad.placements) if isinstance(grad, DTensor) else huge)
            a, b = Plan.of(plain), Plan.of(ours)
            for units in (False, True):
                expected = measure(a, a.gradients(), kind, units)
                measure(b, b.gradients(), math.inf, units)
                with counted() as calls:
                    found = measure(b, b.gradients(), kind, units)
                assert calls == {"all_reduce": 3 * meshes(ours)}, f"{name}: {calls}"
                assert found.pieces.isfinite().all()
                torch.testing.assert_close(found.pieces, expected.pieces, **CLOSE)
                torch.testing.assert_close(found.norm, expected.norm, **CLOSE)
                same_everywhere(found.pieces)


@case
def what_is_not_finite_on_one_process_is_seen_by_all() -> None:
    for name, place in places().items():
        for bad in (math.nan, math.inf):
            _, ours = pair(place)
            weight = ours["large"].weight
            held = weight.grad.to_local() if isinstance(weight, DTensor) else weight.grad
            if distributed.get_rank() == 1:
                held[1, 2] = held[2, 3] = bad
            plan = Plan.of(ours)
            i = plan.names.index("large.weight")
            for kind in KINDS:
                for units in (False, True):
                    found = measure(plan, plan.gradients(), kind, units)
                    assert [j for j, norm in enumerate(found.tensors) if not norm.isfinite()] == [i], (name, kind)
                    same_everywhere(found.pieces)
                    if kind == math.inf and not units:
                        assert bool(found.tensors[i].isnan()) == math.isnan(bad)
            told = look_closer(plan, plan.gradients())
            assert len(set(everywhere(str(told)))) == 1
            assert [one.name for one in told] == ["large.weight"]
            copies = not isinstance(weight, DTensor) or name == "copies"
            counts = (told[0].nan, told[0].inf) if math.isnan(bad) else (told[0].inf, told[0].nan)
            assert counts == (1 if copies else 2, 0), (name, counts)
            assert told[0].elements == 200 * 77
            assert not_finite((key, p.grad) for key, p in ours.named_parameters()) == ["large.weight"]


@case
def factors_are_written_to_what_is_held_and_one_keeps_the_bits() -> None:
    generator = torch.Generator().manual_seed(2)
    for place in places().values():
        plain, ours = pair(place)
        a, b = Plan.of(plain), Plan.of(ours)
        for count in (1, len(a.tensors), a.unit_starts[-1]):
            factors = torch.rand(count, generator=generator)
            factors[::3] = factors[::3] if count == 1 else 1.0
            rescale_(a, a.gradients(), factors)
            rescale_(b, b.gradients(), factors)
            same_gradients(ours, plain, rtol=0, atol=0)


POLICIES = {
    "fixed": MaxNorm(3.0),
    "percentile": Percentile(60, window=8, warmup_steps=3),
    "zscore": ZScore(1.0, 0.9, 4),
    "own average": EMARelative(1.05, 0.9, 3),
    "weights": WeightRelative(0.9),
}


@case
def every_policy_at_every_scope_decides_as_one_process_does() -> None:
    place = places()["mixed"]
    for policy in POLICIES.values():
        for scope in ("global", "layer", "parameter", "unit"):
            plain, ours = zoo(), placed(zoo(), place)
            state, other, clipped = None, None, []
            for step, gain in enumerate((1.0, 0.9, 1.1, 1.0, 0.01, 1.0, 5.0, 1.0)):
                for module in (plain, ours):
                    fill(module, step, gain)
                expected, state = clip_grad_(plain, policy, state, scope=scope)
                with counted() as calls:
                    report, other = clip_grad_(ours, policy, other, scope=scope)
                assert calls == {"all_reduce": 2 if policy.needs_weights else 1}
                torch.testing.assert_close(report, expected, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(tuple(other), tuple(state), rtol=1e-5, atol=1e-6)
                same_gradients(ours, plain, rtol=1e-5, atol=1e-6)
                same_everywhere(tuple(other))
                clipped.append(report.clipped)
            assert torch.stack(clipped).any()
            assert not torch.stack(clipped).all()


@case
def the_door_takes_an_optimizer_with_groups_of_both_kinds() -> None:
    plain, ours = pair(places()["mixed"])
    optimizers = []
    for module in (plain, ours):
        tensors = list(module.parameters())
        optimizers.append(torch.optim.SGD([{"params": tensors[:4]}, {"params": tensors[4:]}], lr=1.0))
    for kind in KINDS:
        expected, _ = clip_grad_(optimizers[0], MaxNorm(1.5), scope="group", norm_type=kind)
        report, _ = clip_grad_(optimizers[1], MaxNorm(1.5), scope="group", norm_type=kind)
        assert report.clipped.all() or kind > 1
        torch.testing.assert_close(report, expected, rtol=1e-5, atol=1e-6)
        same_gradients(ours, plain, rtol=1e-5, atol=1e-6)


@case
def partial_gradients_are_summed_and_partial_parameters_refused() -> None:
    mesh = init_device_mesh("cpu", (2,))
    parameter = nn.Parameter(spread(torch.zeros(3), mesh, [Replicate()]))
    mine = torch.tensor([1.0, 2.0, 3.0]) * (1 + distributed.get_rank())
    parameter.grad = DTensor.from_local(mine, mesh, [Partial()])
    report, _ = clip_grad_([parameter], MaxNorm(1.0))
    total = torch.tensor([3.0, 6.0, 9.0])
    torch.testing.assert_close(report.norms, total.norm().reshape(1))
    torch.testing.assert_close(whole(parameter.grad), total / total.norm())
    assert parameter.grad.placements == (Replicate(),)
    term = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    with pytest.raises(ValueError, match=r"a term of a sum.*redistribute"):
        clip_grad_([nn.Parameter(term)], MaxNorm(1.0))


@case
def parameters_of_a_mesh_elsewhere_are_refused() -> None:
    mesh = DeviceMesh("cpu", [0])
    parameter = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Shard(0)]))
    if distributed.get_rank() == 0:
        assert Plan.of([parameter]).shards is not None
        return
    with pytest.raises(ValueError, match=r"to which this process does not belong.*Give an optimizer parameters"):
        clip_grad_([parameter], MaxNorm(1.0))


@case
def elements_are_clamped_and_centralised() -> None:
    for name, place in places().items():
        plain, ours = pair(place)
        clamp_(plain.parameters(), 0.7)
        clamp_(ours.parameters(), torch.tensor(0.7))
        same_gradients(ours, plain, rtol=0, atol=0)
        a, b = Plan.of(plain), Plan.of(ours)
        _ = [b.shards.places, b.shards.total_units(torch.zeros(sum(one.numel() for one in b.shards.places)).double())]
        members = [i for i, tensor in enumerate(a.tensors) if tensor.ndim > 1]
        centralize_all_(a, members)
        with counted() as calls:
            centralize_all_(b, members)
        # Rows are whole on one process, but not those of the transposed convolutions, which lie along the columns.
        assert calls.total() == (0 if name == "copies" else meshes(ours)), (name, calls)
        same_gradients(ours, plain, rtol=1e-5, atol=1e-6)


@case
def the_update_is_that_of_whole_weights() -> None:
    for place in places().values():
        plain, ours = pair(place)
        samples = [WeightSample(SamplePlan(Plan.of(module).tensors)) for module in (plain, ours)]
        for module in (plain, ours):
            torch.optim.SGD(module.parameters(), lr=0.1).step()
        with counted() as calls:
            found = samples[1].moved()
        assert calls == {"all_reduce": meshes(ours)}
        torch.testing.assert_close(tuple(found), tuple(samples[0].moved()), rtol=1e-5, atol=0)
        same_everywhere(tuple(found))


@case
def a_large_update_is_estimated_from_all_shards() -> None:
    mesh = init_device_mesh("cpu", (2,))
    start = torch.randn(300, 1000, generator=torch.Generator().manual_seed(3))
    weight = nn.Parameter(spread(start, mesh, [Shard(0)]))
    sample = WeightSample(SamplePlan((weight,)))
    with torch.no_grad():
        weight += 0.01 * weight * weight
    norm, ratio = sample.moved()[:2]
    moved = (0.01 * start.square()).norm()
    # Of 150,000 elements a process samples 50,000: the standard error of this norm is below 0.5 %.
    torch.testing.assert_close(norm, moved.double(), rtol=0.02, atol=0)
    torch.testing.assert_close(ratio, (moved / start.norm()).double(), rtol=0.02, atol=0)


@case
def the_way_from_the_start_is_measured_and_saved_whole() -> None:
    for place in places().values():
        plain, ours = pair(place)
        travels = [StartDistance(Segments.of(Plan.of(module), "global"), "DoG") for module in (plain, ours)]
        for module in (plain, ours):
            torch.optim.SGD(module.parameters(), lr=0.1).step()
        torch.testing.assert_close(travels[1].distances(), travels[0].distances(), **CLOSE)
        torch.testing.assert_close(travels[1].start_norms, travels[0].start_norms, **CLOSE)
        with counted() as calls:
            saved = travels[1].saved()
        assert not calls, "a process that saves alone must not wait for the others"
        torch.testing.assert_close(saved, travels[0].saved(), rtol=0, atol=0)
        again = StartDistance(Segments.of(Plan.of(ours), "global"), "DoG")
        again.restore(saved)
        torch.testing.assert_close(again.distances(), travels[1].distances(), rtol=0, atol=0)
        torch.testing.assert_close(again.saved(), saved, rtol=0, atol=0)
