"""The loss of whole steps: that of the first one, and mean and maximum since the last row."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import wide_dtype
from lightning_calib.functional.saved_state import restored

_WAITING = 128  # losses that wait to be counted

Loss = tuple[Tensor, float]  # of a micro-batch, 0-d and detached, and what it is to be multiplied by


class LossSums(NamedTuple):
    """Steps that are counted; the tensors are 0-d. A loss that is inf or nan counts as inf.

    Attributes:
        first: Of the first step; nan before.
        total: Sum over the steps since the last row.
        highest: The largest of them; nan without any.
        steps: How many there are.
        open: Sum over the micro-batches of the step that has not ended.
        micros: How many of them there are.
    """

    first: Tensor
    total: Tensor
    highest: Tensor
    steps: int
    open: Tensor
    micros: int

    @staticmethod
    def empty(device: torch.device) -> "LossSums":
        """Nothing seen."""
        zero = torch.zeros((), dtype=wide_dtype(device), device=device)
        unknown = torch.full_like(zero, torch.nan)
        return LossSums(unknown, zero, unknown, 0, zero, 0)

    def with_steps(self, values: Tensor) -> "LossSums":
        """Count steps by their losses, shape (n,).

        One after the other: a sum in another order has other bits, and a run that resumes must have the same.
        """
        values = torch.where(values.isfinite(), values, torch.inf)
        return self._replace(
            first=torch.where(self.first.isnan(), values[0], self.first),
            total=sum(values.unbind(), self.total),
            highest=torch.fmax(self.highest, values.max()),
            steps=self.steps + len(values),
        )


class LossHistory(NamedTuple):
    """A value: every change makes a new one. A loss that comes is kept as it is, and counted when somebody asks.

    Attributes:
        sums: The steps that are counted.
        ended: Micro-batches of the steps that wait for that.
        begun: Those of the step that has not ended.
    """

    sums: LossSums
    ended: tuple[tuple[Loss, ...], ...] = ()
    begun: tuple[Loss, ...] = ()

    def add(self, loss: Tensor, factor: float) -> "LossHistory":
        """Take in a micro-batch's loss; ``factor`` makes it that of a whole step."""
        found = self._replace(begun=(*self.begun, (loss, factor)))
        return found.counted() if len(found.begun) >= _WAITING else found

    def end_step(self) -> "LossHistory":
        """The optimizer has its turn: the micro-batches since the last one make a step, the mean of them its loss."""
        if not self.begun and not self.sums.micros:
            return self
        found = self._replace(ended=(*self.ended, self.begun), begun=())
        return found.counted() if len(found.ended) >= _WAITING else found

    def counted(self) -> "LossHistory":
        """With nothing that waits; the same numbers to the bit, whenever it is asked for."""
        sums = self.sums
        if self.ended:
            if not sums.micros and all(len(step) == 1 for step in self.ended):
                values = _stacked([step[0] for step in self.ended], sums.total)
            else:
                means = []
                for step in self.ended:
                    total, count = _added(sums, step)
                    means.append(total / count)
                    sums = sums._replace(open=torch.zeros_like(sums.open), micros=0)
                values = torch.stack(means)
            sums = sums.with_steps(values)
        total, count = _added(sums, self.begun)
        return LossHistory(sums._replace(open=total, micros=count))

    def new_window(self) -> "LossHistory":
        """A row is written: mean and maximum start again."""
        sums = self.counted().sums
        empty = LossSums.empty(sums.total.device)
        return LossHistory(sums._replace(total=empty.total, highest=empty.highest, steps=0))

    @property
    def mean(self) -> Tensor:
        """Over the steps since the last row, 0-d; nan without any. Of one whose losses are counted."""
        return self.sums.total / self.sums.steps if self.sums.steps else torch.full_like(self.sums.total, torch.nan)

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        found = self.counted().sums._asdict()
        return {key: one.detach().cpu().clone() if isinstance(one, Tensor) else one for key, one in found.items()}

    @staticmethod
    def restored(saved: Any, device: torch.device, key: str) -> "LossHistory":
        """What was saved.

        Raises:
            DamagedStateError: If something does not fit.
        """
        empty = LossSums.empty(device)
        bad = torch.full_like(empty.total, torch.inf)  # which a sum may be
        found = restored(saved, empty._replace(total=bad, open=bad), key)
        return LossHistory(found)


def _added(sums: LossSums, micros: tuple[Loss, ...]) -> tuple[Tensor, int]:
    """Sum and number of the micro-batches of a step, those that are counted already first."""
    total = sums.open
    for loss, factor in micros:
        total = total + loss.to(total) * factor
    return total, sums.micros + len(micros)


def _stacked(losses: list[Loss], like: Tensor) -> Tensor:
    """Shape (n,)."""
    found = [loss for loss, _ in losses]
    if len({(loss.dtype, loss.device) for loss in found}) > 1:
        found = [loss.to(like) for loss in found]
    values, factors = torch.stack(found).to(like), [factor for _, factor in losses]
    if len(set(factors)) == 1:
        return values * factors[0]
    return values * torch.tensor(factors, dtype=like.dtype).to(like.device)
