"""From the numbers of a run to its findings: causes come first, and what they explain is left out."""

from collections.abc import Callable, Sequence

from lightning_calib.report.codes import CODES, EXPLAINS
from lightning_calib.report.detectors import (
    batch_norm,
    clip_always,
    clip_below_eps,
    clip_cuts_rate,
    clip_never,
    clip_twice,
    dead_layer,
    diverged,
    dominated,
    exploding,
    frozen,
    layer_rate,
    level_shift,
    loss_summed,
    no_steps_seen,
    nonfinite,
    rate_cut,
    rate_too_high,
    rate_too_low,
    skipped_steps,
    spike,
    unused_parameter,
    vanishing,
)
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Run

DETECTORS: tuple[Callable[[Measured], list[Finding]], ...] = tuple(
    module.detect
    for module in (
        loss_summed,
        diverged,
        nonfinite,
        rate_too_high,
        clip_below_eps,
        rate_cut,
        dominated,
        clip_twice,
        clip_cuts_rate,
        dead_layer,
        vanishing,
        exploding,
        unused_parameter,
        batch_norm,
        spike,
        level_shift,
        rate_too_low,
        layer_rate,
        skipped_steps,
        clip_always,
        clip_never,
        frozen,
    )
)
_RANK = {code: rank for rank, code in enumerate(CODES)}


def diagnose(measured: Sequence[Measured]) -> tuple[Finding, ...]:
    """What is wrong or worth knowing, most important first.

    Causes stand before consequences in the order of `CODES`, notes last; of two equal codes the first optimizer's.

    Args:
        measured: One for each optimizer.
    """
    found = [
        finding._replace(optimizer=seen.run.facts.position, sentence=_of(seen.run, len(measured)) + finding.sentence)
        for seen in measured
        for finding in one_run(seen)
    ]
    return tuple(sorted(found, key=lambda one: (one.severity == "note", _RANK[one.code], one.optimizer or 0)))


def one_run(seen: Measured) -> list[Finding]:
    """The findings of one optimizer, without those that another explains."""
    if not seen.run.counts.steps:
        return unused_parameter.detect(seen) or no_steps_seen.detect(seen)
    found = [finding for detect in DETECTORS for finding in detect(seen)]
    codes = {finding.code for finding in found}
    told = {explained for cause in codes for explained in EXPLAINS.get(cause, ())}
    return [finding for finding in found if finding.code not in told]


def _of(run: Run, runs: int) -> str:
    return f"Optimizer {run.facts.position} ({run.facts.optimizer}): " if runs > 1 else ""
