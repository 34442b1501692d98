"""The closer look: which values are not finite, and how many elements of each kind."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Bad(NamedTuple):
    """A value with elements that are not finite: its name, and how many of its elements are NaN and Inf."""

    name: str
    nan: int
    inf: int
    elements: int

    def __str__(self) -> str:
        """For a sentence."""
        return f"{self.name} ({self.nan:,} NaN and {self.inf:,} Inf of {self.elements:,} elements)"


@torch.no_grad()
def look_closer(names: Sequence[str], values: Sequence[Tensor | None]) -> list[Bad]:
    """Count NaN and Inf in every value, in the order given; waits for the device, so it is for incidents only."""
    found = []
    for name, value in zip(names, values, strict=True):
        if value is None:
            continue
        elements = value.coalesce().values() if value.is_sparse else value
        nan, inf = int(elements.isnan().sum()), int(elements.isinf().sum())
        if nan or inf:
            found.append(Bad(name, nan, inf, elements.numel()))
    return found


@torch.no_grad()
def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of those values that are not finite throughout."""
    return [name for name, value in named if not bool(value.isfinite().all())]
