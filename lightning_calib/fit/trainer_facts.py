"""What kind of run this is: precision, and who else changes gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_calib.fit.participant import Participant
from lightning_calib.functional.deepspeed import Engine, engine_in
from lightning_calib.functional.fsdp1 import wrappers
from lightning_calib.steps.optimizer_facts import TrainerClip
from lightning_calib.steps.step_record import Kept

LIGHTNING = ("lightning", "pytorch_lightning")


def trainer_clip(trainer: "pl.Trainer", module: "pl.LightningModule") -> TrainerClip:
    """Find out who clips after our callbacks."""
    engine = engine_of(trainer)
    if engine is not None and engine.why_not() is None:  # Lightning hands the Trainer's on to it
        return TrainerClip("norm" if engine.clip > 0 else None, engine.clip, by_engine=True)
    value = float(trainer.gradient_clip_val or 0.0)
    if overrides("configure_gradient_clipping", module):
        return TrainerClip("module", value)
    if value <= 0:
        return TrainerClip(None, 0.0)
    by_value = str(getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm)) == "value"
    return TrainerClip("value" if by_value else "norm", value)


def engine_of(trainer: Any) -> Engine | None:
    """DeepSpeed's engine, if that is what trains; `Engine.why_not` says whether its steps can be followed."""
    return engine_in(getattr(getattr(trainer, "strategy", None), "model", None))


def root_of(trainer: "pl.Trainer", module: nn.Module) -> nn.Module:
    """What knows all parameters: the module, or FSDP1's wrapper around it, which alone knows where its shards lie."""
    model = getattr(getattr(trainer, "strategy", None), "model", None)
    return model if isinstance(model, nn.Module) and wrappers(model)[:1] == [model] else module


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


def foreign_between(callbacks: Sequence[object], ours: Sequence[Participant]) -> tuple[set[Participant], bool]:
    """Where foreign code may change the gradients between ours, by the order of the callbacks.

    Returns the ones of ours with such a callback between them and the one of ours before, and whether there is one
    behind the last of ours.
    """
    behind, foreign, met = set[Participant](), False, False
    for callback in callbacks:
        mine = next((one for one in ours if one is callback), None)
        if mine is None:
            foreign = foreign or (met and overrides("on_before_optimizer_step", callback))
        elif foreign:
            behind.add(mine)
            foreign = False
        met = met or mine is not None
    return behind, foreign


@dataclass(frozen=True)
class FitFacts:
    """What stays the same for a whole fit.

    Attributes:
        scaler: The enabled GradScaler; None without one.
        clip: What the Trainer does after our callbacks.
        behind_foreign: Callbacks of ours behind a foreign one that may change the gradients after the one before.
        final_norm_computable: Whether the final gradient can be computed from what our callbacks left.
        full_row: Whether somebody wants all scalars in the row.
        period: A row is due every so many batches that step; 0 for never.
        engine: What keeps the gradients to itself, if anything does.
        reads_tensors: Whether the engine is asked for the gradients of logged steps.
        failure_ends: Whether a failure of ours must end the run: where a callback acts, because a clip that stops in
            silence is worse; and where the other processes would wait in a collective, because an engine brings
            gradients together, or a guard asks all of them whose loss was bad.
        units: Whether the one pass reads the norms of units: where a callback that acts needs them, or where one that
            observes does and nobody acts. Norms folded from them have other last bits than norms of tensors.
    """

    scaler: Any | None
    clip: TrainerClip
    behind_foreign: frozenset[Participant]
    final_norm_computable: bool
    full_row: bool
    period: int
    engine: Engine | None = None
    reads_tensors: bool = True
    failure_ends: bool = False
    units: bool = False

    @staticmethod
    def of(trainer: "pl.Trainer", module: "pl.LightningModule", participants: Sequence[Participant]) -> "FitFacts":
        """Find them out."""
        clip, engine = trainer_clip(trainer, module), engine_of(trainer)
        engine = None if engine is None or engine.why_not() is not None else engine
        behind, foreign_last = foreign_between(trainer.callbacks, participants)  # type: ignore[attr-defined]
        unseen = foreign_last or overrides("on_before_optimizer_step", module)
        asked = trainer.world_size > 1 and (engine is not None or any(one._needs.guards for one in participants))
        acting = [one for one in participants if one._needs.acts]
        periods = [one._needs.every_n_steps for one in participants if one._needs.every_n_steps is not None]
        return FitFacts(
            scaler=grad_scaler(trainer),
            clip=clip,
            behind_foreign=frozenset(behind),
            final_norm_computable=clip.how in (None, "norm") and (not unseen or clip.by_engine),
            full_row=any(one._needs.full_row for one in participants),
            period=min(periods, default=trainer.log_every_n_steps),  # type: ignore[attr-defined]
            engine=engine,
            reads_tensors=engine is None or (engine.finds_tensors and any(one._needs.tensors for one in participants)),
            failure_ends=asked or bool(acting),
            units=any(one._needs.units for one in acting or participants),
        )

    def kept(self, norm_left: Tensor, scale: float) -> Kept | None:
        """What the Trainer leaves of what ours have left, where it can be computed."""
        if not self.final_norm_computable:
            return None
        if self.clip.how is None:
            return Kept(norm_left, None)
        share = self.clip.share(norm_left, scale)
        return Kept(norm_left * share, (share < 1) & (norm_left < torch.inf))


def window_scale(trainer: "pl.Trainer", passes: int) -> float:
    """Lightning divides every loss by the full number of micro-batches, also in a window that has fewer."""
    return 1.0 if passes == 0 else max(1.0, trainer.accumulate_grad_batches / passes)
