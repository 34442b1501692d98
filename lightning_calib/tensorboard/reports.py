"""What a run's event files say in words: the report that the console and the command line give, for the tab."""

from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import measure_all
from lightning_calib.report.numbers import optimizers, plain
from lightning_calib.report.report import Report
from lightning_calib.report.run import Run
from lightning_calib.tensorboard.event_files import RunFiles
from lightning_calib.tensorboard.event_runs import runs_of
from lightning_calib.tensorboard.read_events import read_run
from lightning_calib.tensorboard.reading import MOST_STEP
from lightning_calib.tensorboard.refused import Refused, shown

MOST_KEPT = 256  # reports; each has some kB
MOST_LAYERS = 50  # that a finding names here; it says how many there are
_COUNTS = ("steps", "skipped", "nonfinite")


class Reports:
    """Makes the report of a run, and keeps it as long as the run's files do not grow."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Any, dict[str, Any]]] = OrderedDict()
        self._lock = Lock()  # one report at a time: each takes all of a core

    def of(self, files: RunFiles) -> dict[str, Any]:
        """The report of a run: verdict, findings, and the counts of each optimizer.

        Raises:
            Refused: If the files have no row of ours.
        """
        with self._lock:
            state = [(path.name, path.stat().st_size) for path in files.files]
            known = self._kept.pop(files.name, (None, {}))
            found = known[1] if known[0] == state else _report(files)
            self._kept[files.name] = state, found
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return found


def _report(files: RunFiles) -> dict[str, Any]:
    rows = read_run(files)
    if not rows.optimizers:
        raise Refused(f"`run` must have a row for a report, and {shown(files.name)} has none yet", 404)
    runs = runs_of(rows)
    report = Report(runs)
    first = report.findings[0].severity if report.findings else "note"
    return {
        "run": files.name,
        "verdict": report.verdict,
        "more": report.summary().removeprefix(report.verdict).strip(),
        "severity": "fine" if first == "note" else first,
        "suggestion": report.suggestion,
        "findings": [_finding(one) for one in report.findings],
        "optimizers": [_counted(run, seen) for run, seen in zip(runs, map(optimizers, measure_all(runs)), strict=True)],
        "steps_per_epoch": runs[0].facts.steps_per_epoch,
        "problems": list(rows.problems),
    }


def _finding(one: Finding) -> dict[str, Any]:
    told: dict[str, Any] = plain(one._asdict())
    steps = told["steps"] and [step if step <= MOST_STEP else str(step) for step in told["steps"]]
    return told | {"layers": told["layers"][:MOST_LAYERS], "layer_count": len(one.layers), "steps": steps}


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
