"""Catch gradients that are not finite: name the culprit, skip the step exactly, give up loudly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.messages import warn
from lightning_calib.fit.scalar_row import Row, counters
from lightning_calib.fit.session import Session
from lightning_calib.functional.checks import check_choice, check_count, message
from lightning_calib.functional.dtensor import whole
from lightning_calib.functional.finiteness import Bad, look_closer
from lightning_calib.functional.plan import Plan
from lightning_calib.incidents.batch_files import BatchKeeper
from lightning_calib.incidents.batch_norm_backup import Statistics, broken
from lightning_calib.incidents.culprit import Origin, origin
from lightning_calib.incidents.drop_step import count, drop, seen_by_scaler
from lightning_calib.incidents.incident_log import GuardBook
from lightning_calib.incidents.micro_batches import Window
from lightning_calib.report.incident import Incident, NonFiniteGradientError, describe, hopeless
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.scaled_rates import rate_of


class NonFiniteGuard(CalibratedCallback):
    """Watch for gradients that are not finite, before any clipping can hide them: one NaN makes every gradient NaN.

    Looks when the first of our callbacks does, wherever it stands in the list. Only on an incident it looks closer, and
    says in one line: step (the x of the charts), epoch, batch; how many tensors of how many, and the deepest listed of
    them (the last in module order, not necessarily the cause) with its counts of NaN and Inf; loss, learning rate, loss
    scale; what else is not finite; what is done.

    Args:
        action: ``"warn"`` tells and changes nothing. ``"skip"`` drops the step exactly: parameters and optimizer state
            keep their bits (``grad = None``), our other callbacks' memory is untouched, and BatchNorm statistics that
            are not finite are put back to what they were before the window. ``"raise"`` ends the run at once.
        max_consecutive: With ``"skip"``: this many bad steps in a row are skipped, at least 0; the next one raises.
        max_total: The same for all bad steps of the run; None, the default, for no limit.
        save_batch_to: A folder. Each incident leaves one file there, at most ten per process: the micro-batches whose
            loss was not finite (all of the window if none was), their indices, the random states before each, and the
            sentence; ``torch.load(weights_only=True)`` reads it. The batches of a window are kept alive for it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.
        NonFiniteGradientError: In training: with ``"raise"``, or beyond a limit.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right, and for
            ``"skip"`` with ``Trainer(gradient_clip_algorithm="value")``, which fails on dropped gradients.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import NonFiniteGuard, ZClip
        >>> trainer = Trainer(callbacks=[NonFiniteGuard("skip"), ZClip()], logger=False)

    Logged:
        ``calib/nonfinite_total``, ``calib/skipped_total`` and, with a GradScaler, ``calib/loss_scale``, beside what
        every callback of ours logs.

    Checkpoint:
        Incidents in a row and in all, the last five sentences, and which of the last 200 steps a GradScaler skipped.

    Note:
        Costs one boolean per step brought to the host. With a GradScaler an overflow is part of its work: the gradient
        stays as it is, so that the scale goes down, and there is no incident unless the loss itself is not finite, the
        scale has fallen below 1, or the scaler has not seen it; on an incident the scale goes down all the same. With
        accumulation the window is dropped as a whole. The learning-rate schedule and ``global_step`` advance on a
        skipped step, as they do when a GradScaler skips.
    """

    _transient: ClassVar[tuple[str, ...]] = (*CalibratedCallback._transient, "_window", "_statistics")

    guards = True

    def __init__(
        self,
        action: Literal["warn", "skip", "raise"] = "warn",
        max_consecutive: int = 5,
        max_total: int | None = None,
        save_batch_to: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_choice("action", action, ("warn", "skip", "raise"), 'Use "skip" to drop bad steps and carry on.')
        check_count("max_consecutive", max_consecutive, "Use 5, or 0 to raise at the first bad step.")
        if max_total is not None:
            check_count("max_total", max_total, "Use for instance 100, or None, the default, for no limit.")
        if save_batch_to is not None and not isinstance(save_batch_to, (str, Path)):
            raise TypeError(message("save_batch_to", "a folder's path or None", save_batch_to, 'Use "bad_batches".'))
        self.action, self.max_consecutive, self.max_total = action, max_consecutive, max_total
        self.save_batch_to = save_batch_to
        self.acts = action != "warn"

    # Before the step

    def start(self, session: Session) -> str | None:
        """Refuse what would fail on a dropped gradient; find the BatchNorm statistics."""
        if self.action == "skip" and session.clip.how == "value":
            raise MisconfigurationException(
                f"{self.label}('skip') cannot drop steps under {session.clip}: the Trainer's value clip fails where "
                "there is no gradient. Use GradientValueClip instead of the Trainer's argument."
            )
        self._statistics = Statistics(session.module)
        self._keeper = BatchKeeper(self.save_batch_to)
        self._order = {name: i for i, name in enumerate(Plan.of(session.module).names)}
        self._window = Window(keep=self.save_batch_to is not None)
        return f"{self.label}: {self.action}"

    def lay(self, ledger: Ledger) -> None:
        """Take up the counts."""
        self.keep(ledger, GuardBook())

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Open a window, or go on with it."""
        if self._session is not None and self._window.add(batch_idx, batch) and self.action == "skip":
            self._statistics.keep()

    def on_before_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor) -> None:
        """Keep the loss, on its device."""
        if self._session is not None and self._window.micros:
            self._window.micros[-1].losses.append(whole(loss.detach()))

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the window with the batch that stepped."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._session is not None:
            automatic = pl_module.automatic_optimization
            self._window.closed = not trainer.fit_loop._should_accumulate() if automatic else self._window.stepped

    # At the step

    def look_again(self, ledger: Ledger) -> None:
        """Behind a foreign callback."""
        self.inspect(ledger)

    def inspect(self, ledger: Ledger) -> None:
        """One boolean; and, if it is bad, the closer look."""
        session, book = self._session, self._books[ledger.index]
        if session is None or ledger.before is None or book.judged:
            return
        self._window.stepped = True
        bad = [] if ledger.is_finite() else look_closer(ledger.plan, ledger.gradients)
        if not bad:  # or every element is finite, and only their norm is too large for its type
            return
        book.judged = True
        scale = float(session.scaler.get_scale()) if session.scaler is not None else None
        source = origin(session, self._window)
        routine = scale is not None and seen_by_scaler(ledger)
        if scale is not None and routine:
            book.overflow()
            self._tell_sickness(book, scale)
            routine = not source.lost and scale >= 1
        if not routine:
            self._tell(session, ledger, source, bad, scale)
        elif self.action == "skip":
            self._statistics.put_back()
        if self.action == "skip":
            drop(ledger, routine=routine)
        count(ledger, incident=not routine)

    def observe(self, ledger: Ledger) -> None:
        """The step is over: a streak ends with a healthy one."""
        self._books[ledger.index].close()

    def _tell(self, session: Session, ledger: Ledger, source: Origin, bad: Sequence[Bad], scale: float | None) -> None:
        """Say what was found, save the evidence, and give up if it is enough."""
        book, trainer = self._books[ledger.index], session.trainer
        book.incident()
        limit = self._limit(book)
        parts = trainer.accumulate_grad_batches if session.module.automatic_optimization else 1
        rate = rate_of(ledger.optimizer.param_groups[0])
        deepest = max(bad, key=lambda one: self._order.get(one.name, -1))
        incident = Incident(
            where=f"step {session.step} (epoch {trainer.current_epoch}, batch {self._window.index})",
            bad=len(bad),
            tensors=len(ledger.plan.tensors),
            deepest=str(deepest),
            loss=self._window.loss(parts / (scale or 1.0)),
            rate=None if rate is None else float(rate),
            scale=scale,
            broken=broken(session.module, self._statistics, put_back=self.action == "skip"),
            origin=source.text,
        )
        text = describe(incident, self._outcome(book, limit, seen=seen_by_scaler(ledger)))
        saved = self._keeper.save(text, source.evidence, trainer.global_rank, session.step)
        book.remember(text)
        ledger.incidents.append((session.step, deepest.name, text))
        if book.loud:
            warn(f"{text} {saved}".strip())
        if limit:
            raise NonFiniteGradientError(hopeless(limit, book.last, trainer.precision))

    def _limit(self, book: GuardBook) -> str:
        """Why the run ends here; empty if it does not."""
        if self.action == "raise":
            return "A gradient is not finite."
        beyond = book.beyond(self.max_consecutive, self.max_total) if self.action == "skip" else ""
        return beyond and f"{beyond} Raise the limit only if the data, not the model, is to blame."

    def _outcome(self, book: GuardBook, limit: str, *, seen: bool) -> str:
        micros = len(self._window.micros)
        window = f" (a window of {micros} micro-batches)" if micros > 1 else ""
        if limit:
            done = "the run ends here"
        elif self.action == "skip":
            done = f"the step{window} is skipped"
        else:
            done = f"the GradScaler skips the step{window}" if seen else "the step goes on as it is"
        return f"{done}, {book.row} in a row, {book.total} in all"

    def _tell_sickness(self, book: GuardBook, scale: float) -> None:
        reason = book.falls_sick(scale)
        if reason:
            warn(
                f"the GradScaler is not well: {reason}. Use precision='bf16-mixed', a larger epsilon where the model "
                "divides, or a shorter growth_interval; if the loss itself grows, a lower learning rate."
            )

    def finish(self, session: Session) -> None:
        """Let go of the batches and of the module's buffers."""
        self.__dict__.pop("_window", None)
        self.__dict__.pop("_statistics", None)

    def row(self, ledger: Ledger) -> Row:
        """The counters."""
        row = counters(ledger)
        if ledger.turn and "calib/loss_scale" in ledger.rates:
            row["calib/loss_scale"] = ledger.rates["calib/loss_scale"]
        return row
