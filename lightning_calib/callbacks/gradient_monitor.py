"""Observe gradients, and say what they are like."""

from typing import Any, Literal

import lightning.pytorch as pl

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.dashboard.recorder import Dashboard, dashboard_of
from lightning_calib.fit.messages import say
from lightning_calib.fit.session import Session
from lightning_calib.functional.checks import check_count, check_flag
from lightning_calib.report.summary import Clipper, Facts, summarise
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.norm_history import Sketch, SketchBook


class GradientMonitor(CalibratedCallback):
    """Measure, log and explain gradients; never change a run: it ends with the same bits as without this callback.

    Norms are 2-norms of the optimizer's own parameters, unscaled, after accumulation and reduction over ranks.

    Args:
        every_n_steps: Log a row every so many batches that step, at least 1; None follows the Trainer's
            ``log_every_n_steps``. Spikes between two rows stay visible in ``calib/grad_norm_max``.
        layers: Whether to write the records of the "Gradients" tab, and charts for the other tabs, where a logger is
            TensorBoard's. False writes scalars only.
        histograms: Whether the first and every tenth row also counts the elements of the gradient by their magnitude,
            per module, before and after: one more read of all gradients each.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientMonitor
        >>> trainer = Trainer(callbacks=[GradientMonitor()], logger=False)

    Logged:
        ========================== ================================================================================
        ``calib/grad_norm_before`` norm as the first of our callbacks saw it
        ``calib/grad_norm_max``    the largest since the last row
        ``calib/grad_norm_after``  norm that the optimizer used; absent for a skipped step, or where it cannot be known
        ``calib/clip_fraction``    share of the steps since the last row on which anybody reduced the gradient
        ``calib/clip_threshold``   the callback's target, or the Trainer's ``gradient_clip_val``
        ``calib/lr``               learning rate of the first parameter group in this step, if it has one
        ``calib/lr_effective``     the same times the group's ``d`` where it has one (Prodigy, D-Adaptation)
        ``calib/nonfinite_total``  steps so far whose norm was inf or nan (a GradScaler's overflows excepted)
        ``calib/skipped_total``    steps so far that the optimizer did not take, a GradScaler's overflows among them
        ``calib/loss_scale``       the GradScaler's scale, with a GradScaler only
        ``calib/update_norm``      norm of the change of the weights in this step
        ``calib/update_ratio``     median of |dw| / |w| over weights of more than one dimension
        ========================== ================================================================================

        The last two are exact for tensors of up to 2^16 elements and estimated from 2^16 elements beyond. With several
        optimizers every tag ends in ``/0``, ``/1``, ...

        With a ``TensorBoardLogger`` also, as tensors for the tab: ``calib/layers.<digest>`` (for each parameter the
        norm of its gradient before and after and the largest since the last row, and the norms of weight and update),
        ``calib/globals``, ``calib/events``, and with ``histograms`` ``calib/hist.<digest>``; once, a Custom Scalars
        layout and the text ``calib/how to read``.

    Checkpoint:
        The counters, and up to 4,096 norms for the summary (16 kB per optimizer). With the tab: the largest norms since
        the last row, the record that is being filled, and what the events remember (about 100 bytes per parameter).

    Note:
        Above 1,000 rows a record holds the largest of 2, 4, 8, ... rows: 5,977 records for 10^6 rows. Trouble while
        writing the tab's records is told once and ends them, not the run.

        With a fused optimizer under a GradScaler the gradients still carry the scale: the norms are divided by it.
        Under DeepSpeed, FSDP1 or LBFGS the callback says so once, and logs nothing.
    """

    acts = False
    watches = True

    def __init__(self, every_n_steps: int | None = None, layers: bool = True, histograms: bool = False) -> None:
        super().__init__()
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps, "Use 50, or None to follow the Trainer.", 1)
        check_flag("layers", layers, "Use True for the dashboard, False for scalars only.")
        check_flag("histograms", histograms, "Use True to count magnitudes every tenth row.")
        self.every_n_steps, self.layers, self.histograms = every_n_steps, layers, histograms
        self._facts: list[Facts] = []
        self._earlier = False

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Join the session; note whether the Trainer has taken steps of which no count is known."""
        super().on_train_start(trainer, pl_module)
        if self._session is not None:
            counted = any(ledger.tally.steps for ledger in self._session.ledgers.values())
            self._earlier = self._saved.get("earlier") is True or (trainer.global_step > 0 and not counted)

    def start(self, session: Session) -> None:
        """Open the dashboard, if a logger is TensorBoard's."""
        if self.layers:
            session.dashboard = dashboard_of(
                session, histograms=self.histograms, sketch=self.sketch, saved=self._saved, losses=self._losses
            )
        told = session.dashboard.furnish() if session.dashboard is not None else None
        if told:
            say(told)

    def lay(self, ledger: Ledger) -> None:
        """Take up the norms seen so far."""
        self.keep(ledger, SketchBook(Sketch.empty(ledger.plan)))
        if self._dashboard is not None:
            self._dashboard.lay(ledger)

    @property
    def _dashboard(self) -> Dashboard | None:
        return self._session.dashboard if self._session is not None else None

    def observe(self, ledger: Ledger) -> None:
        """Remember the norm."""
        book = self._books[ledger.index]
        if ledger.before is not None:
            book.sketch = book.sketch.add(ledger.before)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """A line on the run so far after epoch 1, 2, 4, 8, ..."""
        epoch = trainer.current_epoch + 1
        seen = self._session is not None and any(one.tally.steps for one in self._session.ledgers.values())
        if seen and epoch & (epoch - 1) == 0:
            text = self.summary()
            say(f"after {epoch} epoch{'' if epoch == 1 else 's'}: {text}")
            if self._dashboard is not None:
                self._dashboard.summarise(text)

    def summary(self) -> str:
        """What the gradients of this fit were like so far, and what to change: at most three sentences."""
        return summarise(_collect(self._session, self) if self._session is not None else self._facts)

    def finish(self, session: Session) -> None:
        """Keep the facts for `summary`, and close the dashboard."""
        dashboard = session.dashboard
        try:
            self._facts = _collect(session, self)
            if dashboard is not None and any(facts.steps for facts in self._facts):
                dashboard.summarise(summarise(self._facts))
        finally:
            if dashboard is not None:
                dashboard.finish()

    def state_dict(self) -> dict[str, Any]:
        """With what the dashboard remembers."""
        state = super().state_dict() | ({"earlier": True} if self._earlier else {})
        return state if self._dashboard is None else {**state, "dashboard": self._dashboard.saved()}

    def knows(self, ledger: Ledger) -> bool:
        """Whether it was prepared for this optimizer: training may break off before."""
        return ledger.index in self._books

    def sketch(self, ledger: Ledger) -> Sketch:
        """The norms of one optimizer."""
        sketch: Sketch = self._books[ledger.index].sketch
        return sketch


def _collect(session: Session, monitor: GradientMonitor) -> list[Facts]:
    known = [one for one in session.ledgers.values() if monitor.knows(one)]
    return [_facts(session, one, monitor.sketch(one), earlier=monitor._earlier) for one in known]


def _facts(session: Session, ledger: Ledger, sketch: Sketch, *, earlier: bool) -> Facts:
    tally, (median, high) = ledger.tally, sketch.quantiles(0.5, 0.95)
    known = int(tally.known)
    return Facts(
        optimizer=type(ledger.optimizer).__name__,
        steps=tally.steps,
        usable=tally.steps - sketch.unusable,
        lowest=float(sketch.low),
        median=median,
        high=high,
        highest=float(sketch.high),
        clippers=tuple(_clippers(session, ledger)),
        left=float(tally.left) / known if known else None,
        known=known,
        guarded=any(one.guards for one in session.ours),
        earlier=earlier,
        nonfinite=int(tally.nonfinite),
        skipped=tally.skipped + int(tally.kernel_skipped),
    )


def _clippers(session: Session, ledger: Ledger) -> list[Clipper]:
    found = []
    for one in session.ours:
        if one.clips and (count := one.count(ledger)).steps:  # none where its rules leave this optimizer alone
            found.append(Clipper(one.label, float(count.fired) / count.steps, one.how if one.acts else "dry"))
    if session.clip.how is not None:
        seen = None if session.foreseeable else int(ledger.tally.known)
        steps = ledger.tally.steps if seen is None else seen
        share = float(ledger.tally.trainer_reduced) / steps if steps else None
        how: Literal["fixed", "adaptive"] = "fixed" if session.clip.how == "norm" else "adaptive"
        found.append(Clipper(str(session.clip), share, how, seen))
    return found
