"""Long runs in bounded files: all rows at first, then the largest of every two, four, eight, ..."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.saved_state import OrNone, check_saved

MOST = 1000  # rows that are written each by itself, and twice the records of every later doubling of the run
LEAST = 128
BUDGET = 20 * 10**6  # bytes of those rows


def room(row_bytes: int) -> int:
    """How many rows are written each by itself: 1,000, fewer of rows above 20 kB, at least 128; always even."""
    return max(LEAST, min(MOST, BUDGET // max(1, row_bytes))) // 2 * 2


def stride(row: int, first: int) -> int:
    """How many rows go into the record that takes in ``row``, from 0: 1 up to ``first``, 2 up to twice that, 4, ...

    Every doubling of the run adds half of ``first``: of 1,000, that makes 5,977 records for 10^6 rows, and 10,954 for
    10^9.
    """
    return 1 << (row // first).bit_length()


class Pool(NamedTuple):
    """The record that is being filled.

    Attributes:
        rows: Rows taken in since the start of the run.
        step: Of the last of them.
        values: The largest of those that are not written yet, nan where one is nan; None without any.
    """

    rows: int = 0
    step: int = -1
    values: Tensor | None = None

    def add(self, step: int, values: Tensor, first: int, latest: Tensor | None = None) -> "tuple[Pool, Pool]":
        """Take in a row.

        Args:
            step: Of the row.
            values: Of any shape, always the same; what is not there is below everything that is.
            first: See ``room``.
            latest: Shape of ``values``, bool: where the last value stands for all, and not the largest.

        Returns:
            The pool that goes on, and the one to write; that has no values where the record is not full.
        """
        if self.values is not None:
            largest = torch.maximum(self.values, values)
            values = largest if latest is None else torch.where(latest, values, largest)
        filled = Pool(self.rows + 1, step, values)
        if filled.rows % stride(self.rows, first):
            return filled, filled._replace(values=None)
        return filled._replace(values=None), filled

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**self._asdict(), "values": None if self.values is None else self.values.clone()}

    @staticmethod
    def restored(saved: Any, shape: tuple[int, ...], key: str) -> "Pool":
        """What was saved, of values of that shape.

        Raises:
            DamagedStateError: If something does not fit.
        """
        check_saved(saved, {**Pool()._asdict(), "values": OrNone(torch.full(shape, torch.nan))}, key)
        return Pool(**saved)
