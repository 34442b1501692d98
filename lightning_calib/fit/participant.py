"""What a callback needs of a fit, and its share of every step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_facts import TrainerClip
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.step_record import StepRecord

Row = dict[str, Tensor | float]  # tags of scalars without the optimizer's suffix, and their values


@dataclass(frozen=True)
class Needs:
    """What a callback needs of the fit, and what the others must know of it.

    Attributes:
        acts: It may change gradients or learning rates, or end the run: it refuses where it cannot be right.
        clips: How it reduces gradients, if that is what it does: by one norm that never changes, in another way, or to
            a norm, which also enlarges.
        guards: It may drop the step, and looks before the others look at anything.
        nonfinite: It tells of gradients that are not finite.
        loss: It reads the loss of the whole step, which the session adds up.
        loss_on_host: It brings the loss to the host beside the norm, so it looks before the guards that need the norm
            alone: one wait for the device serves them all.
        scales_rates: It scales learning rates.
        full_row: It wants all scalars in the row, not only those of the callbacks that act.
        every_n_steps: It wants a row every so many batches that step; None follows the Trainer.
        units: The norms of units must be measured.
        norm_types: The p of the p-norms that it reads; each one but 2 costs a reading.
        rereads: Why else the gradients are read again, for the start line.
        fabric: The hook before the step is all that it needs.
        after_step: What it needs of a step may be known only when the step is over, as from DeepSpeed.
        tensors: It wants the norms of tensors, also where each has to be brought together first.
    """

    acts: bool = True
    clips: Literal["fixed", "adaptive", "normalise"] | None = None
    guards: bool = False
    nonfinite: bool = False
    loss: bool = False
    loss_on_host: bool = False
    scales_rates: bool = False
    full_row: bool = False
    every_n_steps: int | None = None
    units: bool = False
    norm_types: tuple[float, ...] = (2.0,)
    rereads: str = ""
    fabric: bool = False
    after_step: bool = False
    tensors: bool = True


class Participant:
    """A callback as a session drives it: what it needs, and its share of a step.

    It changes gradients through the view only, and what it has to tell of a step it returns in the record.
    """

    _needs: Needs = Needs()
    _recorder: "StepRecorder | None" = None  # set in `_start` by the one that wants rows recorded

    def __repr__(self) -> str:
        return self._label

    @property
    def _label(self) -> str:
        """How sentences call it."""
        return type(self).__name__

    @property
    def state_key(self) -> str:
        """What tells it from the others, in checkpoints."""
        return type(self).__qualname__

    def _start(self, fit: "FitStart") -> str | None:
        """Once per fit, before `_prepare`; the text, if any, goes into the start line."""

    def _prepare(self, view: GradientView, memory: OptimizerMemory) -> OptimizerMemory:
        """Prepare for an optimizer's plan, at the start and when the plan has changed; take up what was saved."""
        return memory

    def _inspect(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Look at a step before any of ours acts."""
        return record

    def _inspect_again(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Look at a step that a foreign callback may have changed after `_inspect`."""
        return record

    def _act(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Change the gradients of this step, if that is what it does."""
        return record

    def _observe(self, view: GradientView, record: StepRecord) -> None:
        """Look at a step when all of ours have acted."""

    def _row(self, view: GradientView, record: StepRecord, memory: OptimizerMemory) -> Row:
        """What it adds to a logged row: tag without suffix, value. It changes nothing."""
        return {}

    def _end_batch(self, outputs: Any) -> None:
        """The steps of a batch are over, and its row is not written yet; ``outputs`` are those of its training step."""

    def _after_row(self) -> None:
        """A row was written."""

    def _refuse(self, reason: str) -> None:
        """Raise if it acts; else say why it stays silent."""
        raise NotImplementedError


class FitStart(NamedTuple):
    """What there is when a fit begins.

    Attributes:
        module: The LightningModule, or what stands in its place in a Fabric loop.
        views: Of the optimizers whose gradients can be judged.
        participants: In the order of the list of callbacks.
        clip: What the Trainer does after them.
        trainer: None in a Fabric loop.
    """

    module: Any
    views: Sequence[GradientView]
    participants: Sequence[Participant]
    clip: TrainerClip
    trainer: Any = None


class StepRecorder(Protocol):
    """What records rows, as a session drives it. No failure of its own ends a run."""

    def prepare(self, run: OptimizerRun) -> None:
        """Prepare for an optimizer's plan; what is remembered goes on."""

    def begin_step(self, run: OptimizerRun) -> None:
        """A step begins, and nobody has acted yet."""

    def end_step(self, run: OptimizerRun) -> None:
        """Everybody has acted."""

    def see_used(self, run: OptimizerRun) -> None:
        """The gradients of a logged step are as the optimizer uses them."""

    def collect(self, run: OptimizerRun, memory: OptimizerMemory) -> Sequence[Tensor] | None:
        """The tensors of one optimizer that a row needs on the host; None where the recorder has ended."""

    def close(
        self, run: OptimizerRun, memory: OptimizerMemory, row: dict[str, float], values: Sequence[Tensor], step: int
    ) -> tuple[Sequence[Any], OptimizerMemory] | None:
        """The records of a row that is on the host, and what is remembered after it. It changes nothing."""

    def end_row(self) -> None:
        """The row is written: the steps that were logged are over."""

    def write(self, records: Sequence[Any], step: int) -> None:
        """Write records of a row."""


class TabRecorder(StepRecorder, Protocol):
    """The writing side of the "Gradients" tab.

    Attributes:
        facts: JSON by the optimizer's index, which is written with its next row.
    """

    facts: dict[int, str]

    def furnish(self, suffixes: Sequence[str]) -> str | None:
        """Charts and texts for TensorBoard's other tabs; returns how to see it all, in a line."""

    def summarise(self, run: OptimizerRun, text: str, step: int) -> None:
        """Add a summary of the run to the events."""

    def close(
        self,
        run: OptimizerRun,
        memory: OptimizerMemory,
        row: dict[str, float],
        values: Sequence[Tensor],
        step: int,
        shadows: Tensor | None = None,
    ) -> tuple[Sequence[Any], OptimizerMemory] | None:
        """As of any recorder; with what has become of the shadows, shape (S, 8), nan where it is not known."""

    def finish(self, runs: Iterable[OptimizerRun], step: int, shadows: Mapping[int, Tensor]) -> None:
        """The fit is over, or broken off: write what is left; ``shadows`` by the optimizer's index, since its row."""

    def saved(self, memories: dict[int, OptimizerMemory]) -> dict[str, Any] | None:
        """For the checkpoint; None where the tab has ended."""
