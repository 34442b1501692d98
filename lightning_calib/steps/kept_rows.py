"""Rows of numbers in bounded memory: all of them at first, then one for every two, four, eight, ..."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.saved_state import DamagedStateError, ListOf, OrNone, check_saved

BUDGET = 1_800_000  # bytes of all rows together, so that with names, norms and counts it is less than 2 MB
_FEWEST, _MOST = 8, 512  # the fewest are as many as fit of 10,000 tensors


def room(numbers: int) -> int:
    """How many rows of so many float32 numbers fit into the budget: at most 512, at least 8, always even."""
    return max(_FEWEST, min(_MOST, BUDGET // (4 * max(1, numbers)))) // 2 * 2


class KeptRows(NamedTuple):
    """A value: `add` makes a new one.

    A row that stands for several has the numbers of the last of them, but for those that are largest since the last
    row: of these it has the largest. nan is "not known" and never the largest.

    Attributes:
        seen: Rows since the start of the run.
        stride: So many rows go into one.
        steps: Of the rows that are kept, the last step of each.
        rows: The same, float32 on the host, all of one shape.
        open_step: The last step of the row that is being filled.
        open: That row; None without one.
    """

    seen: int = 0
    stride: int = 1
    steps: tuple[int, ...] = ()
    rows: tuple[Tensor, ...] = ()
    open_step: int = 0
    open: Tensor | None = None

    def add(self, step: int, row: Tensor, most: int, largest: Tensor) -> "KeptRows":
        """Take in a row.

        Args:
            step: Its x.
            row: Of any shape, always the same.
            most: Rows that are kept, an even number; when there are so many, each two become one.
            largest: Which of the last axis' numbers are the largest since the row before, bool.
        """
        row = row.float() if self.open is None else _joined(self.open, row.float(), largest)
        found = self._replace(seen=self.seen + 1, open_step=step, open=row)
        if found.seen % found.stride:
            return found
        found = found._replace(steps=(*found.steps, step), rows=(*found.rows, row), open=None)
        while len(found.rows) >= most:
            found = found._halved(largest)
        return found

    def _halved(self, largest: Tensor) -> "KeptRows":
        """One of each two; a last one without a partner goes on being filled."""
        pairs = len(self.rows) // 2
        rows = tuple(_joined(self.rows[2 * i], self.rows[2 * i + 1], largest) for i in range(pairs))
        found = self._replace(stride=2 * self.stride, steps=self.steps[1::2], rows=rows)
        return found if 2 * pairs == len(self.rows) else found._replace(open_step=self.steps[-1], open=self.rows[-1])

    def table(self, shape: tuple[int, ...]) -> tuple[list[int], Tensor]:
        """The steps, and all rows as one tensor, that which is being filled among them."""
        last = [] if self.open is None else [self.open]
        rows = [*self.rows, *last]
        steps = [*self.steps, *([self.open_step] if last else [])]
        return steps, torch.stack(rows) if rows else torch.zeros((0, *shape))

    def changed(self, change: "Any") -> "KeptRows":
        """Every row as ``change`` makes it."""
        last = None if self.open is None else change(self.open)
        return self._replace(rows=tuple(change(row) for row in self.rows), open=last)

    def saved(self) -> dict[str, Any]:
        """For the checkpoint: builtins and CPU tensors."""
        rows = torch.stack(self.rows) if self.rows else None
        last = None if self.open is None else self.open.clone()
        return {**self._asdict(), "steps": list(self.steps), "rows": rows, "open": last}

    @staticmethod
    def restored(saved: Any, shape: tuple[int, ...], key: str) -> "KeptRows":
        """What was saved, of rows of that shape.

        Raises:
            DamagedStateError: If something does not fit.
        """
        row, most = torch.full(shape, torch.nan), 2 * _MOST
        steps = saved.get("steps") if isinstance(saved, dict) else None
        kept = len(steps) if isinstance(steps, list) else 0
        rows = None if kept == 0 else torch.full((min(kept, most), *shape), torch.nan)
        check_saved(
            saved,
            {"seen": 0, "stride": 0, "steps": ListOf(0, most), "rows": rows, "open_step": 0, "open": OrNone(row)}
            if rows is not None
            else {"seen": 0, "stride": 0, "steps": [], "rows": OrNone(row), "open_step": 0, "open": OrNone(row)},
            key,
        )
        seen, stride = saved["seen"], saved["stride"]
        doubled = stride > 0 and stride & (stride - 1) == 0
        if not doubled or seen // stride != kept or (saved["open"] is None) != (seen % stride == 0):
            raise DamagedStateError(f"`{key}` contradicts itself: {seen} rows, of which {kept} are kept, by {stride}")
        copied = () if saved["rows"] is None or not kept else tuple(saved["rows"].float().clone().unbind())
        last = None if saved["open"] is None else saved["open"].float().clone()
        return KeptRows(seen, stride, tuple(saved["steps"]), copied, saved["open_step"], last)


def _joined(old: Tensor, new: Tensor, largest: Tensor) -> Tensor:
    return torch.where(largest, torch.fmax(old, new), new)
