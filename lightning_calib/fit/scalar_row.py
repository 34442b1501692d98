"""The row: what one logged step tells, brought to the host in one copy and given to every logger."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_calib.functional.plan import wide_dtype
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.step_hooks import After

if TYPE_CHECKING:
    from lightning_calib.dashboard.recorder import Dashboard
    from lightning_calib.fit.session import Session

Row = dict[str, Tensor | float]


def step_row(session: "Session", ledger: Ledger, after: After) -> Row:
    """One optimizer's part of the row, tags without their suffix."""
    tally, row = ledger.tally, Row()
    if ledger.turn and ledger.before is not None:
        row["calib/grad_norm_before"] = ledger.before
    if tally.window_steps:
        row["calib/grad_norm_max"] = tally.window_max.where(tally.window_max >= 0, torch.nan)
    row |= _taken(session, ledger, after)
    fraction = _fraction(session, ledger, after)
    if fraction is not None and (session.watched or any(callback.clips for callback in session.ours)):
        row["calib/clip_fraction"] = fraction
    if session.watched:
        row |= _state(session, ledger)
    for callback in session.ours:
        row |= callback.row(ledger)
    return row


def _taken(session: "Session", ledger: Ledger, after: After) -> Row:
    """What can be told only of a step that was taken."""
    overflow = ledger.before is None or (ledger.fused and not bool(ledger.before.isfinite()))
    if not (ledger.turn and ledger.live and ledger.stepped) or overflow:
        return {}
    row: Row = {}
    if after.used is not None:
        row["calib/grad_norm_after"] = after.used
    if after.update is not None:
        row["calib/update_norm"] = after.update.update
        if after.update.ratio is not None:
            row["calib/update_ratio"] = after.update.ratio
    return row


def _fraction(session: "Session", ledger: Ledger, after: After) -> Tensor | float | None:
    """The share of the window's steps that were reduced; of the logged step alone where the rest cannot be known."""
    if session.clip.how is not None and not session.foreseeable:
        seen = ledger.turn and ledger.live and ledger.stepped and after.used is not None
        return float(any(bool(one) for one in ledger.reduced)) if seen else None
    if not ledger.tally.window_steps:
        return None
    return ledger.tally.window_reduced / ledger.tally.window_steps


def _state(session: "Session", ledger: Ledger) -> Row:
    """What GradientMonitor adds: rates, counters, the GradScaler's scale."""
    row: Row = {**(ledger.rates if ledger.turn else {}), **counters(ledger)}
    if session.clip.how == "norm":
        row["calib/clip_threshold"] = session.clip.value * ledger.completion
    return row


def counters(ledger: Ledger) -> Row:
    """Steps that went wrong, since the start."""
    tally = ledger.tally
    return {
        "calib/nonfinite_total": tally.nonfinite,
        "calib/skipped_total": tally.kernel_skipped + tally.skipped,
    }


def write(trainer: "pl.Trainer", row: Row, step: int, dashboard: "Dashboard | None" = None) -> None:
    """One ``log_metrics`` per logger, ``callback_metrics`` for ModelCheckpoint and EarlyStopping, and the dashboard."""
    host, rest = on_host(row, dashboard.gathered if dashboard is not None else ())
    for logger in trainer.loggers:
        logger.log_metrics(host, step=step)
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in host.items()})
    if dashboard is not None:
        dashboard.tell(host, rest, step)


def on_host(row: Row, more: Sequence[Tensor] = ()) -> tuple[dict[str, float], list[Tensor]]:
    """A row's values, and tensors of any shape as float64 (float32 on MPS), brought to the host in one copy."""
    tensors = [value.detach() for value in (*row.values(), *more) if isinstance(value, Tensor)]
    if not tensors:
        return {tag: float(value) for tag, value in row.items()}, []
    device = tensors[0].device
    flat = torch.cat([value.to(device, wide_dtype(device)).reshape(-1) for value in tensors]).cpu()
    sizes = [value.numel() for value in tensors]
    parts = [part.view(value.shape) for part, value in zip(torch.split(flat, sizes), tensors, strict=True)]
    scalars = iter(parts[: len(tensors) - len(more)])
    host = {tag: float(next(scalars) if isinstance(value, Tensor) else value) for tag, value in row.items()}
    return host, parts[len(tensors) - len(more) :]
