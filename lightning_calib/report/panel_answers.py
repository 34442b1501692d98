"""The report of a run as the panels read it: verdict, findings, and the counts of each optimizer."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import measure_all
from lightning_calib.report.numbers import optimizers, plain
from lightning_calib.report.run import Run
from lightning_calib.report.shadow import ShadowCourse, ShadowResult
from lightning_calib.report.suggestion import Suggestion

MOST_LAYERS = 50  # that a finding names here; it says how many there are
MOST_STEP = 2**53  # the largest whole number that a browser counts to
MOST_SHADOWS = 32  # of an optimizer that are told; it says how many there are
MOST_ROWS = 512  # of a shadow's course
_COUNTS = ("steps", "skipped", "nonfinite")


class Told(Protocol):
    """What is needed of a `Report`."""

    @property
    def verdict(self) -> str:
        """The first sentence."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Most important first."""

    @property
    def suggestion(self) -> tuple[Suggestion, ...]:
        """Which clip value, one for each optimizer."""

    @property
    def shadow(self) -> tuple[ShadowResult, ...]:
        """What policies would have done that were judged and not applied."""

    @property
    def runs(self) -> Sequence[Run]:
        """The numbers, one `Run` for each optimizer; at least one."""

    def summary(self) -> str:
        """The verdict and at most two more sentences."""


def panel_report(name: str, report: Told, problems: Sequence[str] = ()) -> dict[str, Any]:
    """The report of a run, of builtins that JSON knows.

    Args:
        name: Of the run.
        report: With at least one optimizer.
        problems: What could not be read, in words.
    """
    first = report.findings[0].severity if report.findings else "note"
    runs = report.runs
    shadows = [[one for one in report.shadow if one.optimizer == run.facts.position] for run in runs]
    counted = zip(runs, map(optimizers, measure_all(runs)), map(len, shadows), strict=True)
    return {
        "run": name,
        "verdict": report.verdict,
        "more": report.summary().removeprefix(report.verdict).strip(),
        "severity": "fine" if first == "note" else first,
        "suggestion": [plain(one._asdict()) | {"said": str(one)} for one in report.suggestion],
        "findings": [_finding(one) for one in report.findings],
        "shadow": [_shadow(one) for mine in shadows for one in mine[:MOST_SHADOWS]],
        "optimizers": [_counted(run, seen) | {"shadows": number} for run, seen, number in counted],
        "steps_per_epoch": runs[0].facts.steps_per_epoch,
        "problems": list(problems),
    }


def _finding(one: Finding) -> dict[str, Any]:
    told: dict[str, Any] = plain(one._asdict())
    steps = told["steps"] and [step if step <= MOST_STEP else str(step) for step in told["steps"]]
    return told | {"layers": told["layers"][:MOST_LAYERS], "layer_count": len(one.layers), "steps": steps}


def _shadow(one: ShadowResult) -> dict[str, Any]:
    """A shadow without its constructor's call; its course is every n-th row, the last among them."""
    told: dict[str, Any] = plain(one._replace(course=None)._asdict())
    course = one.course or ShadowCourse()
    every = max(1, -(-len(course.step) // MOST_ROWS))
    chosen = range(len(course.step))[::-every][::-1]
    threshold = [_short(course.threshold[i]) for i in chosen if course.step[i] <= MOST_STEP]
    steps = [course.step[i] for i in chosen if course.step[i] <= MOST_STEP]
    return told | {"course": {"step": steps, "threshold": threshold}}


def _short(value: float | None) -> float | None:
    """Six digits: a float32 has hardly more."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def _counted(run: Run, told: dict[str, Any]) -> dict[str, Any]:
    """The counts of one optimizer: `clipped` is the number of steps on which anybody reduced the gradient."""
    step, share = run.scalars.step, run.scalars.clip_fraction
    known = np.isfinite(share)
    gap = int(np.median(np.diff(step))) if len(step) > 1 else 1
    windows = np.diff(step, prepend=max(-1, int(step[0]) - gap)) if len(step) else step
    clipped = int(np.rint(share[known] @ windows[known])) if known.any() else None
    counts = {key: told[key] for key in _COUNTS} | {"clipped": clipped}
    unfinished = run.facts.steps_planned is not None and run.counts.stopped == "running"
    return {"optimizer": told["optimizer"], "name": told["name"], "unfinished": unfinished, **counts}
