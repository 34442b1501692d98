"""Gradients that were inf or nan.

Looks at: the count of such steps (a GradScaler's overflows are not among them), the steps and tensors that a guard has
told, else the rows of layers for the tensors, the loss. Speaks: from the first one; one nan that reaches the weights
ends a run, so there is no rate that is harmless. Act; look where every one was skipped, because then the weights never
saw it.

Not to be confused with a run that diverged (the loss or the norm grew first: see `diverged`), nor with the overflows
with which a GradScaler finds its scale (`loss-scale`).
"""

from collections.abc import Sequence

import numpy as np

from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import count

CODES = ("nonfinite",)
_FEW = 5  # steps that a sentence lists


def first_bad_row(seen: Measured) -> int | None:
    """The first row of scalars by which a gradient or the loss had been inf or nan; None without one."""
    scalars = seen.run.scalars
    bad = (scalars.nonfinite_total > 0) | np.isinf(scalars.grad_norm_before) | np.isinf(scalars.loss)
    if np.isfinite(scalars.loss_scale).any():
        bad = (scalars.nonfinite_total > 0) | np.isinf(scalars.loss)
    return int(np.argmax(bad)) if bad.any() else None


def last_bad_row(seen: Measured) -> int:
    """The last row on which the count of such steps had grown; the last one where it is not known."""
    totals = seen.run.scalars.nonfinite_total
    known = totals > 0
    return int(np.argmax(np.where(known, totals, 0.0))) if known.any() else -1


def bad_layers(seen: Measured) -> tuple[str, ...]:
    """Names of the tensors that were not finite on the first row of layers with one, the deepest first."""
    layers = seen.run.layers
    if layers is None:
        return ()
    bad = np.isinf(layers.before)
    if not bad.any():
        return ()
    return tuple(layers.names[i] for i in np.flatnonzero(bad[np.argmax(bad.any(axis=1))])[::-1])


def told_by_guard(seen: Measured) -> tuple[BadStep, ...]:
    """The steps of which a guard has told; none where it has come after the first."""
    told = tuple(one for one in seen.run.bad_steps if one.kind == "nonfinite")
    row, steps = first_bad_row(seen), seen.run.scalars.step
    return told if told and (row is None or told[0].step <= steps[row]) else ()


def _at(steps: Sequence[int], count: int) -> str:
    """All of them, where they are few and known; else the first."""
    if len(steps) < count or count > _FEW:
        return f", the first at step {steps[0]:,}"
    *others, last = (f"{step:,}" for step in steps)
    return f", at steps {', '.join(others)} and {last}" if others else f", at step {last}"


def detect(seen: Measured) -> list[Finding]:
    """A finding where a gradient was not finite."""
    counts = seen.run.counts
    if not counts.nonfinite:
        return []
    skipped = counts.all_bad_skipped
    layers = bad_layers(seen)
    row, told = first_bad_row(seen), told_by_guard(seen)
    steps = seen.steps_of(row, last_bad_row(seen)) if row is not None else None
    many = count(counts.nonfinite, "step")
    sentence = f"{many} of {counts.steps:,} had a gradient that was inf or nan"
    if told:
        sentence += _at([one.step for one in told], counts.nonfinite)
        known = len(told) == counts.nonfinite
        steps = told[0].step, max(told[-1].step, steps[1] if steps and not known else 0)
    elif row is not None and steps is not None:
        before = int(seen.run.scalars.step[row - 1]) if row else 0
        sentence += f", the first at step {steps[0]:,}" if steps[0] - before <= 1 else ""
        sentence += f", the first between steps {before:,} and {steps[0]:,}" if steps[0] - before > 1 else ""
    if layers and seen.run.layers is not None:
        among = count(len(seen.run.layers.names), "tensor")
        sentence += f", in {len(layers):,} of {among}, deepest listed `{layers[0]}`"
    elif told and told[0].layer:
        sentence += f", deepest listed tensor `{told[0].layer}`"
        layers = tuple(dict.fromkeys(one.layer for one in told if one.layer))
    every = "it was" if counts.nonfinite == 1 else "every one was"
    sentence += f"; {every} skipped, so that the weights never saw it." if skipped else "."
    advice = (
        "Drop such steps and keep the batch to look at: "
        '`Trainer(callbacks=[NonFiniteGuard("skip", save_batch_to="bad_batches")])`. '
        "Then look for a division, a logarithm or a square root at zero, and for bad data."
    )
    if seen.run.facts.engine:
        advice = "Look for a division, a logarithm or a square root at zero, and for bad data."
    elif skipped or (seen.run.facts.guarded and counts.skipped > counts.spikes):  # a guard drops them already
        advice = (
            "Look at the batch: NonFiniteGuard's `save_batch_to` keeps it. Look for a division, a logarithm or a "
            "square root at zero, and for bad data."
        )
    evidence = {"nonfinite": float(counts.nonfinite), "skipped": float(counts.skipped), "steps": float(counts.steps)}
    severity = "look" if skipped else "act"
    return [Finding("nonfinite", severity, sentence, advice, evidence, layers=layers, steps=steps)]  # type: ignore[arg-type]
