"""A step of which a guard has told, as the report reads it."""

from typing import NamedTuple


class BadStep(NamedTuple):
    """A step of which a guard has told.

    Attributes:
        step: The x of the charts.
        kind: "nonfinite", "spike" or "rewind".
        layer: The deepest listed tensor that was not finite; None where it is about the whole gradient.
    """

    step: int
    kind: str
    layer: str | None = None
