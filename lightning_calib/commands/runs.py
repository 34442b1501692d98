"""The runs that a command reads, each with its report; a line of progress meanwhile."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_LONG = 2**22  # bytes; reading takes about a second for each


class Unreadable(Exception):  # noqa: N818  # an answer, not an error of ours
    """What was asked for cannot be read; the text says why and what to do."""


class LoadedRun(NamedTuple):
    """A run that was read.

    Attributes:
        name: As it is told.
        report: A `Report`.
        rows: An `EventRows`.
        started: When its first file was opened, in seconds since 1970; None where the file's name does not tell.
    """

    name: str
    report: Any
    rows: Any
    started: float | None


def reports_of(logdirs: Sequence[Path]) -> dict[str, Any]:
    """Of every run its report; what could not be read of it goes to stderr."""
    return {one.name: (one.report, one.rows.problems) for one in loaded(logdirs)}


def loaded(logdirs: Sequence[Path]) -> list[LoadedRun]:
    """Every run that has a row; what could not be read of it goes to stderr."""
    from lightning_calib.report import Report
    from lightning_calib.tensorboard.event_runs import runs_of
    from lightning_calib.tensorboard.find_runs import runs_in
    from lightning_calib.tensorboard.read_events import read_run

    found = {_name(logdir, run.name, logdirs): run for logdir in logdirs for run in runs_in(logdir)}
    progress, runs, empty = Progress(sum(run.size for run in found.values())), list[LoadedRun](), []
    for name, run in found.items():
        rows = read_run(run, progress)
        progress.end()
        for problem in rows.problems:
            print(f"lightning-calib: {name}: {problem}", file=sys.stderr)
        if rows.optimizers:
            runs.append(LoadedRun(name, Report(runs_of(rows)), rows, _started(run.files[0])))
        else:
            empty.append(name)
    if not runs:
        raise Unreadable(
            f"{', '.join(empty)} must have a row of lightning-calib, and has none that can be read. A run writes its "
            "first row after `log_every_n_steps` steps: train longer, or use `GradientMonitor(every_n_steps=1)`."
        )
    for name in empty:
        print(f"lightning-calib: {name} has no row yet, and is left out.", file=sys.stderr)
    return runs


def _started(path: Path) -> float | None:
    found = re.search(r"tfevents\.([0-9]{1,15})\b", path.name)
    return float(found[1]) if found else None


def _name(logdir: Path, run: str, logdirs: Sequence[Path]) -> str:
    """A run's name: below one folder its own, else with the folder as it was given."""
    if run == ".":
        return str(logdir) if logdir.name else logdir.absolute().name
    return run if len(logdirs) == 1 else (logdir / run).as_posix()


class Progress:
    """A line on stderr while much is read, if that is a terminal.

    Args:
        total: Bytes that will be read.
    """

    total: int
    read: int
    shown: int

    def __init__(self, total: int) -> None:
        self.total, self.read, self.shown = total, 0, -1
        self.on: bool = total > _LONG and sys.stderr.isatty()

    def __call__(self, size: int) -> None:
        """So many more bytes have been read."""
        self.read += size
        percent = min(100, 100 * self.read // max(1, self.total))
        if self.on and percent != self.shown:
            self.shown = percent
            print(f"\rreading {self.total / 2**20:,.0f} MiB: {percent} %", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if self.on and self.shown >= 0:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
