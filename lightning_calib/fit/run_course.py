"""The course of a fit, as GradientMonitor reports on it: its facts, how it stands, and what of it has been told."""

import sys
from collections.abc import Iterable
from typing import Literal

from lightning_calib.fit.row_keeper import COLUMNS
from lightning_calib.fit.row_recorder import RowRecorder
from lightning_calib.fit.run_facts import rate_of, run_facts
from lightning_calib.fit.run_numbers import run_numbers
from lightning_calib.fit.session import Session
from lightning_calib.report.detect import WINDOW, Spikes
from lightning_calib.report.finding import Finding
from lightning_calib.report.run import Facts, Run
from lightning_calib.steps.gradient_view import GradientView

_EVENTS = ("nonfinite", "diverged", "spike")  # findings that are told when they come
_AFTER = 5  # rows that are looked at when one was unlike those before it
_NONFINITE, _LARGEST = COLUMNS.index("nonfinite_total"), COLUMNS.index("grad_norm_max")


class RunCourse:
    """One fit.

    Args:
        session: It holds what is remembered.
        recorder: It has the shadows, if there are any.
        earlier: Whether the Trainer had taken steps before of which nothing is known.

    Attributes:
        epochs: That have ended.
    """

    session: Session
    recorder: RowRecorder | None
    earlier: bool
    watched: int

    def __init__(self, session: Session, recorder: RowRecorder | None = None, *, earlier: bool) -> None:
        self.session, self.recorder, self.earlier = session, recorder, earlier
        self.epochs: int = int(session.trainer.current_epoch)
        self.facts: dict[int, Facts] = {}  # by the optimizer's index
        self.told: set[str] = set()  # codes
        self.watched = 0  # rows

    def learn(self, view: GradientView) -> Facts:
        """The facts of an optimizer, when the fit begins or its parameters have changed."""
        run, session = self.session.runs[id(view.optimizer)], self.session
        rates = tuple(rate_of(group) for group in view.optimizer.param_groups)
        if run.history is not None:
            rates = run.history.rates + rates[len(run.history.rates) :]  # new groups begin with their own
            run.history = run.history._replace(rates=rates)
        found = run_facts(session.trainer, session.module, view, session.participants, rates)
        self.facts[view.index] = found
        return found

    def runs(self, *, over: bool = False) -> list[Run]:
        """The numbers so far."""
        stopped = self._stopped() if over else "running"
        found = run_numbers(self.session, self.facts, earlier=self.earlier, epochs=self.epochs, stopped=stopped)
        shadows, last = self.recorder.shadows if self.recorder else None, max(0, self.session.step - 1)
        if shadows is None:
            return found
        rows = {run.view.index: shadows.rows(run, last) for run in self.session.runs.values()}
        return [one._replace(shadows=rows[one.facts.position]) for one in found]

    def _stopped(self) -> Literal["finished", "early", "broken"]:
        trainer = self.session.trainer
        if str(getattr(trainer.state.status, "value", "")) == "interrupted":
            return "early" if isinstance(sys.exc_info()[1], KeyboardInterrupt) else "broken"
        planned = next((one.steps_planned for one in self.facts.values()), None)
        short = trainer.should_stop if planned is None else self.session.step < planned
        return "early" if short else "finished"

    def stirred(self) -> bool:
        """Whether a row that was written last is unlike those before it, so that a report is worth its time.

        What it means may show in the rows that follow it only.
        """
        runs = self.session.runs.values()
        now = any(_stirs(rows) for run in runs if (rows := _last_rows(run.history)))
        self.watched = _AFTER if now else self.watched - 1
        return self.watched > 0

    def news(self, findings: Iterable[Finding]) -> list[Finding]:
        """Of the findings those that are of an event, each code once; a guard tells of bad steps by itself."""
        guarded = any(one._needs.nonfinite for one in self.session.participants)
        wanted = [code for code in _EVENTS if code not in self.told and not (guarded and code == "nonfinite")]
        found = {one.code: one for one in findings if one.code in wanted and one.severity != "note"}
        self.told |= set(found)
        return list(found.values())


def _last_rows(history: object) -> list[list[float]]:
    """The last rows, newest last."""
    scalars = getattr(history, "scalars", None)
    if scalars is None:
        return []
    rows = [*scalars.rows[-WINDOW:], *([] if scalars.open is None else [scalars.open])]
    return [row.tolist() for row in rows]


def _stirs(rows: list[list[float]]) -> bool:
    """A gradient that is not finite, or a norm that is a spike."""
    usual, now = Spikes(), rows[-1]
    bad = [row[_NONFINITE] for row in rows if row[_NONFINITE] == row[_NONFINITE]]
    if bad and bad[-1] > (bad[-2] if len(bad) > 1 else 0):
        return True
    for row in rows[:-1]:
        usual.times(row[_LARGEST])
    return usual.times(now[_LARGEST]) > 0
