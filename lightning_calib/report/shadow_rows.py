"""Policies that are judged on every step and never applied: what they are called, and their rows of numbers."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ShadowNames(NamedTuple):
    """S shadows: policies that are judged on every step and never applied.

    Attributes:
        names: What they are called, distinct.
        policies: The policy of each, as a constructor's call.
        scopes: What makes a segment of each.
    """

    names: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


class ShadowRows(NamedTuple):
    """Rows of S shadows.

    Attributes:
        names: What they are called, S.
        policies: The policy of each, as a constructor's call, S.
        scopes: What makes a segment of each, S.
        step: (R,).
        values: Each of shape (R, S), by the names of `ShadowResult`; ``clip_fraction`` is the share of the steps since
            the row before, all others are since the shadows began.
    """

    names: tuple[str, ...]
    policies: tuple[str, ...]
    scopes: tuple[str, ...]
    step: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]
