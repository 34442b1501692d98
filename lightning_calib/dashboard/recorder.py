"""The writing side of the "Gradients" tab: rows in, records out, through the TensorBoard logger's own writer."""

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from lightning_calib.dashboard.event_file import Record, RecordWriter, record_writer
from lightning_calib.dashboard.layer_table import Masks, Witness, layers_of, rows_of
from lightning_calib.dashboard.record_stream import Stream
from lightning_calib.dashboard.records import Logged
from lightning_calib.dashboard.stock_charts import furnish
from lightning_calib.fit.messages import warn
from lightning_calib.fit.scalar_row import Row, on_host, step_row
from lightning_calib.fit.session import Session
from lightning_calib.report.events import Event
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.norm_history import Sketch
from lightning_calib.steps.saved_state import Losses, of_optimizer
from lightning_calib.tensorboard.contract import ABSENT, GLOBAL_NAMES

P = ParamSpec("P")
R = TypeVar("R")
_QUANTILES = {"norm_p10": 0.1, "norm_p50": 0.5, "norm_p90": 0.9}


def _safely(method: Callable[P, R]) -> Callable[P, R | None]:
    """No trouble of the dashboard's ends a run: it is told once, and there is no dashboard any more."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        dashboard: Any = args[0]
        if dashboard.off:
            return None
        try:
            return method(*args, **kwargs)
        except Exception as trouble:
            dashboard.off, dashboard.gathered, dashboard.parts = True, [], []
            _tell_the_end(trouble)
            return None

    return guarded


def _tell_the_end(trouble: Exception) -> None:
    warn(f"the dashboard's records end here, training goes on: {trouble!r}")


class _Part(NamedTuple):
    """One optimizer's part of a row, as far as it is not on the device."""

    ledger: Ledger
    masks: Masks
    histograms: bool


class Dashboard:
    """Sees every step of a session, and writes what the tab shows.

    Args:
        session: What is seen.
        writers: Where to; on another rank than zero there is none, but everything else is done there too.
        histograms: Whether to count magnitudes.
        sketch: Gives the norms of an optimizer's run.
        saved: The monitor's state from a checkpoint; empty without one.
        losses: Where to say what of it cannot be taken up.
    """

    def __init__(
        self,
        session: Session,
        writers: list[RecordWriter],
        *,
        histograms: bool,
        sketch: Callable[[Ledger], Sketch],
        saved: dict[str, Any],
        losses: Losses,
    ) -> None:
        self.session, self.writers, self.sketch = session, writers, sketch
        self.counts, self.kept, self.losses = histograms, saved, losses
        self.off = False
        self.streams: dict[int, Stream] = {}
        self.witnesses: dict[int, Witness] = {}
        self.gathered: list[Tensor] = []
        self.parts: list[_Part] = []
        self.last = -1  # step of the last record

    @_safely
    def furnish(self) -> str | None:
        """Charts and texts for stock TensorBoard; returns how to see it all, in a line."""
        suffixes = [ledger.suffix for ledger in self.session.ledgers.values()]
        try:
            found = [furnish(writer.experiment, suffixes) for writer in self.writers]
        except Exception as trouble:  # on this rank alone: the others must not wait for its counts
            warn(f"TensorBoard's other tabs lack their charts, training goes on: {trouble!r}")
            return None
        return f"to see the gradients of every layer: {found[0].command}, then {found[0].tab}" if found else None

    @_safely
    def lay(self, ledger: Ledger) -> None:
        """Prepare for an optimizer's plan; what is known from before goes on."""
        index, old, rows = ledger.index, None, rows_of(ledger)
        if index in self.streams:
            self._write(*self.streams[index].unfinished())
            old = self._of(index, self.streams[index], ahead=False)
        self.streams[index], self.witnesses[index] = Stream(rows), Witness(ledger, rows)
        with self.losses.of("what the Gradients tab remembers"):
            old = of_optimizer(self.kept, "dashboard", index) if old is None else old
            if old is not None:  # all of it, or nothing
                stream, witness = Stream(rows), Witness(ledger, rows)
                stream.restore(old, f"dashboard.{index}")
                witness.restore(old, old["names"], f"dashboard.{index}")
                self.streams[index], self.witnesses[index] = stream, witness
        self.session.afters[id(ledger.optimizer)].look = self._look

    @_safely
    def witness(self, ledger: Ledger) -> None:
        """A step begins, and nobody has judged it yet."""
        witness = self.witnesses[ledger.index]
        witness.see()
        if self.session.due:
            witness.see_logged(histograms=self.counts and self.streams[ledger.index].histogram_due)

    @_safely
    def _look(self, ledger: Ledger) -> None:
        self.witnesses[ledger.index].see_used()

    @_safely
    def gather(self, ledger: Ledger) -> None:
        """Bring together on the device what the row at hand tells of this optimizer."""
        witness = self.witnesses[ledger.index]
        layers, masks = witness.numbers(self.session.afters[id(ledger.optimizer)])
        counts = witness.histograms() if ledger.turn else None
        quantiles = self.sketch(ledger).quantiles_of(*_QUANTILES.values())
        self.gathered += [layers, quantiles, *([] if counts is None else [counts])]
        self.parts.append(_Part(ledger, masks if ledger.turn else masks._replace(before=[]), counts is not None))

    @_safely
    def tell(self, row: dict[str, float], values: list[Tensor], step: int) -> None:
        """The row is on the host: write it."""
        parts = [part.ledger for part in self.parts]
        for ledger, logged in zip(parts, self._logged(row, values, step), strict=True):
            self._write(self.streams[ledger.index].take(logged), step)
            self.witnesses[ledger.index].clear()
            ledger.incidents.clear()

    def _logged(self, row: dict[str, float], values: list[Tensor], step: int) -> list[Logged]:
        """What each optimizer's stream is told; nothing is gathered any more."""
        parts, self.parts, self.gathered = self.parts, [], []
        each, found = iter(values), []
        for ledger, masks, counted in parts:
            layers, quantiles = next(each), next(each)
            mine = {_name(tag, ledger.suffix): value for tag, value in row.items() if tag.endswith(ledger.suffix)}
            known = dict(zip(_QUANTILES, quantiles.nan_to_num(posinf=ABSENT).tolist(), strict=True))
            told = {name.partition(".")[0]: value for name, value in mine.items()} | mine | known
            logged = Logged(
                step=step,
                layers=layers_of(layers, masks, ledger.plan, taken="update_norm" in told),
                totals=torch.tensor([told.get(name, ABSENT) for name in GLOBAL_NAMES]),
                histograms=next(each) if counted else None,
                idle=torch.tensor([not (one.requires_grad and one.numel()) for one in ledger.plan.tensors]),
                incidents=tuple(ledger.incidents),
            )
            found.append(logged)
        return found

    def _write(self, records: list[Record], step: int) -> None:
        if not records:
            return
        try:
            for writer in self.writers:
                writer.write(records, step)
            self.last = max(self.last, step)
        except Exception as trouble:  # on this rank alone: the others must not wait for it
            self.writers = []
            _tell_the_end(trouble)

    @_safely
    def summarise(self, text: str) -> None:
        """A summary goes with the next record: of two records of one tag at one step TensorBoard keeps the last."""
        stream = next(iter(self.streams.values()), None)
        event = Event(max(0, self.session.step - 1), "summary", text)
        if stream is not None and text not in [one.text for one in stream.waiting]:
            stream.waiting.append(event)

    @_safely
    def finish(self) -> None:
        """The fit is over, or broken off: write what waits for more rows, and keep it for a run that resumes."""
        for stream in self.streams.values():
            self._write(*stream.unfinished())
            self._write(stream.events(), max(self.session.step, self.last + 1))
        for writer in self.writers:
            writer.experiment.flush()

    @_safely
    def saved(self) -> dict[str, Any]:
        """For the checkpoint; a row that is due counts as written, for it will be, and by this run."""
        ahead = self._ahead() if self.session.row_pending else {}
        return {
            str(index): self._of(index, ahead.get(index, stream), ahead=index in ahead)
            for index, stream in self.streams.items()
        }

    def _of(self, index: int, stream: Stream, *, ahead: bool) -> dict[str, Any]:
        seen = {"peak": None, "since": [], "incidents": []} if ahead else self.witnesses[index].saved()
        return {**stream.saved(), **seen}

    def _ahead(self) -> dict[int, Stream]:
        """The streams as they will be when the pending row is written; nothing else changes."""
        books = [book for one in self.session.ours for book in one._books.values() if hasattr(book, "count")]
        counts = [book.count for book in books]
        kept = {ledger.index: (ledger.turn, ledger.tally) for ledger in self.session.ledgers.values()}
        try:
            row: Row = {}
            for key, ledger in self.session.ledgers.items():
                ledger.turn, ledger.tally = ledger.opened, self.session.settled(ledger)
                if self.session.in_row(ledger, ledger.turn):
                    mine = step_row(self.session, ledger, self.session.afters[key])
                    row |= {tag + ledger.suffix: value for tag, value in mine.items()}
                    self.gather(ledger)
            host, values = on_host(row, self.gathered)
            indices = [part.ledger.index for part in self.parts]
            streams = {index: deepcopy(self.streams[index]) for index in indices}
            for index, logged in zip(indices, self._logged(host, values, self.session.step), strict=True):
                streams[index].take(logged)
            return streams
        finally:
            for book, count in zip(books, counts, strict=True):
                book.count = count
            for ledger in self.session.ledgers.values():
                ledger.turn, ledger.tally = kept[ledger.index]


def _name(tag: str, suffix: str) -> str:
    """A scalar's name without what all of an optimizer's have in common; a named callback's still ends in its name."""
    return tag.removeprefix("calib/").removesuffix(suffix)


def dashboard_of(session: Session, **kept: Any) -> Dashboard | None:
    """The dashboard of a fit; None where no logger writes TensorBoard's files. The same on every rank."""
    writers = [found for logger in session.trainer.loggers if (found := record_writer(logger)) is not None]
    wanted = bool(writers)
    if session.trainer.world_size > 1:
        wanted = bool(session.trainer.strategy.broadcast(wanted))
    return Dashboard(session, writers, **kept) if wanted else None
