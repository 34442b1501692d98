"""The loss of the micro-batches that an optimizer step is made of."""

from typing import Any

from torch import Tensor

from lightning_calib.functional.dtensor import whole
from lightning_calib.steps.step_record import StepRecord


class WindowLoss:
    """Adds up what Lightning hands to the backward passes, each divided by the number of micro-batches; on its device.

    A new one, and one after `forget`, has no loss.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None

    def add(self, loss: Tensor, scaler: Any) -> None:
        """That of a backward pass, which the GradScaler, where there is one, has multiplied."""
        loss = whole(loss.detach())
        part = loss.clone() if scaler is None else loss / scaler._scale
        self._loss = part if self._loss is None else self._loss + part

    def mean(self, trainer: Any, record: StepRecord) -> Tensor | None:
        """Of the step at hand, as of a whole window, over all processes; a collective. None where there was none."""
        loss = self._loss
        if loss is not None and trainer.world_size > 1:
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
        return loss if loss is None or record.window_scale == 1.0 else loss * record.window_scale

    def forget(self) -> None:
        """The step is over."""
        self._loss = None
