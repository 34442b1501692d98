"""What each of the K segments is called; made when it is asked for, since a model may have 100,000 units."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import overload

from lightning_calib.functional.segments import Segments


def segment_names(segments: Segments) -> Sequence[str]:
    """The names of the K segments, in their order."""
    if segments.scope != "unit":
        return segments.names
    plan, members = segments.plan, segments.members
    rows = [plan.unit_counts[i] if len(plan.whole_shapes[i]) > 1 else 0 for i in members]
    return UnitNames([plan.names[i] for i in members], rows)


class UnitNames(Sequence[str]):
    """``"weight[0]"``, ``"weight[1]"``, ... for a tensor's rows, and ``"bias"`` for a tensor that is one unit.

    Args:
        tensors: The names of the tensors.
        rows: How many rows each has; 0 where it is one unit.
    """

    def __init__(self, tensors: Sequence[str], rows: Sequence[int]) -> None:
        self._tensors, self._rows = tensors, rows
        self._starts = list(accumulate((max(count, 1) for count in rows), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """The name of one unit, or those of a slice of them."""
        places = range(len(self))[index]
        return self._name(places) if isinstance(places, int) else tuple(map(self._name, places))

    def _name(self, unit: int) -> str:
        tensor = bisect_right(self._starts, unit) - 1
        return self._tensors[tensor] + (f"[{unit - self._starts[tensor]}]" if self._rows[tensor] else "")

    def __repr__(self) -> str:
        return f"<the names of {len(self)} units>"
