"""Cases for `launch.py`: fits under FSDP1, whose parameters are flat shards, against the same fit in one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.event_files import Recorded
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from two_processes.fits import CALLBACKS, RULES, SHADOWS, Watch, shadows_are_dry_runs
from two_processes.launch import case, everywhere
from two_processes.run import PLAIN, SGD, Make, Run, Shared, network

import lightning_calib as calib

STEPS = 10
NEAR = {"rtol": 1e-6, "atol": 1e-9}


class Double(FSDPPrecision):
    """Lightning has no float64 under FSDP1, which torch has."""

    mixed_precision_config = None

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module


class Wide(Shared):
    """float64, so that nothing but a wrong number can differ."""

    wide = torch.float64

    def __init__(self, optimizer: Callable[..., Any] = SGD, net: Callable[[], nn.Module] = network) -> None:
        super().__init__(optimizer, lambda: net().double())


def flat(make: Make, module: Shared | None = None, steps: int = STEPS, options: Any = None, **kinds: Any) -> Run:
    """On two processes, which agree to the bit."""
    options = {"precision_plugin": Double(), **(options or {})}
    return Run("flat", make, module or Wide(), steps, options, **kinds).same_on_all()


def alike(make: Make, module: Callable[[], Shared] = Wide, options: Any = None, **kinds: Any) -> Run:
    """On two processes what it is in one: norms, thresholds, states and weights."""
    run = flat(make, module(), options=options, **kinds)
    run.same_as(Run("", make, module(), STEPS, **kinds), **NEAR)
    return run


@case
def every_callback_under_flat_shards() -> None:
    for name, make in CALLBACKS.items():
        try:
            alike(make)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


class Naive(Callback):
    """Reads on this process what it holds, as a clip that knows nothing of shards would."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.missing = 0

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        self.missing += sum(p.grad is None for p in module.parameters())
        self.norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))


@case
def no_norm_of_one_process_alone_is_logged_under_flat_shards() -> None:
    naive = Naive()
    run = flat(lambda: [Watch(), naive], log_every_n_steps=1)
    logged = [value for _, row in run.rows.rows for key, value in row.items() if key.startswith("calib/grad_norm")]
    assert len(naive.norms) == STEPS
    assert min(everywhere(naive.missing)) != max(everywhere(naive.missing))
    for norms in everywhere(naive.norms):
        assert all(abs(one - norm) > 1e-3 * norm for one in logged for norm in norms)
    whole = torch.tensor(everywhere(naive.norms)).square().sum(0).sqrt()
    torch.testing.assert_close(torch.tensor(run.rows.values("calib/grad_norm_before")), whole, rtol=1e-5, atol=0)


@case
def the_monitor_moves_no_bit_under_flat_shards() -> None:
    for optimizer in (SGD, partial(torch.optim.AdamW, lr=0.01)):
        watched, alone = (flat(make, Shared(optimizer), options={"precision_plugin": None})
                          for make in (CALLBACKS["GradientMonitor"], list))  # fmt: skip
        torch.testing.assert_close(watched.weights, alone.weights, rtol=0, atol=0)


@case
def shadows_are_dry_runs_under_flat_shards() -> None:
    shadows_are_dry_runs(flat)


@case
def a_step_under_flat_shards_takes_one_all_reduce() -> None:
    def often(make: Make) -> tuple[float, float]:
        """Collectives on a step that is not logged, and how many more on one that is."""
        short, long = (flat(make, None, n, log_every_n_steps=n).calls.total() for n in (2, 6))
        return (long - short) / 4, (flat(make, None, 6, log_every_n_steps=1).calls.total() - long) / 5

    assert often(lambda: [calib.ZClip(), calib.AutoClip(), calib.NonFiniteGuard("skip")]) == (1, 1)
    assert often(lambda: [calib.AGC(0.1), calib.GradientMonitor(layers=False)]) == (2, 2)


@case
def the_dashboard_shows_whole_tensors_under_flat_shards() -> None:
    def shown(run: Callable[..., Run], name: str) -> Recorded:
        logger = TensorBoardLogger(name, name="", version="")
        run(lambda: [calib.GradientClip(0.5), calib.GradientMonitor(2, histograms=True)], Wide(), logger=logger)
        return Recorded(name)

    one = shown(lambda make, module, **kinds: Run("", make, module, STEPS, **kinds), "board-one")
    found = shown(flat, "board-flat")
    if distributed.get_rank() > 0:  # the first process writes
        return
    for kind in ("layers", "hist"):
        values, expected = (torch.stack([record.value for record in each.of(kind)]) for each in (found, one))
        assert values.numel()
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


class Bad(Wide):
    bad = (3, 5)


class Poisoned(Wide):
    """One element of the second process's shard turns bad behind the backward pass; no loss tells of it."""

    def on_after_backward(self) -> None:
        if self.trainer.global_step == 3 and distributed.get_rank() == 1:
            self.net[2].weight.grad[-1] = math.nan


@case
def all_skip_a_step_that_is_bad_on_one_process_under_flat_shards() -> None:
    make = lambda: [calib.NonFiniteGuard("skip", max_consecutive=1), calib.ZClip(1.0, warmup_steps=2), Watch()]  # noqa: E731
    run = alike(make, Bad)
    told = run.states[0]["optimizers"]["0"]
    assert told["total"] == 2
    assert {line.split("loss")[0] for line in told["last"]} == {
        line.split("loss")[0] for lines in everywhere(told["last"]) for line in lines
    }
    run = flat(lambda: [calib.NonFiniteGuard("skip")], Poisoned())
    for (told,) in everywhere(run.states[0]["optimizers"]["0"]["last"]):
        assert "net.2.weight (1 NaN and 0 Inf of 40 elements)" in told, told
    assert all(bool(weight.isfinite().all()) for weight in run.weights)


class Tuned(Wide):
    """Only the bias of the last layer is trained, and it is on the second process."""

    def configure_model(self) -> None:
        for name, p in self.net.named_parameters():
            p.requires_grad_(name.endswith("4.bias"))


class Drops(Callback):
    """A foreign callback that takes the gradients away, as one with a guard of its own does."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step == 4:
            optimizer.zero_grad()


@case
def a_process_without_any_gradient_takes_part_under_flat_shards() -> None:
    net = partial(Tuned, PLAIN)
    for make in (
        lambda: [Watch()],
        lambda: [calib.NonFiniteGuard("skip"), Drops(), calib.ZClip(1.0, warmup_steps=2), Watch()],
        lambda: [calib.ZClip(1.0, warmup_steps=2), Watch(), Drops()],
        lambda: [calib.AGC(0.1, exclude=()), Watch()],
    ):
        alike(make, net, log_every_n_steps=1)


@case
def what_fsdp1_does_not_show_is_refused_with_the_way_out() -> None:
    options = {"use_orig_params": False, "auto_wrap_policy": None}

    class Together(Wide):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.trainer.model.parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"GradientClip cannot act here. FSDP1.*`use_orig_params=True"):
        flat(CALLBACKS["GradientClip"], Together(), options=options)
    with pytest.raises(MisconfigurationException, match=r"PreciseBatchNorm cannot act here. FSDP1 has put many"):
        flat(lambda: [calib.PreciseBatchNorm()], Together(), options=options)
    with pytest.raises(MisconfigurationException, match=r"keeps parameters on the CPU.*Leave out `cpu_offload`"):
        flat(CALLBACKS["GradientClip"], options={"cpu_offload": True})
    run = flat(CALLBACKS["GradientMonitor"], Together(), options=options)
    assert run.trainer.global_step == STEPS
    assert run.rows.rows == []


class Own(Wide):
    """Wrapped in the module's own `configure_model`, a part of it; Lightning then wraps nothing."""

    def configure_model(self) -> None:
        if self.way == "flat" and not isinstance(self.net, FullyShardedDataParallel):
            self.net = FullyShardedDataParallel(self.net, device_id=torch.device("cpu"), use_orig_params=True)


@case
def a_module_that_is_wrapped_in_configure_model_is_measured_alike() -> None:
    for name in ("several", "GradientClip by rules"):
        alike(CALLBACKS[name], Own)


class Saves(Callback):
    """A checkpoint in the middle."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


@case
def a_run_under_flat_shards_is_resumed_exactly_and_on_another_number_of_processes() -> None:
    def make(rule: str = "SpikeBackoff") -> list[Any]:
        clips = [calib.ZClip(1.0, warmup_steps=2), calib.AdaGC(warmup_steps=3), calib.AGC(0.1)]
        return [calib.NonFiniteGuard("skip"), *clips, calib.LearningRateControl(RULES[rule]()), Watch(shadow=SHADOWS)]

    def one(make: Make, module: Any, steps: int = STEPS, **kinds: Any) -> Run:
        return Run("", make, module, steps, **kinds)

    for name, first, second, rule, optimizer, close in (
        ("same", flat, flat, "SpikeBackoff", SGD, {"rtol": 0, "atol": 0}),
        # Lightning itself cannot load an optimizer without state, as DoG wants it, into flat shards.
        ("distance", flat, one, "DistanceOverGradients", PLAIN, NEAR),
        ("fewer", flat, one, "SpikeBackoff", SGD, NEAR),
        ("more", one, flat, "SpikeBackoff", SGD, NEAR),
    ):
        straight = first(lambda rule=rule, name=name: [*make(rule), Saves(f"{name}.ckpt")], Wide(optimizer))
        path = everywhere(str(Path(f"{name}.ckpt").absolute()))[0]  # the first process has saved it
        distributed.barrier()
        rest = second(partial(make, rule), Wide(optimizer), ckpt_path=path)
        straight.rows.rows = [(step, row) for step, row in straight.rows.rows if step >= 4]
        assert rest.rows.rows
        rest.same_as(straight, **close)


class Precise(Wide):
    """The loader's batches, so that a pass beside the training sees all of them."""

    def __init__(self, optimizer: Callable[..., Any] = SGD) -> None:
        super().__init__(optimizer, lambda: nn.Sequential(*network()[:3], nn.BatchNorm1d(5), network()[4]))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.share(int(batch))


@case
def batch_statistics_under_flat_shards_are_those_of_all_processes() -> None:
    own = lambda module, batch: module.share(int(batch))  # noqa: E731
    for forward, way in ((None, "FULL_SHARD"), (own, "SHARD_GRAD_OP"), (None, "NO_SHARD")):
        options = {"sharding_strategy": way}

        def make(forward: Any = forward) -> list[Any]:
            return [calib.PreciseBatchNorm(forward=forward), Watch()]

        run = flat(make, Precise(), options=options)
        still = Precise(partial(torch.optim.SGD, lr=0.0))
        for ours, found in zip(still.parameters(), run.weights, strict=True):
            ours.data.copy_(found)
        one = Run("", make, still)
        torch.testing.assert_close(
            run.weights, flat(lambda: [Watch()], Precise(), options=options).weights, rtol=0, atol=0
        )
        for key in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(run.module.net[3], key), getattr(one.module.net[3], key), **NEAR)
