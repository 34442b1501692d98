"""What kind of run this is: precision, and who else changes gradients."""

from collections.abc import Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_calib.steps.optimizer_facts import TrainerClip

C = TypeVar("C", bound=Callback)
LIGHTNING = ("lightning", "pytorch_lightning")


def trainer_clip(trainer: "pl.Trainer", module: "pl.LightningModule") -> TrainerClip:
    """Find out who clips after our callbacks."""
    value = float(trainer.gradient_clip_val or 0.0)
    if overrides("configure_gradient_clipping", module):
        return TrainerClip("module", value)
    if value <= 0:
        return TrainerClip(None, 0.0)
    by_value = str(getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm)) == "value"
    return TrainerClip("value" if by_value else "norm", value)


def grad_scaler(trainer: "pl.Trainer") -> Any | None:
    """The enabled GradScaler of a 16-mixed run."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def overrides(hook: str, instance: object, packages: tuple[str, ...] = LIGHTNING) -> bool:
    """Whether a module or a callback has code of its own for a hook.

    That of the ``packages`` does not count. It is told by where it is defined: there are two packages of Lightning, and
    neither's classes are the other's. What has no class with that hook (a mock, a proxy) has code of its own if it
    answers to the hook's name.
    """
    if hook in getattr(instance, "__dict__", {}):
        return True
    owner = next((kind for kind in type(instance).__mro__ if hook in vars(kind)), None)
    if owner is None:
        return callable(getattr(instance, hook, None))
    return owner.__module__.split(".")[0] not in packages


def foreign_between(callbacks: Sequence[Callback], ours: Sequence[C]) -> tuple[set[C], bool]:
    """Where foreign code may change the gradients between ours, by the order of the callbacks.

    Returns the ones of ours with such a callback between them and the one of ours before, and whether there is one
    behind the last of ours.
    """
    behind, foreign, met = set(), False, False
    for callback in callbacks:
        mine = next((one for one in ours if one is callback), None)
        if mine is None:
            foreign = foreign or (met and overrides("on_before_optimizer_step", callback))
        elif foreign:
            behind.add(mine)
            foreign = False
        met = met or mine is not None
    return behind, foreign
