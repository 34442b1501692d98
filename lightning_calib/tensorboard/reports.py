"""What a run's event files say in words: the report that the console and the command line give, for the tab."""

from collections import OrderedDict
from threading import Lock
from typing import Any

from lightning_calib.report.panel_answers import panel_report
from lightning_calib.report.report import Report
from lightning_calib.tensorboard.event_files import RunFiles
from lightning_calib.tensorboard.event_runs import runs_of
from lightning_calib.tensorboard.read_events import read_run
from lightning_calib.tensorboard.refused import Refused, shown

MOST_KEPT = 256  # reports; each has some kB


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
    return panel_report(files.name, Report(runs_of(rows)), rows.problems)
