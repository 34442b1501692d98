"""The writing side of the "Gradients" tab: rows in, records out, through the TensorBoard logger's own writer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lightning_calib.dashboard.event_file import Record, RecordWriter
from lightning_calib.dashboard.layer_table import LayerTable, TabMemory, layers_of, rows_of
from lightning_calib.dashboard.record_stream import RecordStream
from lightning_calib.dashboard.records import Logged
from lightning_calib.dashboard.stock_charts import furnish
from lightning_calib.report.events import Event
from lightning_calib.report.shadow_rows import ShadowNames
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.own_failure import ends_only_itself as _ends_only_itself
from lightning_calib.steps.saved_state import Losses, of_optimizer
from lightning_calib.tensorboard.contract import ABSENT, ABSENT_GLOBALS, FACTS, QUANTILES, SHADOWS

_NONE: Mapping[int, Tensor] = MappingProxyType({})


class Recorder:
    """Sees every step of a fit, and writes what the tab shows. What it remembers is `TabMemory`, which a session holds.

    Args:
        writers: Where to; on another rank than zero there is none, but everything else is done there too.
        shadows: Policies that are judged and never applied.
        histograms: Whether to count magnitudes.
        saved: The monitor's state from a checkpoint; empty without one.
        losses: Where to say what of it cannot be taken up.
        warn: Where sentences go.
    """

    writers: list[RecordWriter]
    counts: bool
    kept: dict[str, Any]
    losses: Losses
    warn: Callable[[str], None]
    off: bool
    told: bool
    last: int

    def __init__(
        self,
        writers: list[RecordWriter],
        shadows: ShadowNames = ShadowNames(),  # noqa: B008 - a tuple
        *,
        histograms: bool,
        saved: dict[str, Any],
        losses: Losses,
        warn: Callable[[str], None],
    ) -> None:
        self.writers, self.counts, self.kept, self.losses, self.warn = writers, histograms, saved, losses, warn
        self.shadows = shadows
        self.off, self.told = False, False
        self.tables: dict[int, LayerTable] = {}  # by the optimizer's index
        self.facts: dict[int, str] = {}  # JSON by the optimizer's index, which goes with its next row
        self.last = -1  # step of the last record

    def tell_the_end(self, trouble: Exception) -> None:
        """One warning: records that this rank cannot write have ended, whatever fails after that."""
        if not self.told:
            self.told = True
            self.warn(f"the dashboard's records end here, training goes on: {trouble!r}")

    @_ends_only_itself
    def furnish(self, suffixes: Sequence[str]) -> str | None:
        """Charts and texts for stock TensorBoard; returns how to see it all, in a line."""
        try:
            found = [furnish(writer.experiment, suffixes) for writer in self.writers]
        except Exception as trouble:  # on this rank alone: the others must not wait for its counts
            self.warn(f"TensorBoard's other tabs lack their charts, training goes on: {trouble!r}")
            return None
        return f"to see the gradients of every layer: {found[0].command}, then {found[0].tab}" if found else None

    @_ends_only_itself
    def prepare(self, run: OptimizerRun) -> None:
        """Prepare for an optimizer's plan; what is known from before goes on."""
        view, rows, old = run.view, replace(rows_of(run.view), shadows=self.shadows), run.tab
        self.tables[view.index] = LayerTable(view, rows)
        saved, tab = None, TabMemory(RecordStream(rows))
        if old is not None:
            self.write(*old.stream.unfinished())
            saved = old.saved()
        with self.losses.of("what the Gradients tab remembers"):  # all of it, or nothing
            saved = of_optimizer(self.kept, "dashboard", view.index) if saved is None else saved
            tab = tab if saved is None else TabMemory.restored(rows, view.plan, saved, f"dashboard.{view.index}")
        run.tab = tab

    @_ends_only_itself
    def begin_step(self, run: OptimizerRun) -> None:
        """A step begins, and nobody has acted yet."""
        table, tab = self.tables[run.view.index], run.tab
        if not run.view.knows_tensors:
            return
        given = tab.since if tab.since and all(tab.since) else table.given()  # nothing can be added to all of them
        run.tab = tab.add(run.view.reading().tensors, given)
        if run.record.logged:
            table.see_logged(histograms=self.counts and run.view.engine is None and tab.stream.histogram_due)

    @_ends_only_itself
    def end_step(self, run: OptimizerRun) -> None:
        """Everybody has acted: keep what a guard has found."""
        if run.record.incident is not None:
            run.tab = run.tab.add_incident(run.record.incident)

    @_ends_only_itself
    def see_used(self, run: OptimizerRun) -> None:
        """The gradients of a logged step are as the optimizer uses them."""
        self.tables[run.view.index].see_used()

    @_ends_only_itself
    def collect(self, run: OptimizerRun, memory: OptimizerMemory) -> list[Tensor]:
        """The tensors of one optimizer that a row needs on the host: layers, quantiles and, where due, histograms."""
        table = self.tables[run.view.index]
        layers = table.numbers(run.record, memory.tab)
        counts = table.histograms() if run.record.turn else None
        nothing = torch.full((len(QUANTILES),), torch.inf)
        quantiles = nothing if memory.norms is None else memory.norms.quantiles_of(*QUANTILES.values())
        return [layers, quantiles, *([] if counts is None else [counts])]

    @_ends_only_itself
    def close(
        self,
        run: OptimizerRun,
        memory: OptimizerMemory,
        row: dict[str, float],
        values: Sequence[Tensor],
        step: int,
        shadows: Tensor | None = None,
    ) -> tuple[list[Record], OptimizerMemory]:
        """The records of a row that is on the host, and what is remembered after it. It changes nothing."""
        (layers, quantiles, *counts), view, tab = values, run.view, memory.tab
        table = self.tables[view.index]
        masks, empty = table.masks(run.record, tab), table.empty
        mine = {_name(tag, view.suffix): value for tag, value in row.items() if tag.endswith(view.suffix)}
        known = dict(zip(QUANTILES, quantiles.nan_to_num(posinf=ABSENT).tolist(), strict=True))
        known |= {"rewound": memory.steps.rewound, "spikes": memory.steps.spikes}
        totals = {name.partition(".")[0]: value for name, value in mine.items()} | mine | known
        logged = Logged(
            step=step,
            layers=layers_of(layers, masks, empty, taken="update_norm" in totals),
            totals=torch.tensor([totals.get(name, absent) for name, absent in ABSENT_GLOBALS.items()]),
            histograms=counts[0] if counts else None,
            idle=empty | ~torch.tensor([one.requires_grad for one in view.plan.tensors], dtype=torch.bool),
            incidents=tab.incidents,
            shadows=None if shadows is None else shadows.float().nan_to_num(ABSENT),
        )
        records, stream = tab.stream.after(logged)
        return [*self._facts_of(run), *records], memory.new_window()._replace(tab=TabMemory(stream))

    def _facts_of(self, run: OptimizerRun) -> list[Record]:
        """What stays the same for the fit, if it is not written yet."""
        text = self.facts.get(run.view.index)
        return [] if text is None else [self.tables[run.view.index].rows.record(FACTS, text)]

    @_ends_only_itself
    def end_row(self) -> None:
        """The row is written: the step that was logged is over."""
        for table in self.tables.values():
            table.forget()

    def write(self, records: Sequence[Record], step: int) -> None:
        """Write records of a row; a failure is of this rank alone, and the others must not wait for it."""
        if not records:
            return
        try:
            for writer in self.writers:
                writer.write(records, step)
            self.last = max(self.last, step)
            for record in records:
                if record.about["kind"] == FACTS:
                    del self.facts[record.about["optimizer"]]
        except Exception as trouble:
            self.writers = []
            self.tell_the_end(trouble)

    @_ends_only_itself
    def summarise(self, run: OptimizerRun, text: str, step: int) -> None:
        """A summary goes with the next record: of two records of one tag at one step TensorBoard keeps the last."""
        run.tab = run.tab._replace(stream=run.tab.stream.with_event(Event(step, "summary", text)))

    @_ends_only_itself
    def finish(self, runs: Iterable[OptimizerRun], step: int, shadows: Mapping[int, Tensor] = _NONE) -> None:
        """The fit is over, or broken off: write what waits for more rows, and keep it for a run that resumes.

        Args:
            runs: What is held of the optimizers.
            step: After the last.
            shadows: By the optimizer's index: what has become of the shadows since the last row.
        """
        last, after = max(step - 1, self.last), max(step, self.last + 1)
        for run in (run for run in runs if run.tab is not None):  # training may break off before it is prepared
            tab = run.tab
            self.write(*tab.stream.unfinished())
            records, stream = tab.told().flushed()
            if (table := shadows.get(run.view.index)) is not None:
                self.write([tab.stream.rows.record(SHADOWS, table.nan_to_num(ABSENT))], last)
            self.write([*self._facts_of(run), *records], after)
            run.tab = tab._replace(stream=stream)
        for writer in self.writers:
            writer.experiment.flush()

    @_ends_only_itself
    def saved(self, memories: dict[int, OptimizerMemory]) -> dict[str, Any]:
        """For the checkpoint."""
        return {str(index): memory.tab.saved() for index, memory in memories.items() if memory.tab is not None}


def _name(tag: str, suffix: str) -> str:
    """A scalar's name without what all of an optimizer's have in common; a named callback's still ends in its name."""
    return tag.removeprefix("calib/").removesuffix(suffix)
