"""A fit's numbers, measured with nothing of ours, for tests of `lightning_calib.report`: simple enough to be trusted.

Every norm is a float64 norm, taken on every step; nothing is estimated and nothing is remembered between two fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_calib import GradientNormalize, GradientValueClip, LearningRateControl, MaxNorm, NonFiniteGuard
from lightning_calib.callbacks.segment_rescaler import SegmentRescaler
from lightning_calib.report.run import Clipper, Counts, Facts, Group, How, Kind, Layers, Run, Scalars

KINDS: dict[Kind, set[str]] = {
    "adam": {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "RMSprop", "Adagrad", "Adadelta", "Adafactor"},
    "sign": {"Lion", "Rprop", "SignSGD"},
    "muon": {"Muon"},
    "sgd": {"SGD", "ASGD"},
}
REDUCED = 1 - 1e-6  # of the norm: float32 gradients that nobody touched keep their norm exactly
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def kind_of(optimizer: Optimizer) -> Kind:
    return next((kind for kind, names in KINDS.items() if type(optimizer).__name__ in names), "other")


def norm(x: Tensor | None) -> float:
    """nan without a gradient; inf where it is not finite."""
    if x is None:
        return float("nan")
    x = x.detach()
    found = float((x.coalesce().values() if x.is_sparse else x).double().norm())
    return found if np.isfinite(found) else float("inf")


def total(norms: Sequence[float]) -> float:
    """Norm of the whole; nan where no tensor has a gradient."""
    there = [one for one in norms if not np.isnan(one)]
    return float(np.sqrt(np.sum(np.square(there)))) if there else float("nan")


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


class Probe(Callback):
    """Reads the norm behind one callback, so that of several clippers each one's share is known."""

    def __init__(self, behind: Callback) -> None:
        self.behind = behind
        self.norms: dict[Optimizer, float] = {}

    @property
    def state_key(self) -> str:
        return f"Probe{id(self)}"

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        self.norms[optimizer] = total([norm(p.grad) for group in optimizer.param_groups for p in group["params"]])


class Trace:
    """What is kept of one optimizer."""

    def __init__(self, optimizer: Optimizer, module: LightningModule) -> None:
        self.optimizer = optimizer
        names = {id(p): name for name, p in module.named_parameters()}
        pairs = [(p, i) for i, group in enumerate(optimizer.param_groups) for p in group["params"]]
        self.params, self.group_of = [p for p, _ in pairs], [i for _, i in pairs]
        self.names = [names.get(id(p), f"parameter {i}") for i, p in enumerate(self.params)]
        self.groups = tuple(self.group(group) for group in optimizer.param_groups)
        self.given = np.zeros(len(self.params), bool)
        self.rows: list[dict[str, float]] = []
        self.layer_rows: list[dict[str, list[float]]] = []
        self.steps = self.usable = self.skipped = self.nonfinite = self.known = 0
        self.left_sum = 0.0
        self.fired: dict[int, int] = {}
        self.handles: list[Any] = []
        self.first_loss = float("nan")
        self.micro: list[float] = []
        self.pending = self.taken = False
        self.new_window()

    def group(self, group: dict[str, Any]) -> Group:
        momentum = group.get("momentum", 0.0) if kind_of(self.optimizer) in ("sgd", "muon") else 0.0
        lr = float(group["lr"]) if "lr" in group else None
        eps = float(group["eps"]) if isinstance(group.get("eps"), float) else None
        return Group(kind_of(self.optimizer), lr, eps, float(momentum), float(group.get("weight_decay", 0.0)))

    def new_window(self) -> None:
        self.maxima, self.reduced, self.lefts = [], [], []
        self.peak = np.full(len(self.params), np.nan)
        self.losses: list[float] = []

    def begin(self, due: bool) -> None:
        """`on_before_optimizer_step` of the first callback."""
        self.before = [norm(p.grad) for p in self.params]
        self.whole, self.lr = total(self.before), float(self.optimizer.param_groups[0].get("lr", np.nan))
        self.pending, self.taken, self.after, self.kept = True, False, None, None
        self.due = due

    def used(self) -> None:
        """Right before the arithmetic of the step."""
        if not self.pending:
            return
        self.after = [norm(p.grad) for p in self.params]
        self.lr_used = float(self.optimizer.param_groups[0].get("lr", np.nan))
        self.kept = [p.detach().clone() for p in self.params] if self.due else None

    def end(self, probes: Sequence[Probe], trainer_clips: bool, scaled: bool) -> None:
        """The batch has ended: counts. The overflows of a GradScaler are its own affair."""
        if self.micro:
            self.losses.append(mean(self.micro))
            self.first_loss = self.losses[-1] if np.isnan(self.first_loss) else self.first_loss
            self.micro = []
        self.pending = False
        self.stepped = not np.isnan(self.whole)
        if not self.stepped:
            return
        self.given |= ~np.isnan(self.before)
        self.steps += 1
        finite, after = np.isfinite(self.whole), total(self.after) if self.after else float("nan")
        self.usable += bool(finite and self.whole > 0)
        self.nonfinite += not (finite or scaled)
        took = self.taken and not np.isnan(after)
        self.skipped += not took
        self.maxima += [self.whole] if finite else []
        self.peak = np.fmax(self.peak, self.before)
        self.reduced.append(bool(took and after < self.whole * REDUCED))
        if took and finite and self.whole > 0:
            self.lefts.append(after / self.whole)
            self.left_sum, self.known = self.left_sum + after / self.whole, self.known + 1
        behind = [probe.norms.get(self.optimizer, float("nan")) for probe in probes]
        levels = [self.whole, *behind, *([after] if trainer_clips and took else [])]
        for place, (high, low) in enumerate(pairwise(levels)):
            self.fired[place] = self.fired.get(place, 0) + bool(low < high * REDUCED)
        for place, probe in enumerate(probes):  # a dry run changes nothing; of a fixed one it is known what it would do
            if how(probe.behind) == "dry" and (bound := max_norm(probe.behind)) is not None:
                self.fired[place] += bool(bound < levels[place] < np.inf)

    def row(self, step: int, common: dict[str, float]) -> None:
        """A logged row; the window starts again."""
        took = self.taken and self.kept is not None and not np.isnan(total(self.after))
        weight = [norm(w) for w in self.kept] if self.kept is not None else [norm(p) for p in self.params]
        nothing = [float("nan")] * len(self.params)
        update = [norm(p.detach() - w) for p, w in zip(self.params, self.kept, strict=True)] if took else nothing
        ratios = [u / w for u, w, p in zip(update, weight, self.params, strict=True) if p.dim() > 1 and w > 0]
        self.rows.append(
            common
            | {
                "step": step,
                "grad_norm_before": self.whole,
                "grad_norm_max": max(self.maxima, default=float("nan")),
                "grad_norm_after": total(self.after) if took else float("nan"),
                "clip_fraction": mean(self.reduced),
                "lr": self.lr,
                "lr_effective": self.lr_used if took else float("nan"),
                "nonfinite_total": self.nonfinite,
                "skipped_total": self.skipped,
                "update_norm": total(update),
                "update_ratio": float(np.median(ratios)) if took and ratios else float("nan"),
                "loss": mean(self.losses),
                "loss_max": max(self.losses, default=float("nan")),
                "loss_first": self.first_loss,
                "factor": mean(self.lefts),
            }
        )
        after = self.after if took else nothing
        peak = self.peak.tolist()
        self.layer_rows.append(
            {"before": self.before, "after": after, "peak": peak, "weight": weight, "update": update}
        )
        self.layer_rows[-1]["step"] = [step]
        self.new_window()


class PlainRecorder(Callback):
    """Put it before every other callback (`around` does so); after the fit, `runs()` has a `Run` for each optimizer.

    `norm_shift` is, of the batches since the last row, the mean of |mean of the batch - running mean| in running
    standard deviations, the median over the channels, of the layer where it is largest.
    """

    def __init__(self, every_n_steps: int = 5) -> None:
        self.every_n_steps = every_n_steps
        self.probes: list[Probe] = []
        self.callbacks: list[Callback] = []
        self.traces: list[Trace] = []
        self.epochs, self.stopped = 0, "running"
        self.stepped = 0

    def around(self, callbacks: Sequence[Callback]) -> list[Callback]:
        """The callbacks with this one before them, and a `Probe` behind each that reduces gradients."""
        result: list[Callback] = [self]
        self.callbacks = list(callbacks)
        for callback in callbacks:
            result.append(callback)
            if isinstance(callback, (SegmentRescaler, GradientValueClip)):
                self.probes.append(Probe(callback))
                result.append(self.probes[-1])
        return result

    # -- what stays the same

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scaler = scaler if isinstance(trainer.precision_plugin, MixedPrecision) and scaler is not None else None
        self.traces = [Trace(one, module) for one in trainer.optimizers]
        for trace in self.traces:
            trace.handles.append(trace.optimizer.register_step_pre_hook(self.wrap(trace)))
            trace.handles.append(trace.optimizer.register_step_post_hook(self.took(trace)))
        self.norms = {name: one for name, one in module.named_modules() if isinstance(one, BATCH_NORMS)}
        self.shifts: dict[str, list[float]] = {name: [] for name in self.norms}
        self.norm_layers = tuple(name for name, one in self.norms.items() if one.training)
        self.handles = [one.register_forward_pre_hook(self.shift(name)) for name, one in self.norms.items()]
        self.batch_size: int | None = None
        self.trainer, self.module = trainer, module
        self.clips = float(trainer.gradient_clip_val or 0.0)
        self.own_clip = type(module).configure_gradient_clipping is not LightningModule.configure_gradient_clipping
        planned = trainer.estimated_stepping_batches
        steps = np.isfinite(planned) and module.automatic_optimization
        self.steps_planned = int(planned) if steps else None
        batches = trainer.num_training_batches
        finite = np.isfinite(batches)
        self.steps_per_epoch = -(-int(batches) // trainer.accumulate_grad_batches) if finite else None
        if not module.automatic_optimization and finite and trainer.max_epochs and trainer.max_epochs > 0:
            self.steps_planned = self.steps_per_epoch * trainer.max_epochs
        configs = trainer.lr_scheduler_configs
        self.schedules = [
            [config for config in configs if config.scheduler.optimizer is one.optimizer] for one in self.traces
        ]

    def wrap(self, trace: Trace) -> Any:
        """Lightning runs forward and backward inside the step, as its closure: what is used is known behind that."""

        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
            if closure is None:
                trace.used()
                return None

            def wrapped() -> Any:
                result = closure()
                trace.used()
                return result

            return (args[0],) if args else args, {**kwargs, "closure": wrapped}

        return hook

    def took(self, trace: Trace) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            trace.taken = trace.pending

        return hook

    def shift(self, name: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor]) -> None:
            if layer.training and torch.is_grad_enabled() and layer.running_mean is not None:
                x = args[0].detach()
                found = x.mean([i for i in range(x.dim()) if i != 1])
                deviation = (layer.running_var + layer.eps).sqrt()
                self.shifts[name].append(float(((found - layer.running_mean).abs() / deviation).median()))

        return hook

    # -- what happens

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
        tensors = [x for x in torch.utils._pytree.tree_leaves(batch) if isinstance(x, Tensor) and x.dim()]
        if self.batch_size is None and tensors:
            self.batch_size = len(tensors[0])

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        (trace,) = (one for one in self.traces if one.optimizer is optimizer)
        trace.begin((self.stepped + 1) % self.every_n_steps == 0)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        for trace in self.traces:
            if isinstance(loss, Tensor):
                scale = trainer.accumulate_grad_batches if module.automatic_optimization else 1
                value = float(loss.detach().double().mean()) * scale
                trace.micro.append(value if np.isfinite(value) else float("inf"))
            if trace.pending:
                trace.end(self.probes, self.clips > 0 or self.own_clip, self.scaler is not None)
                if trace.due and trace.stepped:
                    trace.row(self.stepped, self.common(trainer))

    def common(self, trainer: Trainer) -> dict[str, float]:
        """What is of the whole module."""
        metrics = trainer.callback_metrics
        val = next((float(metrics[key]) for key in metrics if "val" in key and "loss" in key), float("nan"))
        shifts = [mean(one) for one in self.shifts.values()]
        self.shifts = {name: [] for name in self.shifts} if len(self.traces) == 1 else self.shifts
        scale = float(self.scaler.get_scale()) if self.scaler is not None else float("nan")
        worst = max((one for one in shifts if not np.isnan(one)), default=float("nan"))
        return {"val_loss": val, "norm_shift": worst, "loss_scale": scale, "clip_threshold": self.threshold()}

    def threshold(self) -> float:
        trainers = [one.max_norm for one in self.clippers(None)[len(self.probes) :]]
        fixed = [
            bound for bound in (*map(max_norm, (one.behind for one in self.probes)), *trainers) if bound is not None
        ]
        return fixed[-1] if fixed else float("nan")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.epochs += 1

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        early = any(isinstance(one, EarlyStopping) and one.stopped_epoch for one in trainer.callbacks)
        done = trainer.fit_loop.epoch_loop._batches_that_stepped
        short = self.steps_planned is not None and done < self.steps_planned
        self.stopped = "early" if early or short else "finished"

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.stopped = "broken"

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for handle in [*getattr(self, "handles", []), *(one for trace in self.traces for one in trace.handles)]:
            handle.remove()

    # -- what is handed out

    def clippers(self, trace: Trace | None) -> tuple[Clipper, ...]:
        """Who reduces gradients, in order; shares of `trace`."""

        def share(place: int) -> float | None:
            behind = self.probes[place].behind if place < len(self.probes) else None
            unknown = behind is not None and how(behind) == "dry" and max_norm(behind) is None
            return (
                trace.fired.get(place, 0) / trace.steps if trace is not None and trace.steps and not unknown else None
            )

        found = []
        for place, probe in enumerate(self.probes):
            if trace is not None and not concerns(probe.behind, trace.names):
                continue
            bound = None if isinstance(probe.behind, GradientNormalize) else max_norm(probe.behind)
            found.append(Clipper(name_of(probe.behind), how(probe.behind), share(place), bound))
        place = len(self.probes)
        if self.own_clip:
            found.append(Clipper("`configure_gradient_clipping`", "adaptive", share(place)))
        elif self.clips > 0:
            value = str(getattr(self.trainer.gradient_clip_algorithm, "value", "norm")) == "value"
            algorithm = ", gradient_clip_algorithm='value'" if value else ""
            name = f"Trainer(gradient_clip_val={self.clips:g}{algorithm})"
            found.append(Clipper(name, "adaptive" if value else "fixed", share(place), None if value else self.clips))
        return tuple(found)

    def runs(self) -> list[Run]:
        """One for each optimizer."""
        return [self.run(position) for position in range(len(self.traces))]

    def run(self, position: int) -> Run:
        trace = self.traces[position]
        schedules = self.schedules[position]
        ours = self.callbacks or self.trainer.callbacks
        facts = Facts(
            optimizer=type(trace.optimizer).__name__,
            position=position,
            groups=trace.groups,
            precision=str(self.trainer.precision),
            accumulation=self.trainer.accumulate_grad_batches,
            schedule=tuple(type(one.scheduler).__name__ for one in schedules),
            interval=schedules[0].interval if schedules else "",
            steps_planned=self.steps_planned,
            steps_per_epoch=self.steps_per_epoch,
            manual=not self.module.automatic_optimization,
            optimizers=len(self.traces),
            guarded=any(isinstance(one, NonFiniteGuard) for one in ours),
            rules=tuple(type(one.rule).__name__ for one in ours if isinstance(one, LearningRateControl)),
            norm_layers=self.norm_layers,
            batch_size=self.batch_size,
            world_size=self.trainer.world_size,
        )
        left = trace.left_sum / trace.known if trace.known and trace.left_sum > 0 else None
        counts = Counts(
            steps=trace.steps,
            usable=trace.usable,
            skipped=trace.skipped,
            nonfinite=trace.nonfinite,
            left=left,
            known=trace.known,
            epochs=self.epochs,
            stopped=self.stopped,  # type: ignore[arg-type]
        )
        columns = {key: np.array([row[key] for row in trace.rows], np.float64) for key in Scalars._fields if trace.rows}
        empty = np.empty(0)
        scalars = Scalars(**{key: columns.get(key, empty) for key in Scalars._fields})
        scalars = scalars._replace(step=scalars.step.astype(np.int64))
        return Run(facts, counts, scalars, layers_of(trace), self.clippers(trace))


def layers_of(trace: Trace) -> Layers:
    shape = (len(trace.layer_rows), len(trace.params))
    tables = {
        key: np.array([row[key] for row in trace.layer_rows], np.float64).reshape(shape)
        for key in ("before", "after", "peak", "weight", "update")
    }
    return Layers(
        names=tuple(trace.names),
        owners=tuple(name.rpartition(".")[0] for name in trace.names),
        dims=tuple(p.dim() for p in trace.params),
        sizes=tuple(p.numel() for p in trace.params),
        group_of=tuple(trace.group_of),
        given=trace.given.copy(),
        trainable=np.array([p.requires_grad and p.numel() > 0 for p in trace.params], bool),
        step=np.array([row["step"][0] for row in trace.layer_rows], np.int64),
        **tables,
    )


def name_of(callback: Any) -> str:
    name = getattr(callback, "name", None)
    return f"{type(callback).__name__}({name})" if name else type(callback).__name__


def how(callback: Any) -> How:
    if getattr(callback, "dry_run", False):
        return "dry"
    if isinstance(callback, GradientNormalize):
        return "normalise"
    return "fixed" if max_norm(callback) is not None else "adaptive"


def max_norm(callback: Any) -> float | None:
    """Of a clip of the whole gradient by one number; None otherwise."""
    policy = getattr(callback, "policy", None)
    fixed = isinstance(policy, MaxNorm) and callback.scope == "global" and not callback.rules
    return float(policy.max_norm) if fixed else None


def concerns(callback: Any, names: Sequence[str]) -> bool:
    """Whether its rules leave any of these parameters to be judged."""
    rules = getattr(callback, "rules", None)
    if not rules:
        return True
    policies = [next((rules[glob] for glob in rules if fnmatch(name, glob)), callback.policy) for name in names]
    return any(policy is not None for policy in policies)
