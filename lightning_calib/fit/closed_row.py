"""A row that is due: its values on the host, and what is remembered once it is written."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from lightning_calib.fit.participant import Participant, Row, StepRecorder
from lightning_calib.fit.scalar_row import on_host, scalars
from lightning_calib.fit.trainer_facts import FitFacts
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun


class ClosedRow(NamedTuple):
    """What is written of a row, and what is remembered after it.

    Attributes:
        values: By tag.
        memories: By the index of the optimizer.
        records: The recorder's, in the order in which they are written.
    """

    values: dict[str, float]
    memories: dict[int, OptimizerMemory]
    records: list[Sequence[Any]]

    def write(self, trainer: "pl.Trainer", recorder: StepRecorder | None, step: int) -> None:
        """One ``log_metrics`` per logger, ``callback_metrics`` for ModelCheckpoint and EarlyStopping, and the tab."""
        for logger in trainer.loggers:
            logger.log_metrics(self.values, step=step)
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in self.values.items()})
        if recorder is not None:
            for records in self.records:
                recorder.write(records, step)
            recorder.end_row()


def close_row(
    facts: FitFacts,
    participants: Sequence[Participant],
    runs: Sequence[tuple[OptimizerRun, OptimizerMemory]],
    recorder: StepRecorder | None,
    step: int,
) -> ClosedRow:
    """Bring a row to the host in one copy, and end its window; the one place where a window ends.

    It changes nothing: a checkpoint that is written while a row is due saves what this returns.

    Args:
        facts: What stays the same for the whole fit.
        participants: The callbacks.
        runs: The optimizers that have a part in the row, and their memory with the steps at hand.
        recorder: What records rows, where there is one.
        step: The x of the row.
    """
    row, tensors = Row(), []
    for run, memory in runs:
        part_of_row = scalars(facts, participants, run.view, run.record, memory)
        row |= {tag + run.view.suffix: value for tag, value in part_of_row.items()}
        tensors.append((recorder.collect(run, memory) if recorder is not None else None) or ())
    values, host = on_host(row, [one for each in tensors for one in each])
    memories, records = {}, list[Sequence[Any]]()
    for (run, memory), mine in zip(runs, tensors, strict=True):
        part, host = host[: len(mine)], host[len(mine) :]
        closed = recorder.close(run, memory, values, part, step) if recorder is not None and mine else None
        found, after = ((), memory.new_window()) if closed is None else closed
        records += [found] if found else []
        memories[run.view.index] = after
    return ClosedRow(values, memories, records)
