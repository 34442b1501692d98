"""What GradientMonitor records, as a session drives it: rows for the report and, where there is one, for the tab."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from lightning_calib.fit.participant import TabRecorder
from lightning_calib.fit.row_keeper import RowKeeper
from lightning_calib.fit.shadow_keeper import ShadowKeeper
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun


class RowRecorder:
    """Hands everything on to all of them; none sees whether another has ended.

    Args:
        keeper: For the report.
        tab: For the tab; None without one.
        shadows: Policies that are judged and never applied; None without any.
    """

    keeper: RowKeeper
    tab: TabRecorder | None
    shadows: ShadowKeeper | None

    def __init__(self, keeper: RowKeeper, tab: TabRecorder | None, shadows: ShadowKeeper | None = None) -> None:
        self.keeper, self.tab, self.shadows = keeper, tab, shadows
        self.counts: dict[int, tuple[int, int]] = {}  # by the optimizer's index: tensors of a row for keeper and tab

    def prepare(self, run: OptimizerRun) -> None:
        """Prepare for an optimizer's plan; what is known from before goes on."""
        self.keeper.prepare(run)
        if self.shadows is not None:
            self.shadows.prepare(run)
        if self.tab is not None:
            self.tab.prepare(run)

    @property
    def watches_batches(self) -> bool:
        """Whether anything is to be looked at before a batch."""
        return bool(self.keeper.shift.layers)

    def begin_batch(self, *, due: bool) -> None:
        """A batch comes."""
        self.keeper.begin_batch(due=due)

    def see_loss(self, run: OptimizerRun, loss: Tensor, factor: float) -> None:
        """The loss of a micro-batch, before its step."""
        self.keeper.see_loss(run, loss, factor)

    def see_outputs(self, run: OptimizerRun, outputs: Any) -> None:
        """What a training step under manual optimization has returned, when the steps of its batch are over."""
        self.keeper.see_outputs(run, outputs)

    def begin_step(self, run: OptimizerRun) -> None:
        """A step begins, and nobody has acted yet."""
        self.keeper.begin_step(run)
        if self.tab is not None:
            self.tab.begin_step(run)

    def end_step(self, run: OptimizerRun) -> None:
        """Everybody has acted."""
        self.keeper.end_step(run)
        if self.tab is not None:
            self.tab.end_step(run)

    def see_used(self, run: OptimizerRun) -> None:
        """The gradients of a logged step are as the optimizer uses them."""
        self.keeper.see_used(run)
        if self.tab is not None:
            self.tab.see_used(run)

    def collect(self, run: OptimizerRun, memory: OptimizerMemory) -> Sequence[Tensor]:
        """The tensors of one optimizer that a row needs on the host."""
        mine = self.keeper.collect(run, memory) or []
        theirs = (self.tab.collect(run, memory) if self.tab is not None else None) or []
        shadows = self.shadows.collect(run, memory) if self.shadows is not None else None
        self.counts[run.view.index] = len(mine), len(theirs)
        return [*mine, *theirs, *([] if shadows is None else [shadows])]

    def close(
        self, run: OptimizerRun, memory: OptimizerMemory, row: dict[str, float], values: Sequence[Tensor], step: int
    ) -> tuple[Sequence[Any], OptimizerMemory] | None:
        """The records of a row that is on the host, and what is remembered after it. It changes nothing."""
        (count, more_of_tab), suffix = self.counts[run.view.index], run.view.suffix
        mine, theirs, shadows = values[:count], values[count : count + more_of_tab], values[count + more_of_tab :]
        kept = self.keeper.close(run, memory, row, mine, step) if mine else None
        records: Sequence[Any] = ()
        after = memory.new_window()
        if self.tab is not None and theirs:
            more = {} if kept is None else {f"calib/{name}{suffix}": one for name, one in kept[0].items() if one == one}
            closed = self.tab.close(run, memory, row | more, theirs, step, *shadows)
            records, after = ((), after) if closed is None else closed
        if memory.shadows is not None and shadows:
            after = after._replace(shadows=memory.shadows.after(step, shadows[0]))
        return records, after if kept is None else after._replace(history=kept[1])

    def end_row(self) -> None:
        """The row is written."""
        self.keeper.end_row()
        if self.tab is not None:
            self.tab.end_row()

    def write(self, records: Sequence[Any], step: int) -> None:
        """Write records of a row."""
        if self.tab is not None:
            self.tab.write(records, step)

    def summarise(self, run: OptimizerRun, text: str, step: int) -> None:
        """Add a summary of the run to the tab's events."""
        if self.tab is not None:
            self.tab.summarise(run, text, step)

    def finish(self, runs: Iterable[OptimizerRun], step: int) -> None:
        """The fit is over, or broken off."""
        if self.tab is not None:
            runs = list(runs)
            found = {} if self.shadows is None else {run.view.index: self.shadows.since_the_last(run) for run in runs}
            self.tab.finish(runs, step, {index: table for index, table in found.items() if table is not None})

    def saved(self, memories: dict[int, OptimizerMemory]) -> dict[str, Any]:
        """For the checkpoint: sections of the monitor's state."""
        tab = {} if self.tab is None else {"dashboard": self.tab.saved(memories)}
        shadows = {} if self.shadows is None else {"shadows": self.shadows.saved(memories)}
        return {**tab, **shadows, "report": self.keeper.saved(memories)}
