"""The start line: what was found, in one line; and the warning about two clippers."""

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_calib.fit.participant import Participant
from lightning_calib.fit.trainer_facts import FitFacts
from lightning_calib.functional.checks import told


def start_line(
    trainer: "pl.Trainer", facts: FitFacts, participants: Sequence[Participant], notes: Sequence[str]
) -> str:
    """Precision, accumulation, optimizers, schedulers, who clips and how, and why gradients are read again."""
    optimizers = trainer.optimizers if facts.engine is None else [facts.engine.optimizer]
    parts = [
        f"precision {trainer.precision}",
        f"accumulate_grad_batches {trainer.accumulate_grad_batches}",
        "optimizer " + " + ".join(type(optimizer).__name__ for optimizer in optimizers)
        if optimizers
        else "no optimizer",
        _schedulers(trainer),
        "clipping: " + (" then ".join(_clippers(facts, participants)) or "nobody"),
        *_rereads(facts, participants),
        *_engine(facts),
        *notes,
    ]
    return "; ".join(part for part in parts if part) + "."


def _engine(facts: FitFacts) -> list[str]:
    """Who has the gradients, and what is read of them."""
    if facts.engine is None:
        return []
    read = "tensors are read on logged steps" if facts.reads_tensors else "no tensor is read"
    return [f"{facts.engine} finds the norm, {read}"]


def _schedulers(trainer: "pl.Trainer") -> str:
    configs = trainer.lr_scheduler_configs
    return ", ".join(f"{type(one.scheduler).__name__} per {one.interval}" for one in configs) or "no scheduler"


def _clippers(facts: FitFacts, participants: Sequence[Participant]) -> list[str]:
    ours = [told(one) for one in participants if one._needs.clips]
    return ours + ([str(facts.clip)] if facts.clip.how else [])


def _rereads(facts: FitFacts, participants: Sequence[Participant]) -> list[str]:
    """Everything beyond one reading per step, with its reason."""
    names = ", ".join(one._label for one in participants if one in facts.behind_foreign)
    kinds = sorted({kind for one in participants for kind in one._needs.norm_types} - {2.0})
    found = [f"{names} reads the gradients again behind a callback that may change them"] if names else []
    found += [f"gradients are read once more for norm_type {kind:g}" for kind in kinds]
    if not facts.units and any(one._needs.units for one in participants):
        found.append("gradients are read once more for the norms of units, which only a dry run needs")
    return found + [one._needs.rereads for one in participants if one._needs.rereads]


def warn_of_two_clippers(facts: FitFacts, participants: Sequence[Participant]) -> None:
    """Both may be wanted, but hardly ever knowingly."""
    clippers = [one._label for one in participants if one._needs.acts and one._needs.clips]
    if clippers and facts.clip.how in ("norm", "value"):
        rank_zero_warn(
            f"Two things clip the gradient: first {', '.join(clippers)}, and last {facts.clip}. "
            "The Trainer's clip sees what ours left. Remove one of them."
        )
