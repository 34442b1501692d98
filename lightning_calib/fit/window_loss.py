"""The loss of the micro-batches that an optimizer step is made of."""

from math import isfinite
from typing import Any

from torch import Tensor

from lightning_calib.functional.dtensor import whole
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.step_record import StepRecord


class WindowLoss:
    """Adds up what Lightning hands to the backward passes, each divided by the number of micro-batches; on its device.

    A new one, and one after `forget`, has no loss.

    Attributes:
        of_all: Whether what is on the host is the mean over all processes.
    """

    of_all: bool

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._host: float | None = None
        self.of_all = False

    def add(self, loss: Tensor, scaler: Any) -> None:
        """That of a backward pass, which the GradScaler, where there is one, has multiplied."""
        loss = whole(loss.detach())
        part = loss.clone() if scaler is None else loss / scaler._scale
        part = part if part.numel() == 1 else part.sum()  # of a backward pass that was given a gradient
        self._loss = part if self._loss is None else self._loss + part.to(self._loss.device)

    def mean(self, trainer: Any, record: StepRecord) -> Tensor | None:
        """Of the step at hand, as of a whole window, over all processes; a collective. None where there was none."""
        loss = self._loss
        if loss is not None and trainer.world_size > 1:
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
        return loss if loss is None or record.window_scale == 1.0 else loss * record.window_scale

    def on_host(self, view: GradientView, trainer: Any, record: StepRecord, *, mean: bool) -> float | None:
        """The loss, brought to the host beside the norm, once per step; None where there was none.

        Args:
            view: Of the step at hand.
            trainer: Knows the other processes.
            record: Of the step at hand.
            mean: Over all processes, as `mean`, a collective. Without it the loss may be of this process alone.
        """
        loss = None
        if self._host is None and self._loss is not None:
            loss = self.mean(trainer, record) if mean else self._loss
        if loss is not None:
            self.of_all = mean
            found = view.on_host(loss)[1]  # float32 on a device may not hold what float64 does
            self._host = found if isfinite(found) else float(loss)
        return self._host

    def forget(self) -> None:
        """The step is over."""
        self._loss = self._host = None
