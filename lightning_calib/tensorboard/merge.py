"""One story out of several tags: a run that was resumed with other layers has one tag for each set of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.tensorboard.contract import ABSENT
from lightning_calib.tensorboard.reading import Records
from lightning_calib.tensorboard.refused import require

MOST_NUMBERS = 2**27  # in one merged table, 512 MiB


class Table(NamedTuple):
    """Numbers by step and label.

    Attributes:
        labels: Of the columns, distinct.
        steps: (N,) int64, ascending and distinct.
        walls: (N,) float64.
        values: (N, len(labels), ...) float32.
    """

    labels: list[str]
    steps: NDArray[np.int64]
    walls: NDArray[np.float64]
    values: NDArray[np.float32]


def current(found: Sequence[Records], clock: Sequence[Records] = ()) -> list[Records]:
    """The records that still stand, oldest tag first; tags of which nothing stands are left out.

    A run that is resumed from an earlier step writes some steps again, which a loader notices within one tag only.
    Across tags, a record no longer stands if another tag's newest record at or before its step was written after it.

    Args:
        found: The tags of one kind and one optimizer.
        clock: Further tags that were written along with them, to tell what was written again.
    """
    standing = []
    for mine in found:
        old = np.zeros(len(mine.steps), bool)
        for other in (*found, *clock):
            if other is not mine and len(other.steps):
                at = np.searchsorted(other.steps, mine.steps, side="right") - 1
                old |= (at >= 0) & (other.walls[np.maximum(at, 0)] > mine.walls)
        keep = np.flatnonzero(~old)
        if len(keep):
            values = [mine.values[i] for i in keep]
            standing.append(mine._replace(steps=mine.steps[keep], walls=mine.walls[keep], values=values))
    return sorted(standing, key=lambda records: float(records.walls[-1]))


def union(parts: Sequence[Table], inner: tuple[int, ...] = ()) -> Table:
    """Every step and every label of the parts, ABSENT where a part has nothing to say.

    Args:
        parts: Oldest first. Labels are `ordered`, the newest part's first.
        inner: Shape of what stands at one step and label.

    Raises:
        Refused: If the table would not fit.
    """
    labels = ordered([part.labels for part in reversed(parts)])
    steps = np.unique(np.concatenate([part.steps for part in parts])) if parts else np.zeros(0, np.int64)
    shape = (len(steps), len(labels), *inner)
    require(int(np.prod(shape, dtype=object)) <= MOST_NUMBERS, "size", f"at most {MOST_NUMBERS} numbers", shape)
    if len(parts) == 1 and len(steps) == len(parts[0].steps):
        return parts[0]
    values, walls = np.full(shape, ABSENT, np.float32), np.zeros(len(steps))
    column = {label: index for index, label in enumerate(labels)}
    for part in parts:
        at = np.searchsorted(steps, part.steps)
        values[np.ix_(at, np.array([column[label] for label in part.labels], np.int64))] = part.values
        walls[at] = part.walls
    return Table(labels, steps, walls, values)


def ordered(found: Sequence[Sequence[str]]) -> list[str]:
    """Every name once, in the order of the first list; one that it lacks follows the one before it in its own list."""
    order: list[str] = []
    for names in found:
        known, before = set(order), None
        following: dict[str | None, list[str]] = {}
        for name in names:
            if name in known:
                before = name
            else:
                following.setdefault(before, []).append(name)
        order = [*following.get(None, []), *(each for name in order for each in (name, *following.get(name, [])))]
    return order
