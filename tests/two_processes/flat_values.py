"""Cases for `launch.py`: tensors in, tensors out, under FSDP1; flat shards against the same model in one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import CustomPolicy
from two_processes.launch import case, counted
from two_processes.zoo import CLOSE, KINDS, fill, same_everywhere, zoo

from lightning_calib import MaxNorm, Percentile, WeightRelative
from lightning_calib.functional.clip import clip_grad_
from lightning_calib.functional.elementwise import centralize_all_, clamp_, clamp_all_
from lightning_calib.functional.exponent_counts import exponent_counts
from lightning_calib.functional.finiteness import look_closer
from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.rescale import rescale_
from lightning_calib.functional.segments import Segments
from lightning_calib.steps.start_distance import StartDistance
from lightning_calib.steps.weight_update import SamplePlan, WeightSample

FULL, NONE = ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD


def model(dtype: torch.dtype, *, channels_last: bool) -> nn.ModuleDict:
    found = zoo(dtype)
    return found.to(memory_format=torch.channels_last) if channels_last else found


def wrapped(module: nn.Module, own: tuple[str, ...], whole: tuple[str, ...], **kinds: Any) -> nn.Module:
    """Some modules have a flat parameter of their own, some are not cut, some are left out."""
    chosen = {id(module[name]): {} for name in own} | {id(module[name]): {"sharding_strategy": NONE} for name in whole}
    policy = CustomPolicy(lambda one: chosen.get(id(one), False))
    kinds = {"auto_wrap_policy": policy, "sharding_strategy": FULL, "use_orig_params": True, **kinds}
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), **kinds)


def pairs(dtype: torch.dtype = torch.float32, seed: int = 1, scale: float = 1.0) -> Iterator[tuple[str, Any, Any]]:
    """The same model twice, whole and cut, with the same gradients, in every way to cut it."""
    ways = {
        "one flat parameter": ((), (), ()),
        "several": (("conv", "large", "back"), (), ()),
        "one of them whole, one left out": (("conv",), ("large",), ("linear",)),
    }
    for name, (own, whole, left) in ways.items():
        for channels_last in (False, True):
            plain, cut = (model(dtype, channels_last=channels_last) for _ in range(2))
            out = [p for one in left for p in cut[one].parameters()]
            cut = wrapped(cut, own, whole, ignored_states=out) if out else wrapped(cut, own, whole)
            fill(plain, seed, scale)
            give(cut, plain)
            yield f"{name}, channels_last={channels_last}", plain, cut


def give(cut: nn.Module, plain: nn.Module) -> None:
    """What torch leaves after a backward pass: a process without a part of a tensor has no gradient of it either."""
    plan, grads = Plan.of(cut), {key: p.grad for key, p in plain.named_parameters()}
    for tensor, flat, name in zip(plan.tensors, plan.flat, plan.names, strict=True):
        grad = grads[name]
        tensor.grad = None
        if grad is not None and (flat is None or tensor.numel()):
            tensor.grad = (grad if flat is None else flat.cut(grad)).clone()


def same_gradients(cut: nn.Module, plain: nn.Module, **close: float) -> None:
    plan, grads = Plan.of(cut), {key: p.grad for key, p in plain.named_parameters()}
    held = [torch.zeros_like(p) if p.grad is None else p.grad for p in plan.tensors]
    for name, found in zip(plan.names, plan.shards.whole(held), strict=True):
        torch.testing.assert_close(found, grads[name], **close, msg=lambda text, name=name: f"{name}: {text}")


def plans(cut: nn.Module, plain: nn.Module) -> tuple[Plan, Plan]:
    """In the same order."""
    return Plan.of(plain), Plan.of(cut)


@case
def flat_shards_have_the_names_shapes_and_norms_of_the_whole() -> None:
    for way, plain, cut in pairs(torch.float64):
        a, b = plans(cut, plain)
        assert (b.names, b.layers, b.transposed, b.whole_shapes, b.unit_counts) == (
            a.names,
            a.layers,
            a.transposed,
            a.whole_shapes,
            a.unit_counts,
        ), way
        assert any(tensor.shape != shape for tensor, shape in zip(b.tensors, b.whole_shapes, strict=True))
        measure(b, b.gradients(), units=True)  # where the pieces lie is found out once
        for kind in KINDS:
            for units in (False, True):
                for values in ("gradients", "weights"):
                    each = [plan.gradients() if values == "gradients" else list(plan.tensors) for plan in (a, b)]
                    expected = measure(a, each[0], kind, units)
                    with counted() as calls:
                        found = measure(b, each[1], kind, units)
                    assert calls == {"all_reduce": 1}, (way, calls)
                    told = f"{way}, {kind}, {units}, {values}: "
                    torch.testing.assert_close(
                        found.pieces, expected.pieces, rtol=1e-12, atol=0, msg=lambda text, told=told: told + text
                    )
                    same_everywhere(found.pieces)
        for scope in ("global", "layer", "parameter", "unit"):
            assert Segments.of(a, scope).digest == Segments.of(b, scope).digest


@case
def flat_shards_that_overflow_or_are_bad_on_one_process_are_seen_by_all() -> None:
    for way, plain, cut in pairs(torch.float32, 1, 1e25):
        a, b = plans(cut, plain)
        for units in (False, True):
            found, expected = (measure(plan, plan.gradients(), 2.0, units) for plan in (b, a))
            assert found.pieces.isfinite().all(), way
            torch.testing.assert_close(found.norm, expected.norm, **CLOSE)
    for way, plain, cut in pairs():
        plan = plans(cut, plain)[1]
        i = plan.names.index("large.weight")
        if distributed.get_rank() == 1:
            plan.tensors[i].grad.view(-1)[-3:-1] = math.nan
        norms = measure(plan, plan.gradients()).tensors
        assert [j for j, norm in enumerate(norms) if not norm.isfinite()] == [i], way
        told = look_closer(plan, plan.gradients())
        assert [str(one) for one in told] in (
            ["large.weight (2 NaN and 0 Inf of 15,400 elements)"],
            ["large.weight (1 NaN and 0 Inf of 15,400 elements)"],  # the mean of two copies
        )


@case
def flat_shards_are_rescaled_clamped_and_centralised_in_place() -> None:
    generator = torch.Generator().manual_seed(2)
    for _, plain, cut in pairs():
        a, b = plans(cut, plain)
        for count in (1, len(a.tensors), a.unit_starts[-1]):
            factors = torch.rand(count, generator=generator)
            factors[::3] = factors[::3] if count == 1 else 1.0
            rescale_(a, a.gradients(), factors)
            rescale_(b, b.gradients(), factors)
            same_gradients(cut, plain, rtol=0, atol=0)
        bounds = torch.rand(len(a.tensors), generator=generator)
        for plan in (a, b):
            clamp_(plan.tensors[:4], 0.3)
            clamp_all_(plan, bounds)
        same_gradients(cut, plain, rtol=0, atol=0)
        members = [i for i, shape in enumerate(a.whole_shapes) if len(shape) > 1]
        for plan in (a, b):
            centralize_all_(plan, members)
        same_gradients(cut, plain, rtol=1e-5, atol=1e-6)


@case
def magnitudes_updates_and_distances_of_flat_shards_are_those_of_the_whole() -> None:
    for way, plain, cut in pairs():
        a, b = plans(cut, plain)
        owners = list(range(len(a.tensors)))
        counts = [exponent_counts(plan, plan.gradients(), owners, -30, 10) for plan in (b, a)]
        if "whole" not in way:  # what each process holds as a whole counts as the mean of its copies, too
            torch.testing.assert_close(*counts, rtol=0, atol=0)
        samples = [WeightSample(SamplePlan(plan.tensors, plan.flat)) for plan in (a, b)]
        travels = [StartDistance(Segments.of(plan, "global"), "DoG") for plan in (a, b)]
        for module in (plain, cut):
            torch.optim.SGD(module.parameters(), lr=0.1).step()
        torch.testing.assert_close(tuple(samples[1].moved()), tuple(samples[0].moved()), rtol=1e-5, atol=0)
        torch.testing.assert_close(travels[1].distances(), travels[0].distances(), **CLOSE)
        with counted() as calls:
            saved = travels[1].saved()
        assert not calls, "a process that saves alone must not wait for the others"
        torch.testing.assert_close(saved, travels[0].saved(), rtol=0, atol=0)
        again = StartDistance(Segments.of(b, "global"), "DoG")
        again.restore(saved)
        torch.testing.assert_close(again.distances(), travels[1].distances(), rtol=0, atol=0)


@case
def the_door_takes_fsdp1s_root_module_and_refuses_what_does_not_know_the_shards() -> None:
    for policy in (MaxNorm(3.0), Percentile(60, window=8, warmup_steps=1), WeightRelative(0.9)):
        for scope in ("global", "layer", "parameter", "unit"):
            *_, (_, plain, cut) = pairs()
            expected, _ = clip_grad_(plain, policy, scope=scope)
            report, _ = clip_grad_(cut, policy, scope=scope)
            torch.testing.assert_close(report, expected, rtol=1e-5, atol=1e-6)
            assert list(report.names) == list(expected.names)
            same_gradients(cut, plain, rtol=1e-5, atol=1e-6)
    *_, (_, _, cut) = pairs()
    inside = cut.module
    for source in (list(cut.parameters()), torch.optim.SGD(cut.parameters(), lr=1.0), inside):
        with pytest.raises(ValueError, match=r"flat shards, and only its root module knows where. Pass that module"):
            clip_grad_(source, 1.0)
    with (
        FullyShardedDataParallel.summon_full_params(cut),
        pytest.raises(ValueError, match="outside of forward, backward and `summon_full_params`"),
    ):
        clip_grad_(cut, 1.0)
    together = wrapped(zoo(), (), (), use_orig_params=False)
    with pytest.raises(ValueError, match=r"many parameters into one.*`use_orig_params=True`"):
        clip_grad_(together, 1.0)
    alone = FullyShardedDataParallel(nn.Linear(3, 2), distributed.new_subgroups(1)[0], use_orig_params=True,
                                     device_id=torch.device("cpu"))  # fmt: skip
    alone(torch.ones(1, 3)).sum().backward()
    report, _ = clip_grad_(alone, 1.0)
    torch.testing.assert_close(report.norms, torch.tensor([8.0]).sqrt())


@case
def private_names_of_fsdp1_that_are_not_as_known_are_refused_with_torchs_version() -> None:
    cut = wrapped(zoo(), (), ())
    flat: Tensor = cut._handle.flat_param
    infos = flat._shard_param_infos
    for name in ("_shapes", "_strides", "_shard_param_infos", "_is_grad_none_mask"):
        kept = getattr(flat, name)
        delattr(flat, name)
        with pytest.raises(ValueError, match=rf"torch {torch.__version__[:4]}.*there is no `FlatParameter.{name}`"):
            Plan.of(cut)
        setattr(flat, name, kept)
    flat._shard_param_infos = tuple((info.in_shard,) for info in infos)
    with pytest.raises(ValueError, match=r"there is no `_ShardParamInfo.in_shard`"):
        Plan.of(cut)
    flat._shard_param_infos = infos
    kept, cut._handle = cut._handle, object()
    with pytest.raises(ValueError, match=r"there is no `FlatParamHandle.flat_param`"):
        Plan.of(cut)
    cut._handle = kept
    assert Plan.of(cut).cut
