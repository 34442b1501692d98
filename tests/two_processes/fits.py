"""Cases for `launch.py`: fits on two processes, DDP, FSDP2 and tensor parallel, against the same fit in one process."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from helpers.event_files import Recorded
from helpers.tiny_modules import same_bits, scaled
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import distributed
from two_processes.launch import case, everywhere
from two_processes.run import PLAIN, SGD, Make, Run, Shared, pair

import lightning_calib as calib
from lightning_calib.callbacks.public import arguments_of

Watch = partial(calib.GradientMonitor, 1)
RULES: dict[str, Callable[[], Any]] = {
    "SpikeBackoff": lambda: calib.SpikeBackoff(calib.ZScore(1.0, 0.9, 2)),
    "Polyak": calib.Polyak,
    "InverseNorm": calib.InverseNorm,
    "DistanceOverGradients": lambda: calib.DistanceOverGradients(0.1),
}
SHADOWS = [
    0.5,
    calib.ZScore(1.0, warmup_steps=2),
    calib.AGC(0.1, exclude=()),
    calib.AdaGC(warmup_steps=2, warmup_max_norm=0.5),
    calib.GradientClip(calib.Percentile(60, 8, 2), scope="layer", norm_type=3.0),
]
CALLBACKS: dict[str, Make] = {
    "GradientMonitor": lambda: [Watch()],
    "shadows": lambda: [calib.GradientClip(0.5), Watch(shadow=SHADOWS)],
    "GradientClip": lambda: [calib.GradientClip(0.5), Watch()],
    "GradientClip by layer": lambda: [calib.GradientClip(calib.Percentile(60, 8, 2), scope="layer")],
    "GradientClip by group": lambda: [calib.GradientClip(0.5, scope="group", norm_type=3.0)],
    "GradientClip by rules": lambda: [calib.GradientClip(None, rules={"net.0.*": 0.1, "net.4.*": calib.MaxNorm(0.2)})],
    "GradientNormalize": lambda: [calib.GradientNormalize(0.3, scope="parameter"), Watch()],
    "GradientNormalize by unit": lambda: [calib.GradientNormalize(0.3, scope="unit")],
    "GradientValueClip": lambda: [calib.GradientValueClip(0.2), Watch()],
    "GradientCentralize": lambda: [calib.GradientCentralize(), Watch()],
    "AutoClip": lambda: [calib.AutoClip(50.0)],
    "ZClip": lambda: [calib.ZClip(1.0, warmup_steps=2)],
    "AGC": lambda: [calib.AGC(0.1, exclude=()), Watch()],
    "AdaGC": lambda: [calib.AdaGC(warmup_steps=2, warmup_max_norm=0.5)],
    "several": lambda: [calib.NonFiniteGuard("skip"), calib.AGC(0.1), calib.ZClip(warmup_steps=2), Watch()],
}


def _every_callback(way: str) -> None:
    for name, make in CALLBACKS.items():
        try:
            pair(way, make)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@case
def every_callback_under_fully_sharded() -> None:
    _every_callback("fsdp")


@case
def every_callback_under_tensor_parallel_with_plain_parameters() -> None:
    _every_callback("tensor")


@case
def every_callback_under_ddp() -> None:
    _every_callback("ddp")


@case
def every_rule_under_every_way() -> None:
    for way in ("fsdp", "tensor", "ddp"):
        for name, rule in RULES.items():
            run = pair(way, lambda rule=rule: [calib.LearningRateControl(rule())], partial(Shared, PLAIN))
            assert run.rows.values("calib/lr_effective") != run.rows.values("calib/lr"), (way, name)


@case
def the_monitor_moves_no_bit() -> None:
    for way in ("ddp", "fsdp", "tensor", "sequence"):
        for optimizer in (SGD, partial(torch.optim.AdamW, lr=0.01)):
            watched, alone = (Run(way, make, Shared(optimizer)) for make in (CALLBACKS["GradientMonitor"], list))
            torch.testing.assert_close(watched.weights, alone.weights, rtol=0, atol=0)
        clipped = (Run(way, make) for make in (CALLBACKS["GradientClip"], CALLBACKS["shadows"]))
        torch.testing.assert_close(*(run.weights for run in clipped), rtol=0, atol=0)


def shadows_are_dry_runs(run: Callable[..., Run], **kinds: Any) -> None:
    """In the same number of processes, to the bit: what each has learnt and counted, and the weights."""
    acting = lambda: [*_dry_runs(), calib.GradientClip(0.5)]  # noqa: E731
    found, dry = (run(make, **kinds) for make in (CALLBACKS["shadows"], acting))
    torch.testing.assert_close(found.weights, dry.weights, rtol=0, atol=0)
    shadows = found.states[1]["shadows"]["0"]
    for i, learnt in enumerate(shadows["learnt"].values()):
        expected = dry.states[i]["optimizers"]["0"]
        same_bits(learnt["parts"], expected["parts"])
        same_bits(shadows["counts"]["fired"][i], expected["count"]["fired"])
    assert (shadows["counts"]["fired"] > 0).any()
    assert (shadows["counts"]["fired"] < shadows["counts"]["steps"]).any()


def _dry_runs() -> list[Any]:
    judges = [calib.GradientClip(one) if i < 2 else one for i, one in enumerate(SHADOWS)]
    arguments = [{name: getattr(one, name) for name in arguments_of(type(one))} for one in judges]
    kinds = [type(one) for one in judges]
    return [
        kind(**{**known, "dry_run": True, "name": f"dry{i}"})
        for i, (kind, known) in enumerate(zip(kinds, arguments, strict=True))
    ]


@case
def shadows_are_dry_runs_under_every_way() -> None:
    for way in ("ddp", "fsdp", "tensor", "sequence"):
        shadows_are_dry_runs(partial(Run, way))
    shadows_are_dry_runs(partial(Run, "fsdp"), plugins=scaled(2.0**10))


@case
def partial_gradients_of_sequence_parallel_are_summed() -> None:
    for name in ("GradientClip", "AGC", "GradientValueClip", "GradientNormalize by unit"):
        pair("sequence", CALLBACKS[name])


@case
def a_step_takes_one_collective_per_mesh_and_a_logged_one_a_few_more() -> None:
    def often(way: str, make: Make) -> tuple[float, float]:
        """Collectives on a step that is not logged, and how many more on one that is."""
        short, long = (Run(way, make, steps=n, log_every_n_steps=n).calls.total() for n in (2, 6))
        logged = Run(way, make, steps=6, log_every_n_steps=1).calls.total()
        return (long - short) / 4, (logged - long) / 5

    plain = partial(calib.GradientMonitor, layers=False, histograms=False)
    for way in ("fsdp", "tensor"):
        assert often(way, lambda: [calib.GradientClip(0.5)]) == (1, 1)
        assert often(way, lambda: [calib.ZClip(), calib.AutoClip(), calib.NonFiniteGuard()]) == (1, 1)
        assert often(way, lambda: [calib.GradientClip(0.5, scope="unit", norm_type=3.0)]) == (2, 1)
        assert often(way, lambda: [calib.AGC(0.1)]) == (2, 1)
        assert often(way, lambda: [plain()]) == (1, 2)
    assert often("ddp", lambda: [calib.GradientClip(0.5), calib.AGC(0.1), Watch()]) == (0, 0)


@case
def the_dashboard_shows_whole_tensors() -> None:
    def shown(way: str) -> Recorded:
        logger = TensorBoardLogger(f"board-{way}", name="", version="")
        Run(way, lambda: [calib.GradientClip(0.5), calib.GradientMonitor(2, histograms=True)], logger=logger)
        return Recorded(f"board-{way}")

    one = shown("")
    for way in ("fsdp", "tensor"):
        found = shown(way)
        if distributed.get_rank() > 0:  # the first process writes
            continue
        layers, expected = ([record.value for record in each.of("layers")] for each in (found, one))
        torch.testing.assert_close(layers, expected, rtol=2e-4, atol=2e-6, equal_nan=True)
        counts, expected = (torch.stack([record.value for record in each.of("hist")]) for each in (found, one))
        assert counts.shape == expected.shape
        assert counts.numel()
        elements = (each[..., [0, 1, *range(3, each.shape[-1])]].sum(-1) for each in (counts, expected))
        torch.testing.assert_close(*elements, rtol=0, atol=0)


class NoSpace(Callback):
    """From the third step on the first process cannot write what the dashboard wants."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3 and trainer.is_global_zero:
            experiment = trainer.logger.experiment
            self.writer, experiment._get_file_writer = experiment._get_file_writer, self.fail

    def fail(self) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("lightning_calib"):
            raise OSError("No space left on device")
        return self.writer()


@case
def a_dashboard_that_ends_on_one_process_leaves_nobody_waiting() -> None:
    logger = TensorBoardLogger("full", name="", version="")
    run = Run("fsdp", lambda: [calib.GradientMonitor(1, histograms=True), NoSpace()], None, 14, logger=logger)
    run.same_on_all()
    assert [one._session for one in run.trainer.callbacks if isinstance(one, calib.GradientMonitor)] == [None]
    assert run.trainer.global_step == 14
    if distributed.get_rank() == 0:
        found = Recorded("full")
        assert found.of("layers")
        assert max(one.step for one in found.of("layers")) < 4


class Bad(Shared):
    bad = (3, 5)


@case
def a_loss_of_nan_on_one_process_is_skipped_by_all() -> None:
    for way in ("fsdp", "tensor", "ddp"):
        make = lambda: [calib.NonFiniteGuard("skip", max_consecutive=1), calib.ZClip(1.0, warmup_steps=2)]  # noqa: E731
        run = pair(way, make, Bad)
        told = run.states[0]["optimizers"]["0"]
        assert told["total"] == 2
        assert len({tuple(line.split("loss")[0] for line in states) for states in everywhere(told["last"])}) == 1


class Poisoned(Shared):
    """One element of the second process's shard turns bad behind the backward pass; no loss tells of it."""

    def on_after_backward(self) -> None:
        if self.trainer.global_step == 3 and distributed.get_rank() == 1:
            self.net[2].weight.grad.to_local()[-1, 0] = math.nan


@case
def one_bad_element_on_one_process_is_named_by_all() -> None:
    run = Run("fsdp", lambda: [calib.NonFiniteGuard("skip")], Poisoned()).same_on_all()
    for (told,) in everywhere(run.states[0]["optimizers"]["0"]["last"]):
        assert "net.2.weight (1 NaN and 0 Inf of 40 elements)" in told, told
    assert all(bool(weight.isfinite().all()) for weight in run.weights)


@case
def float16_with_a_scaler_under_fully_sharded() -> None:
    for make in (CALLBACKS["GradientClip"], CALLBACKS["several"]):
        one = Run("", make, plugins=scaled(2.0**10))
        # Eleven bits per number, in other sums.
        Run("fsdp", make, plugins=scaled(2.0**10)).same_on_all().same_as(one, rtol=0.02, atol=0.02)


@case
def a_run_is_resumed_on_another_number_of_processes() -> None:
    # Lightning itself cannot load an optimizer without state, as DoG wants it, into sharded parameters.
    doors = [("fsdp", "", RULES["DistanceOverGradients"], PLAIN), ("", "fsdp", RULES["SpikeBackoff"], SGD)]
    for way, other, rule, optimizer in (*doors, ("tensor", "fsdp", calib.InverseNorm, SGD)):

        def make(rule: Any = rule) -> list[Any]:
            clips = [calib.ZClip(1.0, warmup_steps=2), calib.AdaGC(warmup_steps=3)]
            return [*clips, calib.LearningRateControl(rule()), calib.GradientMonitor(shadow=SHADOWS)]

        straight, first = Run("", make, Shared(optimizer)), Run(way, make, Shared(optimizer), steps=4)
        first.trainer.save_checkpoint(f"{way}-{other}.ckpt")
        path = everywhere(str(Path(f"{way}-{other}.ckpt").absolute()))[0]  # the first process has saved it
        distributed.barrier()
        second = Run(other, make, Shared(optimizer), ckpt_path=path).same_on_all()
        second.rows.rows = first.rows.rows + second.rows.rows
        second.same_as(straight)
