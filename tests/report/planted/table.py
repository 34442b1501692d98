"""All planted runs, and how a report is scored on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from report.planted import clips, example_runs, healthy, incidents, layers, rates
from report.planted.fit import Case

from lightning_calib.report.run import Run

FAULTS: tuple[Case, ...] = (*rates.CASES, *clips.CASES, *layers.CASES, *incidents.CASES)
HEALTHY: tuple[Case, ...] = (*healthy.CASES, *example_runs.CASES)
Diagnose = Callable[[Sequence[Run]], Any]  # anything with `findings`: code, severity, layers, sentence


class Score(NamedTuple):
    """One run, diagnosed.

    Attributes:
        right: Of a fault: its code is in the first sentence, and so is one of its layers, where the case names any.
            Of a healthy run: nothing above a note, and the notes that it should have.
        said: What the report says first, and the codes of everything that it found.
    """

    case: Case
    right: bool
    said: str


def diagnose(runs: Sequence[Run]) -> Any:
    """The package's own report."""
    from lightning_calib.report.report import Report

    return Report(runs)


def score(case: Case, runs: Sequence[Run], report: Diagnose = diagnose) -> Score:
    """Whether the report says what it should."""
    findings = report(runs).findings
    loud = [one for one in findings if one.severity != "note"]
    codes = ", ".join(f"{one.code} ({one.severity})" for one in findings) or "nothing"
    said = f"{codes}: {findings[0].sentence}" if findings else codes
    if not case.codes:
        return Score(case, not loud and {one.code for one in findings} >= set(case.notes), said)
    first = loud[0] if loud else None
    named = first is not None and first.code in case.codes
    there = not case.layers or (first is not None and any(case.layers in name for name in first.layers))
    return Score(case, named and there, said)
