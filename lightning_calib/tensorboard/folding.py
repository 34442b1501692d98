"""A module's numbers from those of its tensors and submodules, exactly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_calib.tensorboard.contract import ABSENT, ABSENT_EXPONENT

Floats = NDArray[np.float32]
TOP = 2  # the histogram column that holds the largest exponent; all others are counts


def members(path: str, names: Sequence[str], owners: Sequence[str] = ()) -> list[int]:
    """Which rows belong to a path: those called so, owned by it, or below it; all rows belong to the empty path.

    Args:
        path: Of a parameter or a module.
        names: Of the rows.
        owners: Path of the module that owns each row; may differ from the name's when a module is shared.
    """
    below = f"{path}."

    def inside(name: str) -> bool:
        return name == path or name.startswith(below)

    if not path:
        return list(range(len(names)))
    return [i for i, name in enumerate(names) if inside(name) or (bool(owners) and inside(owners[i]))]


def fold(values: Floats, how: str) -> Floats:
    """Fold the last axis; members that are ABSENT do not count, and NaN goes through.

    Args:
        values: (..., members), at least one member.
        how: ``"l2"``, the root of the sum of squares, or ``"max"``.
    """
    if how == "max":
        largest: Floats = values.max(axis=-1)  # no norm is below ABSENT
        return largest
    absent = values == ABSENT
    squares = np.where(absent, 0.0, values.astype(np.float64)) ** 2
    folded = np.where(absent.all(axis=-1), ABSENT, np.sqrt(squares.sum(axis=-1)))
    return _float32(folded)


def fold_histograms(values: Floats) -> Floats:
    """Sum rows of exponent counts.

    Args:
        values: (..., rows, columns); a row that is ABSENT in its first column does not count.
    """
    absent = values[..., :1] == ABSENT
    counts = np.where(absent, 0.0, values.astype(np.float64)).sum(axis=-2)
    counts[..., TOP] = np.where(absent[..., 0], ABSENT_EXPONENT, values[..., TOP]).max(axis=-1)
    return _float32(np.where(absent.all(axis=-2), ABSENT, counts))


def _float32(values: Any) -> Floats:
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which the tab shows as such
        rounded: Floats = np.asarray(values, np.float32)
    return rounded
