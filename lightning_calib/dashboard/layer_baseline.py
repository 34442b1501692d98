"""What is usual for each tensor: the level of its norm, and for how long it has had no gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEAD_ROWS = 20  # logged rows in a row without a gradient, after which a tensor counts as dead
_FASTEST = 0.1  # share of the way to the newest value that the level goes
_FARTHEST = 0.7  # natural logarithm: so far does one row count at most, a spike moves the level like a doubling


class LayerBaseline(NamedTuple):
    """Of T tensors, every field of shape (T,).

    Attributes:
        level: Running level of the logarithm of the norm.
        rows: Rows with a norm that is finite and above zero.
        quiet: Rows in a row without.
        given: Whether there has ever been a gradient, if only one of zeros.
        told: Whether it has been called dead already.
    """

    level: Tensor
    rows: Tensor
    quiet: Tensor
    given: Tensor
    told: Tensor

    @staticmethod
    def empty(tensors: int) -> "LayerBaseline":
        """Nothing seen."""
        count, flag = torch.zeros(tensors, dtype=torch.int64), torch.zeros(tensors, dtype=torch.bool)
        return LayerBaseline(torch.zeros(tensors), count, count, flag, flag)

    def rises(self, peak: Tensor) -> Tensor:
        """The natural logarithm of how far each norm is above its level; -inf where there is none, or no level."""
        valid = _valid(peak) & (self.rows > 0)
        return torch.where(valid, peak.clamp(min=1e-38).log() - self.level, -torch.inf)

    def add(self, peak: Tensor) -> "LayerBaseline":
        """Take in a row: the largest norm of each tensor since the last one; -1 where it had no gradient."""
        valid, found = _valid(peak), peak.clamp(min=1e-38).log()
        share = (1.0 / (self.rows + 1)).clamp(min=_FASTEST)
        step = torch.where(self.rows > 0, (found - self.level).clamp(-_FARTHEST, _FARTHEST), found - self.level)
        level = torch.where(valid, self.level + share * step, self.level)
        quiet = torch.where((peak == 0) | (peak < 0), self.quiet + 1, 0)
        return LayerBaseline(level, self.rows + valid, quiet, self.given | (peak >= 0) | peak.isnan(), self.told)

    def dead(self, idle: Tensor) -> tuple["LayerBaseline", list[int], list[int]]:
        """Tensors without a gradient for long, each told once: those that never got any, and the others.

        ``idle``, shape (T,), bool, marks those that are meant to have none.
        """
        found = (self.quiet >= DEAD_ROWS) & ~self.told & ~idle
        never, lately = (found & ~self.given).nonzero(), (found & self.given).nonzero()
        return self._replace(told=self.told | found), never.flatten().tolist(), lately.flatten().tolist()


def _valid(peak: Tensor) -> Tensor:
    return peak.isfinite() & (peak > 0)


def aligned(values: Tensor, old: Sequence[str], new: Sequence[str], fill: Any) -> Tensor:
    """Values of the rows ``old`` as those of ``new``, by name; ``fill`` where a row is new."""
    if list(old) == list(new):
        return values.clone()
    place = {name: i for i, name in enumerate(old)}
    pairs = [(i, place[name]) for i, name in enumerate(new) if name in place]
    found = values.new_full((len(new), *values.shape[1:]), fill)
    if pairs:
        here, there = torch.tensor(pairs, device=values.device).T
        found[here] = values[there]
    return found
