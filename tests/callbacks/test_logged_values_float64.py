"""Every number of real fits against a recomputation in float64, while foreign code and the Trainer interfere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy
import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, TwoNets, batches_that_stepped, fit, norm, scaled
from lightning.pytorch import Callback
from torch import Tensor

from lightning_calib import GradientClip, GradientMonitor, Percentile

STEPS, EVERY = 24, 3
GLOBAL, LOCAL, WINDOW, WARMUP = 1.2, 0.25, 6, 3
NESTEROV = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True)
FUSED_ADAMW = partial(torch.optim.AdamW, lr=1e-2, fused=True)
FUSED_SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True)


class Mode(NamedTuple):
    optimizers: tuple
    trainer: dict = {}
    scaler: bool = False
    scale: float = 2.0**10


MODES = {
    "nesterov foreach, Trainer clips": Mode(((partial(NESTEROV, foreach=True)),), {"gradient_clip_val": 0.4}),
    "nesterov loop, Trainer clips": Mode(((partial(NESTEROV, foreach=False)),), {"gradient_clip_val": 0.4}),
    "nesterov foreach with decay": Mode((partial(NESTEROV, foreach=True, weight_decay=1e-2),)),
    "adamw, Trainer clips": Mode((partial(torch.optim.AdamW, lr=1e-2),), {"gradient_clip_val": 0.4}),
    "fused sgd, Trainer clips": Mode((FUSED_SGD,), {"gradient_clip_val": 0.4}),
    "fused adamw, scaler": Mode((FUSED_ADAMW,), scaler=True),
    "fused sgd, scaler": Mode((FUSED_SGD,), scaler=True),
    "fused adamw, scale no power of two": Mode((FUSED_ADAMW,), scaler=True, scale=1000.0),
    "nesterov foreach, scaler, Trainer clips": Mode(
        (partial(NESTEROV, foreach=True),), {"gradient_clip_val": 0.4}, scaler=True
    ),
    "fused adamw, bf16": Mode((FUSED_ADAMW,), {"precision": "bf16-mixed"}),
    "two: nesterov foreach and loop": Mode((partial(NESTEROV, foreach=True), partial(NESTEROV, foreach=False))),
    "two: fused adamw and nesterov": Mode((FUSED_ADAMW, partial(NESTEROV, foreach=True))),
    "two: fused adamw and nesterov, scaler": Mode((FUSED_ADAMW, partial(NESTEROV, foreach=True)), scaler=True),
    "two: both fused, scaler": Mode((FUSED_ADAMW, FUSED_SGD), scaler=True),
}


class Scheduled(Tiny):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Multiply(Callback):
    """Foreign code between two of ours."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for p in _params(optimizer):
            p.grad.mul_(factor(batches_that_stepped(trainer)))


def factor(step: int) -> float:
    """Another one each step: equal norms would make a percentile a matter of rounding."""
    return 1.6 + math.sin(step)


@dataclass
class Step:
    optimizer: int
    batch: int
    grads: list[Tensor]
    before: list[Tensor]
    lr: float
    scale: float | None
    after: list[Tensor] = field(default_factory=list)


class Spy(Callback):
    """Copies gradients, unscaled, before any of ours; and the weights around the step."""

    def __init__(self):
        self.steps: list[Step] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = None if scaler is None else scaler.get_scale()
        divisor = scale if scale and getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
        params = _params(optimizer)
        self.steps.append(
            Step(
                trainer.optimizers.index(optimizer),
                batches_that_stepped(trainer),
                [p.grad.double() / divisor for p in params],
                [p.detach().double() for p in params],
                optimizer.param_groups[0]["lr"],
                scale,
            )
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for step in self.steps:
            if step.batch == batches_that_stepped(trainer):
                step.after = [p.detach().double() for p in _params(trainer.optimizers[step.optimizer])]


def _params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


class Expected:
    """One optimizer, re-derived in float64 from the spy's copies: a row for each logged step."""

    def __init__(self, make, trainer_clip):
        unfused = partial(make.func, **(make.keywords | {"fused": False, "foreach": False}))
        self.make, self.clip = unfused, trainer_clip
        self.shadow, self.weights, self.history = None, [], []
        self.skipped, self.fired_ever = 0, {"first": [], "second": [], "third": [], "": []}
        self._forget()

    def _forget(self):
        self.befores, self.fired, self.count = [], dict.fromkeys(self.fired_ever, 0), 0

    def __call__(self, step: Step) -> dict[str, float] | None:
        before = norm(step.grads)
        row = {"grad_norm_before": before, "lr": step.lr, "lr_effective": step.lr}
        self.count += 1
        if math.isfinite(before):
            self.befores.append(before)
            row |= self._judge(step, before)
        else:
            self.skipped += 1
        row |= {"nonfinite_total": 0, "skipped_total": self.skipped}
        if self.clip is not None:
            row["clip_threshold"] = self.clip
        if step.scale is not None:
            row["loss_scale"] = step.scale
        if (step.batch + 1) % EVERY:
            return None
        row |= {"grad_norm_max": max(self.befores)} if self.befores else {}
        row |= {f"clip_fraction{'.' * bool(n)}{n}": k / self.count for n, k in self.fired.items()}
        self._forget()
        return row

    def _judge(self, step, before):
        first = min(1.0, GLOBAL / before)
        grads = [g * first * factor(step.batch) for g in step.grads]
        current = norm(grads)
        self.history = [*self.history, current][-WINDOW:]
        self.seen = getattr(self, "seen", 0) + 1
        threshold = numpy.percentile(self.history, 55) if self.seen > WARMUP else math.inf
        second = min(1.0, threshold / current)
        locals_ = [min(1.0, LOCAL / norm([g * second])) for g in grads]
        grads = [g * second * c for g, c in zip(grads, locals_, strict=True)]
        trainer = 1.0 if self.clip is None else min(1.0, self.clip / (norm(grads) + 1e-6))
        grads = [g * trainer for g in grads]
        for name, coefficient in {"first": first, "second": second, "third": min(locals_), "": trainer}.items():
            reduced = coefficient < 1 or (name == "" and min(first, second, *locals_) < 1)
            self.fired[name] += reduced
            self.fired_ever[name].append(reduced)
        self._replay(step, grads)
        thresholds = {"clip_threshold.first": GLOBAL, "clip_threshold.third": LOCAL}
        if self.seen > WARMUP:
            thresholds["clip_threshold.second"] = threshold
        return {"grad_norm_after": norm(grads), **thresholds, **_update(step)}

    def _replay(self, step, grads):
        """The optimizer in float64 fed with the recomputed gradients must move the weights as the real one did."""
        self.weights = self.weights or [w.clone() for w in step.before]
        self.shadow = self.shadow or self.make(self.weights)
        self.shadow.param_groups[0]["lr"] = step.lr
        for weight, start, grad in zip(self.weights, step.before, grads, strict=True):
            weight.copy_(start)
            weight.grad = grad.clone()
        self.shadow.step()
        # float32 weights near 1 move in grains of 6e-8; Adam divides by a small root of the second moment.
        torch.testing.assert_close(step.after, self.weights, rtol=0, atol=1e-6)


def _update(step):
    moved = [b - a for a, b in zip(step.before, step.after, strict=True)]
    ratios = [norm([d]) / norm([w]) for d, w in zip(moved, step.before, strict=True) if w.ndim > 1]
    return {"update_norm": norm(moved), "update_ratio": float(numpy.median(ratios))}


def _run(mode, gains, monitor_first):
    spy, rows = Spy(), Rows()
    ours = [
        GradientClip(GLOBAL, name="first"),
        Multiply(),
        GradientClip(Percentile(55, window=WINDOW, warmup_steps=WARMUP), name="second"),
        GradientClip(LOCAL, scope="parameter", name="third"),
    ]
    ours.insert(0 if monitor_first else len(ours), GradientMonitor())
    make = Scheduled if len(mode.optimizers) == 1 else TwoNets
    plugins = {"plugins": scaled(mode.scale)} if mode.scaler else {}
    trainer = {"logger": rows, "log_every_n_steps": EVERY, **mode.trainer, **plugins}
    fit(make(*mode.optimizers, gains=gains), [spy, *ours], STEPS * len(mode.optimizers), **trainer)
    return spy, rows


@pytest.mark.parametrize("monitor_first", [False, True], ids=["monitor last", "monitor first"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.filterwarnings("ignore:.*gradient_clip_val.*:UserWarning")
def test_every_number(mode, monitor_first):
    overflow = {10: 1e9, 17: 1e9} if mode.scaler else {}  # above float16; the second on a logged step
    spy, rows = _run(mode, {6: 20.0, 15: 0.01, **overflow}, monitor_first)
    several = len(mode.optimizers) > 1
    oracles = [Expected(make, mode.trainer.get("gradient_clip_val")) for make in mode.optimizers]
    expected: dict[int, dict[str, float]] = {}
    for step in spy.steps:
        row = oracles[step.optimizer](step) or {}
        suffix = f"/{step.optimizer}" if several else ""
        expected.setdefault(step.batch, {}).update({f"calib/{k}{suffix}": v for k, v in row.items()})
    expected = {batch: row for batch, row in expected.items() if row}
    assert rows.steps == list(expected), "one row per logged step"
    for (batch, row), wanted in zip(rows.rows, expected.values(), strict=True):
        assert set(row) == set(wanted), f"tags at batch {batch}"
        for tag, value in wanted.items():
            # float32 norms of 117 elements and a float32 chain of at most five products
            assert row[tag] == pytest.approx(value, rel=2e-5, nan_ok=True), f"{tag} at batch {batch}"
    for oracle in oracles:
        for name, fired in oracle.fired_ever.items():
            assert any(fired), f"{name} never fired"
            assert not all(fired) or name in ("", "third"), f"{name} always fired"
    assert oracles[0].skipped == (2 if mode.scaler else 0)
