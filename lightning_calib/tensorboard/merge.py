"""One story out of several tags: a run that was resumed with other layers has one tag for each set of them."""

import math
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from types import MappingProxyType
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


class _Latest(NamedTuple):
    """At each step the newest record of every tag so far, and of those the two that were written last.

    Attributes:
        steps: (N,) int64, ascending and distinct, every step of every tag.
        first: (N,) when the last of them was written.
        tags: (N,) the position of its tag.
        second: (N,) when the last of the other tags' was written; -inf without one.
    """

    steps: NDArray[np.int64]
    first: NDArray[np.float64]
    tags: NDArray[np.float64]
    second: NDArray[np.float64]


def current(found: Sequence[Records], clock: Sequence[Records] = ()) -> list[Records]:
    """The records that still stand, oldest tag first; tags of which nothing stands are left out.

    A run that is resumed from an earlier step writes some steps again, which a loader notices within one tag only.
    Across tags, a record no longer stands if another tag's newest record at or before its step was written after it.

    Args:
        found: The tags of one kind and one optimizer.
        clock: Further tags that were written along with them, to tell what was written again.
    """
    latest, standing = _latest([*found, *clock]), []
    for index, mine in enumerate(found):
        at = np.searchsorted(latest.steps, mine.steps)
        others = np.where(latest.tags[at] == index, latest.second[at], latest.first[at])
        keep = np.flatnonzero(others <= mine.walls)
        if len(keep):
            values = [mine.values[i] for i in keep]
            standing.append(mine._replace(steps=mine.steps[keep], walls=mine.walls[keep], values=values))
    return sorted(standing, key=lambda records: float(records.walls[-1]))


def _latest(found: Sequence[Records]) -> _Latest:
    """In one pass over the steps, since a run may have thousands of tags."""
    begins: dict[int, list[tuple[float, int, float]]] = {}
    for tag, records in enumerate(found):
        steps = records.steps.tolist()
        for step, until, wall in zip(steps, [*steps[1:], math.inf], records.walls.tolist(), strict=False):
            begins.setdefault(step, []).append((-wall, tag, until))  # the tag's newest record from `step` to `until`
    newest: list[tuple[float, int, float]] = []  # a heap, the latest on top
    rows = []
    for step in sorted(begins):
        for record in begins[step]:
            heappush(newest, record)
        first = _top(newest, step)
        heappop(newest)
        second = _top(newest, step)
        heappush(newest, first)
        rows.append((-first[0], first[1], -second[0]))
    table = np.array(rows, np.float64).reshape(-1, 3)
    return _Latest(np.array(sorted(begins), np.int64), table[:, 0], table[:, 1], table[:, 2])


def _top(heap: list[tuple[float, int, float]], step: int) -> tuple[float, int, float]:
    """The top of the heap without what a newer record of its tag has replaced at this step."""
    while heap and heap[0][2] <= step:
        heappop(heap)
    return heap[0] if heap else (math.inf, -1, math.inf)


def union(
    parts: Sequence[Table], inner: tuple[int, ...] = (), absent: Mapping[str, float] = MappingProxyType({})
) -> Table:
    """Every step and every label of the parts, ABSENT where a part has nothing to say.

    Args:
        parts: Oldest first. Labels are `ordered`, the newest part's first.
        inner: Shape of what stands at one step and label.
        absent: What stands there in its place, by label.

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
    for label in absent.keys() & column.keys():
        values[:, column[label]] = absent[label]
    for part in parts:
        at = np.searchsorted(steps, part.steps)
        values[np.ix_(at, np.array([column[label] for label in part.labels], np.int64))] = part.values
        walls[at] = part.walls
    return Table(labels, steps, walls, values)


def ordered(found: Sequence[Sequence[str]]) -> list[str]:
    """Every name once, in the order of the first list; one that it lacks follows the one before it in its own list."""
    after: dict[str | None, str | None] = {None: None}  # the name that follows; None begins and ends the order
    for names in found:
        place: str | None = None
        for name in names:
            if name not in after:
                after[name], after[place] = after[place], name
            place = name
    order: list[str] = []
    last = after[None]
    while last is not None:
        order.append(last)
        last = after[last]
    return order
