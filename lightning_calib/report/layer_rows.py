"""Rows of layers with their names: as event files have them, and as a page shows them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.run import Floats


class LayerRows(NamedTuple):
    """Rows of the T tensors of one optimizer; nan means that there is no number, inf that it was not finite.

    Attributes:
        names: The parameters, T.
        owners: For each the module that owns it.
        dims: For each its number of dimensions.
        estimated: For each whether the norms of weight and update are estimates.
        step: (R,), ascending.
        values: Each of shape (R, T): the norms ``before``, ``after``, ``peak``, ``weight``, ``update``.
    """

    names: tuple[str, ...]
    owners: tuple[str, ...]
    dims: tuple[int, ...]
    estimated: tuple[bool, ...]
    step: NDArray[np.int64]
    values: Mapping[str, Floats]
