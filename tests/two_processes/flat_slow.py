"""Cases for `launch.py` that take long: FSDP1's strategies, every policy at every scope, and its other forms."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import FSDPStrategy as FabricFSDP
from lightning.pytorch.plugins.precision import FSDPPrecision
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from two_processes.fits import CALLBACKS, RULES, Watch
from two_processes.flat import NEAR, STEPS, Saves, Wide, alike, flat
from two_processes.launch import four, slow
from two_processes.run import PLAIN, Make, Run, Shared, network, on_the_cpu

import lightning_calib as calib

SCOPES = ("global", "group", "layer", "parameter", "unit")
POLICIES = {
    "fixed": lambda: 0.2,
    "percentile": lambda: calib.Percentile(60, 8, 2),
    "zscore": lambda: calib.ZScore(1.0, 0.9, 2),
    "own average": lambda: calib.EMARelative(1.05, 0.9, 2),
    "weights": lambda: calib.WeightRelative(0.1),
}
GRID: dict[str, Make] = {
    f"{name} by {scope}": lambda policy=policy, scope=scope: [calib.GradientClip(policy(), scope=scope), Watch()]
    for name, policy in POLICIES.items()
    for scope in SCOPES
}
GRID |= {
    f"normalised by {scope}": lambda scope=scope: [calib.GradientNormalize(0.3, scope=scope), Watch()]
    for scope in SCOPES
}
GRID |= {
    f"{kind}-norm by {scope}": lambda kind=kind, scope=scope: [calib.GradientClip(0.2, scope=scope, norm_type=kind)]
    for kind in (1.0, 3.0, float("inf"))
    for scope in SCOPES
}


@cache
def in_one(name: str) -> Run:
    return Run("", {**GRID, **CALLBACKS}[name], Wide(), STEPS)


def _in_every_way(strategy: str) -> None:
    for name, make in {**GRID, **CALLBACKS}.items():
        run = flat(make, options={"sharding_strategy": strategy})
        try:
            run.same_as(in_one(name), **NEAR)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@slow
def every_callback_at_every_scope_under_full_shard() -> None:
    _in_every_way("FULL_SHARD")


@slow
def every_callback_at_every_scope_under_shard_grad_op() -> None:
    _in_every_way("SHARD_GRAD_OP")


@slow
def every_callback_at_every_scope_under_no_shard() -> None:
    _in_every_way("NO_SHARD")


@slow
def every_rule_under_flat_shards() -> None:
    for rule in RULES.values():
        run = alike(lambda rule=rule: [calib.LearningRateControl(rule())], partial(Wide, PLAIN))
        assert run.rows.values("calib/lr_effective") != run.rows.values("calib/lr")


@slow
def one_flat_parameter_for_all_and_accumulation_under_flat_shards() -> None:
    for name, make in CALLBACKS.items():
        try:
            alike(make, options={"auto_wrap_policy": None}, accumulate_grad_batches=2)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


class Half(FSDPPrecision):
    """float16 with torch's sharded GradScaler, on the CPU."""

    mixed_precision_config = MixedPrecision(param_dtype=torch.float16, reduce_dtype=torch.float16)

    def __init__(self, scale: float) -> None:
        super().__init__("32-true")
        self.precision = "16-mixed"
        self.scaler = ShardedGradScaler("cpu", init_scale=scale)

    def forward_context(self) -> Any:
        return nullcontext()


class Halved(Shared):
    wide = torch.float16

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx).float()


@slow
def a_sharded_scaler_under_flat_shards() -> None:
    for name in ("GradientClip", "several"):
        one = Run("", CALLBACKS[name], Shared(), STEPS)
        run = flat(CALLBACKS[name], Halved(), options={"precision_plugin": Half(2.0**10)})
        # Eleven bits per number, in other sums.
        torch.testing.assert_close(
            run.rows.values("calib/grad_norm_before"), one.rows.values("calib/grad_norm_before"), rtol=0.02, atol=0.02
        )
        torch.testing.assert_close(run.weights, one.weights, rtol=0.02, atol=0.02)
    run = flat(CALLBACKS["several"], Halved(), options={"precision_plugin": Half(2.0**18)}, log_every_n_steps=1)
    assert run.rows.values("calib/loss_scale")[0] == 2.0**18  # it overflows on all, and comes down
    assert run.rows.values("calib/loss_scale")[-1] < 2.0**18
    assert run.rows.values("calib/skipped_total")[-1] > 0
    assert run.rows.values("calib/nonfinite_total")[-1] == 0
    assert all(bool(weight.isfinite().all()) for weight in run.weights)


@slow
def a_sharded_checkpoint_of_flat_shards_resumes_exactly() -> None:
    def make(*more: Any) -> list[Any]:
        return [calib.NonFiniteGuard("skip"), calib.AdaGC(warmup_steps=3), calib.AGC(0.1), Watch(), *more]

    options = {"state_dict_type": "sharded"}
    path = str(Path("..", "sharded.ckpt").resolve())  # of both
    straight = flat(lambda: make(Saves(path)), options=options)
    distributed.barrier()
    rest = flat(make, options=options, ckpt_path=path)
    straight.rows.rows = [(step, row) for step, row in straight.rows.rows if step >= 4]
    rest.same_as(straight, rtol=0, atol=0)


@four
def hybrid_shards_on_four_processes_are_summed_over_the_group_that_shares_them() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    for strategy in ("HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"):
        for name, make in CALLBACKS.items():
            try:
                alike(make, options={"sharding_strategy": strategy, "device_mesh": mesh})
            except AssertionError as error:
                raise AssertionError(f"{strategy}, {name}: {error}") from error


@four
def every_callback_under_flat_shards_on_four_processes() -> None:
    for make in CALLBACKS.values():
        alike(make)


class FabricFlat(FabricFSDP):
    """On the CPU."""

    root_device = torch.device("cpu")

    def setup_module(self, module: nn.Module) -> nn.Module:
        with on_the_cpu():
            return super().setup_module(module)


@slow
def a_loop_of_fabrics_own_under_flat_shards() -> None:
    def looped(make: Make, **kinds: Any) -> list[torch.Tensor]:
        fabric = Fabric(accelerator="cpu", callbacks=make(), **kinds)
        fabric.launch()
        held = nn.ModuleDict({"net": network()})
        held.forward = lambda x: held["net"](x)
        net, optimizer = fabric.setup(held, torch.optim.SGD(held.parameters(), lr=0.1))
        parts = fabric.world_size
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(16, 4, generator=generator).chunk(parts)[fabric.global_rank]
            optimizer.zero_grad()
            fabric.backward(net(x).square().mean())
            fabric.call("on_before_optimizer_step", trainer=fabric, pl_module=net, optimizer=optimizer)
            optimizer.step()
        flat = isinstance(fabric.strategy, FabricFlat)
        with FullyShardedDataParallel.summon_full_params(net._forward_module) if flat else nullcontext():
            return [p.detach().clone() for p in held.parameters()]

    for make in (
        lambda: [calib.GradientClip(0.1, scope="layer", rules={"net.0.*": 0.05})],
        lambda: [calib.AGC(0.05, exclude=()), calib.ZClip(1.0, warmup_steps=2)],
        lambda: [calib.GradientCentralize(), calib.GradientNormalize(0.3, scope="unit")],
    ):
        kinds = {"devices": 2, "strategy": FabricFlat(process_group_backend="gloo", use_orig_params=True)}
        torch.testing.assert_close(looped(make, **kinds), looped(make, devices=1), rtol=1e-5, atol=1e-6)
