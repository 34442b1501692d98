"""What GradientMonitor keeps of a fit for its report: of every row the scalars, the layers and the loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_calib.functional.batch_norm import tracking
from lightning_calib.functional.dtensor import whole
from lightning_calib.report.run import Scalars
from lightning_calib.steps.batch_norm_shift import BatchNormShift
from lightning_calib.steps.layer_rows import LoggedLayers
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.own_failure import ends_only_itself
from lightning_calib.steps.run_history import Left, RunHistory
from lightning_calib.steps.saved_state import Losses, of_optimizer

COLUMNS = Scalars._fields[1:]
LARGEST = torch.tensor([name in ("grad_norm_max", "loss_max", "norm_shift") for name in COLUMNS])
MEASURED = ("loss", "loss_max", "loss_first", "factor", "norm_shift", "val_loss")  # which have no tag


class RowKeeper:
    """Sees every step of a fit. What it remembers is `RunHistory`, which a session holds.

    Args:
        trainer: Its ``callback_metrics`` have the validation loss.
        module: Its BatchNorm layers are watched.
        saved: The monitor's state from a checkpoint; empty without one.
        losses: Where to say what of it cannot be taken up.
        warn: Where sentences go.
    """

    trainer: Any
    kept: dict[str, Any]
    losses: Losses
    warn: Callable[[str], None]

    def __init__(
        self,
        trainer: Any,
        module: torch.nn.Module,
        *,
        saved: dict[str, Any],
        losses: Losses,
        warn: Callable[[str], None],
    ) -> None:
        self.trainer, self.kept, self.losses, self.warn = trainer, saved, losses, warn
        self.off = False
        self.logged: dict[int, LoggedLayers] = {}  # by the optimizer's index
        self.joined: set[int] = set()  # those of which steps may have been counted before anything was kept
        self.shift: BatchNormShift = BatchNormShift(tracking(module))
        self.automatic: bool = bool(module.automatic_optimization)

    def tell_the_end(self, trouble: Exception) -> None:
        """One warning."""
        self.warn(f"what the report knows ends here, training goes on: {trouble!r}")

    @ends_only_itself
    def prepare(self, run: OptimizerRun) -> None:
        """Prepare for an optimizer's plan; what is known from before goes on."""
        plan, index = run.view.plan, run.view.index
        self.logged[index] = LoggedLayers(run.view)
        history = run.history
        if history is None:
            history = RunHistory.empty(plan)
            self.joined.add(index)
            with self.losses.of("what the report knows of the run"):  # all of it, or nothing
                saved = of_optimizer(self.kept, "report", index)
                if saved is not None:
                    history = RunHistory.restored(saved, plan, COLUMNS, f"report.{index}")
                    self.joined.discard(index)
        run.history = history.of(plan)

    def begin_batch(self, *, due: bool) -> None:
        """A batch comes; one whose row is due is looked at."""
        if due and self.shift.layers:
            self._look()

    @ends_only_itself
    def _look(self) -> None:
        self.shift.look()

    @ends_only_itself
    def see_loss(self, run: OptimizerRun, loss: Tensor, factor: float) -> None:
        """The loss of a micro-batch, 0-d and detached; ``factor`` makes it that of a whole step."""
        history = run.history
        if history is not None:
            run.history = history._replace(losses=history.losses.add(loss, factor))

    @ends_only_itself
    def see_outputs(self, run: OptimizerRun, outputs: Any) -> None:
        """What a training step under manual optimization has returned: its loss is that of the steps of the batch."""
        history, loss = run.history, outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if history is None:
            return
        losses = history.losses
        if isinstance(loss, Tensor) and loss.numel() == 1:
            losses = losses.add(whole(loss.detach()).reshape(()).clone(), 1.0)  # it may be a buffer of the module's
        run.history = history._replace(losses=losses.end_step() if run.record.turn else losses)

    @ends_only_itself
    def begin_step(self, run: OptimizerRun) -> None:
        """A step begins, and nobody has acted yet."""
        history = run.history
        if history is None:
            return
        if self.automatic:  # else the loss comes when the batch has ended
            history = history._replace(losses=history.losses.end_step())
        if run.view.index in self.joined:
            self.joined.discard(run.view.index)
            history = history._replace(left=Left.of(run.memory.steps))
        if run.view.knows_tensors:
            history = history._replace(window=history.window.add(run.view.reading().tensors, run.view.given))
        run.history = history
        if run.record.logged and run.view.knows_tensors:
            self.logged[run.view.index].see()

    @ends_only_itself
    def end_step(self, run: OptimizerRun) -> None:
        """Everybody has acted: keep what a guard has found."""
        if run.history is not None and run.record.incident is not None:
            run.history = run.history.with_incident(run.record.incident)

    @ends_only_itself
    def see_used(self, run: OptimizerRun) -> None:
        """The gradients of a logged step are as the optimizer uses them."""
        self.logged[run.view.index].see_used()

    @ends_only_itself
    def collect(self, run: OptimizerRun, memory: OptimizerMemory) -> list[Tensor]:
        """The tensors of one optimizer that a row needs on the host: the layers, and `MEASURED`."""
        history = memory.history
        if history is None:
            return []
        numbers = self.logged[run.view.index].numbers(run.record, history.window.compared().peak)
        return [numbers, *measured(history, memory, self.shift.found(), validation_loss(self.trainer))]

    @ends_only_itself
    def close(
        self, run: OptimizerRun, memory: OptimizerMemory, row: dict[str, float], values: Sequence[Tensor], step: int
    ) -> tuple[dict[str, float], RunHistory] | None:
        """What the row knows beyond its scalars, nan where nothing is known, and what is remembered after it.

        It changes nothing.
        """
        history, suffix = memory.history, run.view.suffix
        if history is None:
            return None
        more = dict(zip(MEASURED, (float(value) for value in values[1:]), strict=True))
        if more["val_loss"] != more["val_loss"]:
            more["val_loss"] = history.val_loss
        known = {
            tag.removeprefix("calib/").removesuffix(suffix): one for tag, one in row.items() if tag.endswith(suffix)
        }
        named = {name.partition(".")[0]: value for name, value in known.items()} | known | more
        scalars = _bad_as_inf(
            torch.tensor([named.get(name, torch.nan) for name in COLUMNS], dtype=torch.float64), known
        )
        taken = f"calib/update_norm{suffix}" in row
        mask = self.logged[run.view.index].known(run.record, history.window.since, taken=taken)
        layers = torch.where(values[0].isfinite(), values[0], torch.inf)
        layers = torch.where(mask, layers, torch.nan).float()
        return more, history.after(step, scalars.float(), layers, LARGEST, memory.steps, more["val_loss"])

    def end_row(self) -> None:
        """The row is written: the step that was logged is over."""
        self.shift.forget()
        for logged in self.logged.values():
            logged.forget()

    @ends_only_itself
    def saved(self, memories: dict[int, OptimizerMemory]) -> dict[str, Any]:
        """For the checkpoint."""
        latest = validation_loss(self.trainer)
        found = {}
        for index, memory in memories.items():
            if memory.history is not None:
                val_loss = memory.history.val_loss if latest is None else _host(latest)
                found[str(index)] = memory.history.saved(COLUMNS, val_loss)
        return found


def measured(
    history: RunHistory, memory: OptimizerMemory, shift: Tensor | None, val_loss: Tensor | None
) -> list[Tensor]:
    """`MEASURED`, each 0-d."""
    losses, unknown = history.losses.counted(), torch.full((), torch.nan)
    return [
        losses.mean,
        losses.sums.highest,
        losses.sums.first,
        history.share(memory.steps),
        unknown if shift is None else shift,
        unknown if val_loss is None else torch.where(val_loss.isfinite(), val_loss, torch.inf),
    ]


def validation_loss(trainer: Any) -> Tensor | None:
    """The last that the module logged under a name with "val" and "loss"; of several the one with the shortest name."""
    found = {
        name: value.detach().reshape(())
        for name, value in trainer.callback_metrics.items()
        if "val" in name.lower() and "loss" in name.lower() and isinstance(value, Tensor) and value.numel() == 1
    }
    return found[min(found, key=lambda name: (len(name), name))] if found else None


def _host(value: Tensor) -> float:
    found = float(value)
    return found if found - found == 0 else float("inf")


def _bad_as_inf(values: Tensor, known: dict[str, float]) -> Tensor:
    """What a tag has is known, if it is nan: it was inf or nan; but for the largest of the finite norms."""
    had = torch.tensor([name in known and name != "grad_norm_max" for name in COLUMNS])
    return torch.where(had & ~values.isfinite(), torch.inf, values)
