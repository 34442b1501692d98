"""From what a session remembers of an optimizer to the numbers that a report reads."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_calib.fit.row_keeper import COLUMNS, MEASURED, measured, validation_loss
from lightning_calib.fit.run_facts import fixed_norm, trainable
from lightning_calib.fit.session import Session
from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.run import Clipper, Counts, Facts, Floats, Layers, Norms, Run, Scalars
from lightning_calib.steps.layer_rows import COLUMNS as STATISTICS
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.run_history import RunHistory

Stopped = Literal["running", "finished", "early", "broken"]


def run_numbers(
    session: Session, facts: Mapping[int, Facts], *, earlier: bool, epochs: int, stopped: Stopped
) -> list[Run]:
    """The numbers of every optimizer that was prepared for.

    Args:
        session: Of the fit.
        facts: By the optimizer's index.
        earlier: Whether the Trainer had taken steps before of which nothing is known.
        epochs: That have ended.
        stopped: How the fit stands.
    """
    found = []
    for run in session.runs.values():
        memory, known = run.memory, facts.get(run.view.index)
        if memory.norms is None or known is None:  # training may break off before it was prepared
            continue
        steps, count = memory.steps, int(memory.steps.known)
        counts = Counts(
            steps=steps.steps,
            usable=steps.steps - memory.norms.unusable,
            skipped=steps.skipped + int(steps.kernel_skipped),
            nonfinite=int(steps.nonfinite),
            left=(float(steps.left) / count or None) if count else None,
            known=count,
            earlier=earlier,
            epochs=epochs,
            stopped=stopped,
            rewound=steps.rewound,
            spikes=steps.spikes,
        )
        scalars = _scalars(session, run, memory)
        layers = None if memory.history is None else _layers(run, memory.history)
        incidents = () if memory.history is None else memory.history.incidents
        bad = tuple(BadStep(step, kind, layer or None) for step, layer, kind in incidents)
        found.append(Run(known, counts, scalars, layers, tuple(clippers(session, run)), _norms(memory.norms), bad))
    return found


def clippers(session: Session, run: OptimizerRun) -> list[Clipper]:
    """Who reduces this optimizer's gradients, and how often they did."""
    found, clip, counts = list[Clipper](), session.facts.clip, run.memory.steps
    for one in session.participants:
        fired = run.memory.clips.get(one.state_key)
        if one._needs.clips and fired is not None:  # none where its rules leave this optimizer alone
            how = one._needs.clips if one._needs.acts else "dry"
            rate = float(fired.fired) / fired.steps if fired.steps else None
            found.append(Clipper(one._label, how, rate, fixed_norm(one)))
    if clip.how is not None:
        seen = None if session.facts.final_norm_computable else int(counts.known)
        steps = counts.steps if seen is None else seen
        share = float(counts.trainer_reduced) / steps if steps else None
        fixed = clip.how == "norm"
        found.append(Clipper(str(clip), "fixed" if fixed else "adaptive", share, clip.value if fixed else None, seen))
    return found


def _norms(seen: NormHistory) -> Norms | None:
    median, high = seen.quantiles(0.5, 0.95)
    return Norms(float(seen.low), median, high, float(seen.high)) if float(seen.high) > 0 else None


def _scalars(session: Session, run: OptimizerRun, memory: OptimizerMemory) -> Scalars:
    """The rows, and one for the steps since the last of them: what is known of those without a row."""
    history: RunHistory | None = memory.history
    steps, rows = ([], torch.zeros((0, len(COLUMNS)))) if history is None else history.scalars.table((len(COLUMNS),))
    if history is not None and memory.steps.window_steps:
        steps, rows = (
            [*steps, max(0, session.step - 1)],
            torch.cat([rows, _since_the_last(session, run, memory, history)]),
        )
    columns = {name: _column(rows[:, i]) for i, name in enumerate(COLUMNS)}
    return Scalars(step=np.array(steps, np.int64), **columns)


def _since_the_last(session: Session, run: OptimizerRun, memory: OptimizerMemory, history: RunHistory) -> Tensor:
    """Shape (1, C): the last step's norm, and what is counted."""
    counts = memory.steps
    values = measured(history, memory, None, validation_loss(session.trainer))
    known = dict(zip(MEASURED, (float(value) for value in values), strict=True))
    known["grad_norm_max"] = float(counts.window_max) if float(counts.window_max) >= 0 else float("nan")
    known["nonfinite_total"], known["skipped_total"] = (
        float(counts.nonfinite),
        float(counts.skipped + counts.kernel_skipped),
    )
    if session.facts.clip.how is None or session.facts.final_norm_computable:
        known["clip_fraction"] = float(counts.window_reduced) / counts.window_steps
    if run.record.norm_before is not None:
        last = float(run.record.norm_before)
        known["grad_norm_before"] = last if np.isfinite(last) else float("inf")
    if known["val_loss"] != known["val_loss"]:
        known["val_loss"] = history.val_loss
    return torch.tensor([[known.get(name, torch.nan) for name in COLUMNS]])


def _layers(run: OptimizerRun, history: RunHistory) -> Layers:
    plan = run.view.plan
    steps, rows = history.layers.table((len(plan.tensors), len(STATISTICS)))
    given = history.window.given or (False,) * len(plan.tensors)
    return Layers(
        names=plan.names,
        owners=plan.layers,
        dims=tuple(map(len, plan.whole_shapes)),
        sizes=tuple(shape.numel() for shape in plan.whole_shapes),
        group_of=plan.groups,
        given=_flags(given),
        trainable=_flags(trainable(plan)),
        step=np.array(steps, np.int64),
        **{name: _column(rows[:, :, i]) for i, name in enumerate(STATISTICS)},
    )


def _column(values: Tensor) -> Floats:
    found: Floats = values.double().numpy()
    return found


def _flags(values: object) -> NDArray[np.bool_]:
    return np.array(values, np.bool_)
