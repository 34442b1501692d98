"""The row: what one logged step tells, as scalars."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_calib.fit.participant import Participant, Row
from lightning_calib.fit.trainer_facts import FitFacts
from lightning_calib.functional.plan import wide_dtype
from lightning_calib.steps.counts import StepCounts
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.step_record import Phase, StepRecord


def scalars(
    facts: FitFacts,
    participants: Sequence[Participant],
    view: GradientView,
    record: StepRecord,
    memory: OptimizerMemory,
) -> Row:
    """One optimizer's part of the row, tags without their suffix. It changes nothing."""
    row = Row()
    if record.turn and record.norm_before is not None:
        row["calib/grad_norm_before"] = record.norm_before
    if memory.steps.window_steps:
        row["calib/grad_norm_max"] = memory.steps.window_max.where(memory.steps.window_max >= 0, torch.nan)
    row |= _taken(view, record)
    fraction = _fraction(facts, record, memory.steps)
    if fraction is not None and (facts.full_row or any(one._needs.clips for one in participants)):
        row["calib/clip_fraction"] = fraction
    if facts.full_row:
        row |= rates_of(record) if record.turn else {}
        row |= counters(memory.steps)
        if facts.clip.how == "norm":
            row["calib/clip_threshold"] = facts.clip.value * record.window_scale
    for one in participants:
        row |= one._row(view, record, memory)
    return row


def _taken(view: GradientView, record: StepRecord) -> Row:
    """What is known only of a step that was taken."""
    before = record.norm_before
    overflow = before is None or (view.fused and not bool(before.isfinite()))
    if record.phase is not Phase.TAKEN or overflow:
        return {}
    row = Row()
    if record.norm_used is not None:
        row["calib/grad_norm_after"] = record.norm_used
    if record.update is not None:
        row["calib/update_norm"] = record.update.update
        if record.update.ratio is not None:
            row["calib/update_ratio"] = record.update.ratio
    return row


def _fraction(facts: FitFacts, record: StepRecord, steps: StepCounts) -> Tensor | float | None:
    """The share of the window's steps that were reduced; of the logged step alone where the rest cannot be known."""
    if facts.clip.how is not None and not facts.final_norm_computable:
        seen = record.phase is Phase.TAKEN and record.norm_used is not None
        return float(record.reduced) if seen else None
    return steps.window_reduced / steps.window_steps if steps.window_steps else None


def rates_of(record: StepRecord) -> Row:
    """The learning rates of the step, and the GradScaler's scale."""
    rates, row = record.rates, Row()
    if rates is not None and rates.lr is not None and rates.lr_effective is not None:
        row |= {"calib/lr": rates.lr, "calib/lr_effective": rates.lr_effective}
    if rates is not None and rates.loss_scale is not None:
        row["calib/loss_scale"] = rates.loss_scale
    return row


def counters(steps: StepCounts) -> Row:
    """Steps that went wrong, since the start."""
    return {"calib/nonfinite_total": steps.nonfinite, "calib/skipped_total": steps.kernel_skipped + steps.skipped}


def on_host(row: Row, more: Sequence[Tensor] = ()) -> tuple[dict[str, float], list[Tensor]]:
    """A row's values, and tensors of any shape as float64 (float32 on MPS), brought to the host in one copy."""
    tensors = [value.detach() for value in (*row.values(), *more) if isinstance(value, Tensor)]
    if not tensors:
        return {tag: float(value) for tag, value in row.items()}, []
    device = tensors[0].device
    flat = torch.cat([value.to(device, wide_dtype(device)).reshape(-1) for value in tensors]).cpu()
    sizes = [value.numel() for value in tensors]
    parts = [part.view(value.shape) for part, value in zip(torch.split(flat, sizes), tensors, strict=True)]
    of_row = iter(parts[: len(tensors) - len(more)])
    host = {tag: float(next(of_row) if isinstance(value, Tensor) else value) for tag, value in row.items()}
    return host, parts[len(tensors) - len(more) :]
