"""Rows at even distances: of a long run an event file has records that stand for ever more rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.run import Floats

Steps = NDArray[np.int64]
LARGEST = ("grad_norm_max", "loss_max", "norm_shift", "peak")  # since the last row
_ENDS = 5  # gaps that say how far rows are apart at the beginning and at the end
MEANS = ("loss", "factor", "clip_fraction")  # since the last row


class Groups(NamedTuple):
    """Rows of which each some become one.

    Attributes:
        starts: Index of the first row of each group.
        rows: How many rows there are.
    """

    starts: NDArray[np.intp]
    rows: int

    @property
    def alone(self) -> bool:
        """Whether every row is a group of its own."""
        return len(self.starts) == self.rows

    def steps(self, steps: Steps) -> Steps:
        """The last step of each group."""
        ends = np.append(self.starts[1:], self.rows) - 1
        return steps[ends] if self.rows else steps

    def joined(self, values: Floats, name: str) -> Floats:
        """One value for each group, (R, ...) to (G, ...), of those that are known.

        The largest or the mean of what is counted since the last row, of anything else the last.
        """
        if self.alone:
            return values
        known = ~np.isnan(values)
        if name in LARGEST:
            found = np.maximum.reduceat(np.where(known, values, -np.inf), self.starts, axis=0)
            return np.where(np.logical_or.reduceat(known, self.starts, axis=0), found, np.nan)
        if name in MEANS:
            count = np.add.reduceat(known.astype(float), self.starts, axis=0)
            total = np.add.reduceat(np.where(known, values, 0.0), self.starts, axis=0)
            return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        index = np.arange(self.rows).reshape(-1, *[1] * (values.ndim - 1))
        last = np.maximum.reduceat(np.where(known, index, -1), self.starts, axis=0)
        taken: Floats = np.take_along_axis(values, np.maximum(last, 0), axis=0)
        return np.where(last >= 0, taken, np.nan)


def groups(steps: Steps, at: NDArray[np.bool_], most: int) -> Groups:
    """Groups as wide as the rows of the end are apart.

    Args:
        steps: (R,), ascending.
        at: Which rows have all that is known; of others some is missing.
        most: Groups, at most.
    """
    rows = len(steps)
    full = steps[at] if at.any() else steps
    if len(full) < 2:
        return Groups(np.arange(rows), rows)
    gaps = np.diff(full)
    finest, coarsest = int(np.median(gaps[:_ENDS])), int(np.median(gaps[-_ENDS:]))
    if coarsest <= finest and rows <= min(most, len(full)):
        return Groups(np.arange(rows), rows)
    width = max(coarsest, finest, 1)
    while (steps[-1] - steps[0]) // width >= most:
        width *= 2
    group = (steps - steps[0]) // width
    return Groups(np.flatnonzero(np.diff(group, prepend=-1)), rows)
