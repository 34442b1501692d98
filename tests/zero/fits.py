"""A script: fits under DeepSpeed on two gloo processes, against the same fit in one process without it."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.event_files import Recorded
from helpers.tiny_modules import Rows, fit, same_bits, weights
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, distributed, nn
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader
from two_processes import launch
from two_processes.launch import WORLD, everywhere

from lightning_calib import (
    AGC,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    InverseNorm,
    LearningRateControl,
    NonFiniteGuard,
    PreciseBatchNorm,
    SpikeGuard,
    ZClip,
)

CASES: dict[str, Callable[[], None]] = {}
STAGES = (1, 2, 3)
CLIP = 0.5
STEPS, WINDOW, ROWS = 6, 2, 4  # optimizer steps, micro-batches in each, rows of a micro-batch on each process
CLOSE = {"rtol": 1e-5, "atol": 1e-7}
ADAMW, SGD = partial(torch.optim.AdamW, lr=0.01), partial(torch.optim.SGD, lr=0.5)


@contextmanager
def heard() -> Iterator[list[str]]:
    """What our logger says."""
    lines: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("lightning_calib")
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Run by both processes; passes if neither raises."""
    CASES[function.__name__] = function
    return function


class OnCpu(DeepSpeedStrategy):
    """Lightning's, which asks for CUDA in this one place, and the CPU has no index."""

    root_device = torch.device("cpu", 0)

    def setup_environment(self) -> None:
        self.accelerator.setup_device(self.root_device)
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 19), nn.LayerNorm(19), nn.Linear(19, 5))


class Parted(LightningModule):
    """Each process has its rows of every micro-batch; one process alone has all of them."""

    def __init__(self, optimizer: Callable[..., Any] = SGD, gains: dict[int, float] | None = None) -> None:
        super().__init__()
        self.net, self.optimizer, self.gains, self.calls = network(), optimizer, gains or {}, 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(100 + self.calls)
        rows = torch.randn(ROWS * WORLD, 7, generator=generator)
        share = (
            slice(ROWS * self.global_rank, ROWS * (self.global_rank + 1))
            if self.trainer.world_size > 1
            else slice(None)
        )
        step, self.calls = self.calls // WINDOW, self.calls + 1
        found = self.net(rows[share].to(next(self.parameters()).dtype))
        return (found - 1).square().mean() * self.gains.get(step, 1.0)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.zeros(1000))

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim < 2]
        optimizer = self.optimizer([{"params": matrices}, {"params": others}])
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Found:
    """A fit, on both processes under ZeRO or in this one alone, and what it left."""

    def __init__(self, stage: int, callbacks: list[Callback], module: Parted | None = None, **options: Any) -> None:
        self.rows, self.module = Rows(), module or Parted()
        steps, config = options.pop("steps", STEPS), options.pop("config", {})
        options = {"accumulate_grad_batches": WINDOW, "logger": self.rows, "log_every_n_steps": 1, **options}
        if stage:
            # Every parameter is cut in stage 3, however small.
            more = {
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, **config.pop("zero", {})}
            }
            more |= {"zero_allow_untested_optimizer": True, **config}
            options |= {"strategy": OnCpu(config=more), "devices": WORLD, "use_distributed_sampler": False}
        self.trainer: Trainer = fit(self.module, callbacks, steps, **options)
        self.callbacks = callbacks

    def weights(self) -> list[Tensor]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            return weights(self.module)


def reference(**options: Any) -> Found:
    """Without DeepSpeed. Lightning divides the loss by the window, and so does DeepSpeed again."""
    gains = options.pop("gains", {})
    halved = {step: gains.get(step, 1.0) / WINDOW for step in range(STEPS)}
    return Found(0, [GradientMonitor(1)], Parted(options.pop("optimizer", SGD), halved), **options)


def same_rows(found: Found, wanted: Found, *, without: tuple[str, ...] = ()) -> None:
    """Every scalar of every row, on every process."""
    rows = everywhere(found.rows.rows)
    assert all(one == rows[0] for one in rows)
    assert found.rows.steps == wanted.rows.steps == list(range(STEPS))
    for (_, row), (_, other) in zip(found.rows.rows, wanted.rows.rows, strict=True):
        assert set(row) | set(without) == set(other) | set(without)
        for tag, value in row.items():
            torch.testing.assert_close(value, other[tag], **CLOSE, msg=lambda text, tag=tag: f"{tag}: {text}")


@case
def norms_and_rates_are_those_of_the_same_model_without_deepspeed() -> None:
    for optimizer in (SGD, ADAMW):
        wanted = reference(optimizer=optimizer)
        for stage in STAGES:
            same_rows(Found(stage, [GradientMonitor(1)], Parted(optimizer)), wanted)


@case
def its_own_clip_is_counted_and_the_clipped_updates_are_those_without_it() -> None:
    wanted = reference(gradient_clip_val=CLIP)
    fractions = wanted.rows.values("calib/clip_fraction")
    assert set(fractions) == {0, 1}
    for stage in STAGES:
        found = Found(stage, [GradientMonitor(1)], gradient_clip_val=CLIP)
        same_rows(found, wanted)
        torch.testing.assert_close(found.weights(), wanted.weights(), rtol=1e-4, atol=1e-6)
        (clipper,) = found.callbacks[0].report().as_dict()["clippers"]
        assert clipper["name"] == f"DeepSpeed's gradient_clipping={CLIP:g}"
        assert clipper["clip_rate"] == sum(fractions) / STEPS
        same_rows(Found(stage, [GradientMonitor(1)], config={"gradient_clipping": CLIP}), wanted)


def same_layers(name: str, found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, **CLOSE, equal_nan=True, msg=lambda text: f"{name}: {text}")


@case
def the_tab_and_the_report_show_whole_tensors() -> None:
    def shown(stage: int) -> tuple[Recorded, Any]:
        logger, monitor = TensorBoardLogger(f"board{stage}", name="", version=""), GradientMonitor(1, histograms=True)
        gains = {} if stage else dict.fromkeys(range(STEPS), 1 / WINDOW)
        Found(stage, [monitor], Parted(SGD, gains), logger=logger)
        distributed.barrier()
        return Recorded(logger.log_dir), monitor.report().runs[0]

    one, run = shown(0)  # the file is the first process's
    for stage in STAGES:
        two, other = shown(stage)
        assert other.layers.names == run.layers.names
        assert (other.layers.sizes, other.layers.group_of) == (run.layers.sizes, run.layers.group_of)
        for name in ("before", "after", "peak", "weight", "update"):
            same_layers(name, getattr(other.layers, name), getattr(run.layers, name))
        if distributed.get_rank() == 0:
            assert two.of("layers")
            assert two.tags("layers") == one.tags("layers")
            for name in ("before", "after", "peak", "weight", "update"):
                same_layers(name, two.column(name), one.column(name))
            assert not two.tags("histograms")


@case
def the_norm_of_every_step_is_known_and_tensors_are_read_on_logged_ones_only() -> None:
    from deepspeed import utils

    real, calls = utils.safe_get_full_grad, []
    utils.safe_get_full_grad = lambda tensor: calls.append(tensor) or real(tensor)
    try:
        norms = reference().rows.values("calib/grad_norm_before")
        for stage in STAGES:
            found = Found(stage, [GradientMonitor(3)])
            assert found.rows.steps == [2, 5]
            largest = [max(norms[:3]), max(norms[3:])]
            torch.testing.assert_close(found.rows.values("calib/grad_norm_max"), largest, **CLOSE)
            assert len(calls) == 2 * len(list(found.module.parameters()))
            calls.clear()
    finally:
        utils.safe_get_full_grad = real


@case
def the_monitor_moves_no_bit() -> None:
    for stage in STAGES:
        for optimizer in (SGD, ADAMW):
            watched, alone = (Found(stage, ours, Parted(optimizer)) for ours in ([GradientMonitor(1)], []))
            same_bits(watched.weights(), alone.weights())


@case
def a_step_that_the_engine_drops_is_counted() -> None:
    for stage in STAGES:
        found = Found(stage, [GradientMonitor(1)], Parted(ADAMW, {2: math.nan}))
        assert (
            found.rows.values("calib/nonfinite_total") == found.rows.values("calib/skipped_total") == [0, 0, 1, 1, 1, 1]
        )
        norms = found.rows.values("calib/grad_norm_before")
        assert [math.isfinite(norm) for norm in norms] == [True, True, False, True, True, True]
        assert "calib/grad_norm_after" not in found.rows.rows[2][1]
        assert all(one.isfinite().all() for one in found.weights())
        assert found.callbacks[0].report().findings[0].code == "nonfinite"


@case
def in_float16_the_loss_scale_is_not_in_the_norms_and_overflows_are_no_incidents() -> None:
    wanted = reference(optimizer=ADAMW).rows.values("calib/grad_norm_before")
    for stage in STAGES:
        found = Found(stage, [monitor := GradientMonitor(1)], Parted(ADAMW), precision="16-mixed")
        norms, layers = found.rows.values("calib/grad_norm_before"), monitor.report().runs[0].layers
        dropped = norms.count(math.inf)
        assert 0 < dropped < STEPS
        assert found.rows.values("calib/skipped_total")[-1] == dropped
        assert set(found.rows.values("calib/nonfinite_total")) == {0}
        assert found.rows.values("calib/loss_scale")[-1] < found.rows.values("calib/loss_scale")[0]
        # Nothing has moved before the first step that is taken; its rows of data are others than the reference's first.
        assert norms[dropped] == pytest.approx(wanted[0], rel=0.2)
        whole = torch.from_numpy(layers.before).square().sum(1).sqrt()[dropped:]
        torch.testing.assert_close(whole, torch.tensor(norms[dropped:], dtype=whole.dtype), rtol=5e-3, atol=0)


@case
def other_layouts_of_zero_give_the_same_numbers() -> None:
    wanted = reference(optimizer=ADAMW)
    layouts: list[dict[str, Any]] = [
        {"offload_optimizer": {"device": "cpu"}},
        {"contiguous_gradients": False, "overlap_comm": False},
        {"reduce_bucket_size": 100, "allgather_bucket_size": 100},
        {"sub_group_size": 50, "stage3_param_persistence_threshold": 10000},
    ]
    for zero in layouts:
        for stage in STAGES:
            config = {"zero": zero, "zero_force_ds_cpu_optimizer": False}
            same_rows(Found(stage, [GradientMonitor(1)], Parted(ADAMW), config=config), wanted)


@case
def in_bfloat16_the_tensors_make_up_the_norm_of_the_engine() -> None:
    for precision in ("bf16-mixed", "bf16-true"):
        for stage in STAGES:
            found = Found(stage, [monitor := GradientMonitor(1)], precision=precision)
            layers, norms = monitor.report().runs[0].layers, found.rows.values("calib/grad_norm_before")
            whole = torch.from_numpy(layers.before).square().sum(1).sqrt()
            torch.testing.assert_close(whole, torch.tensor(norms, dtype=whole.dtype), rtol=5e-3, atol=0)


@case
def a_run_resumes_from_a_checkpoint_as_if_it_had_not_been_interrupted() -> None:
    for stage in STAGES:
        whole = Found(stage, [GradientMonitor(2)])
        half = Found(stage, [GradientMonitor(2)], steps=STEPS // 2)
        path, module = str(half.trainer.strategy.broadcast(f"{Path.cwd()}/half{stage}.ckpt")), Parted()
        half.trainer.save_checkpoint(path)
        module.calls = WINDOW * (STEPS // 2)
        rest = Found(stage, [GradientMonitor(2)], module, ckpt_path=path)
        assert half.rows.steps + rest.rows.steps == whole.rows.steps
        same_bits([row for _, row in half.rows.rows + rest.rows.rows], [row for _, row in whole.rows.rows])
        once, twice = (found.callbacks[0].report().as_dict()["optimizers"] for found in (whole, rest))
        if distributed.get_rank() == 0:  # the loss is that of a process, and the checkpoint has the first one's
            same_bits(twice, once)


class ByHand(Parted):
    """Manual optimization, two steps in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for _ in range(2):
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()
            self.lr_schedulers().step()


@case
def under_manual_optimization_the_norms_are_the_same() -> None:
    alone = Found(0, [GradientMonitor(1)], Parted(), accumulate_grad_batches=1)
    wanted = alone.rows.values("calib/grad_norm_before")
    for stage in STAGES:
        found = Found(stage, [GradientMonitor(1)], ByHand(), accumulate_grad_batches=1)
        torch.testing.assert_close(found.rows.values("calib/grad_norm_before"), wanted[1::2], **CLOSE)
        largest = [max(pair) for pair in zip(wanted[::2], wanted[1::2], strict=True)]
        torch.testing.assert_close(found.rows.values("calib/grad_norm_max"), largest, **CLOSE)


ACTING = {
    "GradientClip": lambda: GradientClip(1.0),
    "GradientNormalize": GradientNormalize,
    "GradientValueClip": lambda: GradientValueClip(1.0),
    "GradientCentralize": GradientCentralize,
    "ZClip": ZClip,
    "AGC": AGC,
    "NonFiniteGuard": lambda: NonFiniteGuard("skip"),
    "LearningRateControl": lambda: LearningRateControl(InverseNorm()),
    "SpikeGuard": SpikeGuard,
    "PreciseBatchNorm": PreciseBatchNorm,
}


@case
def who_acts_is_refused_by_name_with_the_way_out() -> None:
    for name, make in ACTING.items():
        with pytest.raises(MisconfigurationException, match=rf"^{name}.*DeepSpeedStrategy is not supported.*FSDP2"):
            Found(2, [make()])


@case
def a_guard_that_only_warns_says_that_it_stays_silent() -> None:
    with heard() as lines:
        found = Found(2, [NonFiniteGuard("warn"), GradientMonitor(1)])
    (line,) = [line for line in lines if "NonFiniteGuard" in line] or [""]
    assert ("stays silent" in line) == (distributed.get_rank() == 0)
    assert found.rows.steps == list(range(STEPS))


@case
def where_no_tensor_is_read_the_norms_are_known() -> None:
    wanted = reference().rows.values("calib/grad_norm_before")
    for monitor, zero in (
        (GradientMonitor(1), {"round_robin_gradients": True}),
        (GradientMonitor(1, layers=False), {}),
    ):
        with heard() as lines:
            found = Found(2, [monitor], config={"zero": zero})
        torch.testing.assert_close(found.rows.values("calib/grad_norm_before"), wanted, **CLOSE)
        assert not np.isfinite(monitor.report().runs[0].layers.before).any()
        if distributed.get_rank() == 0:
            assert any("finds the norm, no tensor is read" in line for line in lines)


@case
def the_start_line_tells_of_the_engine_and_of_its_clip() -> None:
    with heard() as lines:
        Found(3, [GradientMonitor(1)], config={"gradient_clipping": CLIP})
    if distributed.get_rank() == 0:
        (line,) = [line for line in lines if "precision" in line]
        assert f"clipping: DeepSpeed's gradient_clipping={CLIP:g}; " in line
        assert "optimizer SGD; " in line
        assert "DeepSpeed ZeRO-3 finds the norm, tensors are read on logged steps" in line


@case
def an_engine_that_finds_no_norm_is_told_of_and_training_goes_on() -> None:
    for words, zero in (("without ZeRO", {"stage": 0}), ("`compute_grad_norm`", {"compute_grad_norm": False})):
        with heard() as lines:
            found = Found(2, [GradientMonitor(1)], config={"zero": zero, "gradient_clipping": 0.0})
        assert found.rows.rows == []
        assert found.trainer.global_step == STEPS
        if distributed.get_rank() == 0:
            (line,) = [line for line in lines if "stays silent" in line]
            assert words in line


@case
def tensors_that_do_not_make_up_the_norm_are_not_told() -> None:
    from deepspeed import utils

    real = utils.safe_get_full_grad
    utils.safe_get_full_grad = lambda tensor: 2 * real(tensor)
    try:
        with heard() as lines:
            found = Found(2, [monitor := GradientMonitor(1)])
    finally:
        utils.safe_get_full_grad = real
    layers = monitor.report().runs[0].layers
    assert not np.isfinite(layers.before).any()
    wanted = reference().rows.values("calib/grad_norm_before")
    torch.testing.assert_close(found.rows.values("calib/grad_norm_before"), wanted, **CLOSE)
    if distributed.get_rank() == 0:
        assert len([line for line in lines if "the one that it clips by" in line]) == 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # An operator for speed alone, which would be compiled first; two processes would wait for each other meanwhile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for quiet in ("lightning.pytorch", "lightning.fabric", "lightning_calib"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    launch.CASES.update(CASES)
    Path(sys.argv[1]).mkdir(exist_ok=True)
    start_processes(launch.play, (sys.argv[1], sys.argv[2:] or list(CASES)), WORLD, start_method="fork")
