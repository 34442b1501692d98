"""What stays the same for a fit, of one optimizer: for the report, and as JSON for the event file."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from math import isfinite
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_calib.fit.participant import Participant
from lightning_calib.functional.max_norm import MaxNorm
from lightning_calib.functional.plan import Plan
from lightning_calib.report.optimizer_kind import optimizer_kind
from lightning_calib.report.run import Clipper, Facts, Group
from lightning_calib.steps.gradient_view import GradientView

SCHEMA = 1


def run_facts(
    trainer: Any, module: nn.Module, view: GradientView, participants: Sequence[Participant], rates: Sequence[Any] = ()
) -> Facts:
    """The facts as they are now, at the start of the fit.

    Args:
        trainer: The Trainer.
        module: The LightningModule.
        view: Of the optimizer.
        participants: Our callbacks.
        rates: The learning rates of its groups when the run began, where that is known from a checkpoint.
    """
    schedules = [one for one in trainer.lr_scheduler_configs if _is_of(one.scheduler, view.optimizer)]
    batches = trainer.num_training_batches
    accumulation = int(trainer.accumulate_grad_batches)
    per_epoch = -(-int(batches) // accumulation) if isfinite(batches) else None
    manual = not module.automatic_optimization
    return Facts(
        optimizer=type(view.optimizer).__name__,
        position=view.index,
        groups=groups_of(view.optimizer, rates),
        precision=str(trainer.precision),
        accumulation=accumulation,
        schedule=tuple(type(one.scheduler).__name__ for one in schedules),
        interval=str(schedules[0].interval) if schedules else "",
        steps_planned=_planned(trainer, per_epoch) if manual else _estimated(trainer),
        steps_per_epoch=per_epoch,
        manual=manual,
        optimizers=len(trainer.optimizers),
        guarded=any(one._needs.nonfinite for one in participants),
        rules=tuple(
            type(one.rule).__name__ for one in participants if one._needs.scales_rates and hasattr(one, "rule")
        ),
        norm_layers=tuple(name for name, one in module.named_modules() if isinstance(one, _BatchNorm) and one.training),
        batch_size=_batch_size(trainer.train_dataloader),
        world_size=int(trainer.world_size),
        version=str(import_module("lightning_calib").__version__),
        engine="" if view.engine is None else "DeepSpeed",
    )


def groups_of(optimizer: Optimizer, rates: Sequence[Any] = ()) -> tuple[Group, ...]:
    """Its parameter groups; ``rates`` stand in the place of their learning rates."""
    names = [kind.__name__ for kind in type(optimizer).__mro__]
    found = []
    for index, group in enumerate(optimizer.param_groups):
        kind = optimizer_kind(names, group)
        lr = rates[index] if index < len(rates) else rate_of(group)
        momentum = _number(group.get("momentum")) if kind in ("sgd", "muon") else None
        found.append(
            Group(kind, lr, _number(group.get("eps")), momentum or 0.0, _number(group.get("weight_decay")) or 0.0)
        )
    return tuple(found)


def rate_of(group: Mapping[str, Any]) -> float | None:
    """A group's learning rate; None without one."""
    return _number(group.get("lr"))


def facts_text(facts: Facts, plan: Plan, clippers: Sequence[Clipper]) -> str:
    """As JSON: what a report from the event file needs beside the rows."""
    layers = {
        "names": plan.names,
        "sizes": [shape.numel() for shape in plan.whole_shapes],
        "group_of": plan.groups,
        "trainable": trainable(plan),
    }
    said = {**facts._asdict(), "groups": [group._asdict() for group in facts.groups]}
    named = [{"name": one.name, "kind": one.kind, "max_norm": one.max_norm} for one in clippers]
    return json.dumps(_finite({"schema": SCHEMA, "facts": said, "layers": layers, "clippers": named}), allow_nan=False)


def trainable(plan: Plan) -> list[bool]:
    """Of each tensor, whether a gradient is to be expected."""
    pairs = zip(plan.tensors, plan.whole_shapes, strict=True)
    return [bool(tensor.requires_grad and shape.numel()) for tensor, shape in pairs]


def fixed_norm(callback: Participant) -> float | None:
    """Of a callback that clips by one norm that never changes; None of any other."""
    policy, plain = getattr(callback, "policy", None), callback._needs.clips == "fixed"
    return float(policy.max_norm) if plain and isinstance(policy, MaxNorm) else None


def _finite(value: Any) -> Any:
    """JSON has no inf and no nan."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value if not isinstance(value, float) or isfinite(value) else None


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_of(scheduler: Any, optimizer: Optimizer) -> bool:
    return getattr(scheduler, "optimizer", optimizer) is optimizer


def _estimated(trainer: Any) -> int | None:
    try:
        steps = trainer.estimated_stepping_batches
    except Exception:  # Lightning does not know it either, as with a GradientAccumulationScheduler
        return None
    return int(steps) if isfinite(steps) and steps > 0 else None


def _planned(trainer: Any, per_epoch: int | None) -> int | None:
    """Batches: under manual optimization Lightning counts every step of every optimizer."""
    epochs = trainer.max_epochs
    return per_epoch * epochs if per_epoch is not None and epochs is not None and epochs > 0 else None


def _batch_size(loader: Any) -> int | None:
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size if type(size) is int else None
