"""The start line: what was found, in one line; and the warning about two clippers."""

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from lightning_calib.fit.session import Session


def start_line(session: "Session", notes: list[str]) -> str:
    """Precision, accumulation, optimizers, schedulers, who clips, and why gradients are read more than once."""
    trainer = session.trainer
    parts = [
        f"precision {trainer.precision}",
        f"accumulate_grad_batches {trainer.accumulate_grad_batches}",
        "optimizer " + " + ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        if trainer.optimizers
        else "no optimizer",
        _schedulers(session),
        "clipping: " + (" then ".join(_clippers(session)) or "nobody"),
        *_rereads(session),
        *notes,
    ]
    return "; ".join(part for part in parts if part) + "."


def _schedulers(session: "Session") -> str:
    configs = session.trainer.lr_scheduler_configs
    return ", ".join(f"{type(one.scheduler).__name__} per {one.interval}" for one in configs) or "no scheduler"


def _clippers(session: "Session") -> list[str]:
    ours = [one.label + ("" if one.acts else " (dry run)") for one in session.ours if one.clips]
    return ours + ([str(session.clip)] if session.clip.how else [])


def _rereads(session: "Session") -> list[str]:
    """Everything beyond one reading per step, with its reason."""
    names = ", ".join(one.label for one in session.ours if one in session.behind_foreign)
    kinds = sorted({kind for one in session.ours for kind in one.norm_types} - {2.0})
    found = [f"{names} reads the gradients again behind a callback that may change them"] if names else []
    found += [f"gradients are read once more for norm_type {kind:g}" for kind in kinds]
    return found + [note for one in session.ours if (note := one.extra_reading)]


def warn_of_two_clippers(session: "Session") -> None:
    """Both may be wanted, but hardly ever knowingly."""
    clippers = [one.label for one in session.ours if one.acts and one.clips]
    if clippers and session.clip.how in ("norm", "value"):
        rank_zero_warn(
            f"Two things clip the gradient: first {', '.join(clippers)}, and last {session.clip}. "
            "The Trainer's clip sees what ours left, so the smaller threshold wins. Remove one of them."
        )
