"""A part of a tensor that is a run of its elements, as FSDP1 cuts tensors: which units it touches, where it lies."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes that share a flat parameter among them, as a device mesh of one dimension."""

    process_group: Any
    device_type: str
    ndim = 1

    def size(self) -> int:
        """How many."""
        return int(self.process_group.size())

    def get_group(self) -> Any:
        """What torch's collectives take."""
        return self.process_group


@dataclass(frozen=True, eq=False)
class FlatPart:
    """What this process holds of one parameter: elements ``start`` to ``stop`` of the whole.

    Attributes:
        shape: Of the whole parameter.
        order: Its dimensions in the order of the memory, in which the elements are numbered.
        start: The first element held here.
        stop: Behind the last one; the same where there is none.
        group: Who holds the others.
        handle: torch's, of the flat parameter.
        index: The parameter's position in it.
    """

    shape: torch.Size
    order: tuple[int, ...]
    start: int
    stop: int
    group: Group
    handle: Any
    index: int

    def _width(self, transposed: int) -> int:
        """How many elements of a unit stand together at least."""
        if transposed:
            return prod(self.shape[2:]) if self.order[:2] == (0, 1) else 1
        return prod(self.shape[1:]) if self.order[0] == 0 else 1

    def places(self, units: int, transposed: int) -> Tensor:
        """The unit of each of the `runs`."""
        if units == 1:
            return torch.arange(1)
        width = self._width(transposed)
        if width == 1:
            return self.cut(self._owners(transposed))
        runs = torch.arange(self.start // width, -(-self.stop // width) if self.stop > self.start else 0)
        if not transposed:
            return runs
        rows, columns = torch.div(runs, self.shape[1], rounding_mode="floor"), runs % self.shape[1]
        return torch.div(rows, self.shape[0] // transposed, rounding_mode="floor") * self.shape[1] + columns

    def _owners(self, transposed: int) -> Tensor:
        """The unit of every element of the whole, of its shape."""
        rows, inside = torch.arange(self.shape[0]), [1] * (len(self.shape) - 2)
        if not transposed:
            return rows.view(-1, 1, *inside).expand(self.shape)
        group = torch.div(rows, self.shape[0] // transposed, rounding_mode="floor")
        owners = group[:, None] * self.shape[1] + torch.arange(self.shape[1])
        return owners.view(*owners.shape, *inside).expand(self.shape)

    def runs(self, value: Tensor, units: int, transposed: int) -> Iterator[Tensor]:
        """Views (r, n) of what is held, each of r runs of one unit's elements: a rest, whole runs, a rest."""
        if units == 1:
            yield value.reshape(1, -1)
            return
        width, length = self._width(transposed), self.stop - self.start
        head = min(-self.start % width, length)
        whole = (length - head) // width * width
        for part, size in zip(torch.split(value, [head, whole, length - head - whole]), (head, width, 0), strict=True):
            if part.numel():
                yield part.view(-1, size or part.numel())

    def cut(self, whole: Tensor) -> Tensor:
        """What this process holds of the whole value."""
        return whole.permute(self.order).reshape(-1)[self.start : self.stop]

    def padded(self, held: Tensor) -> Tensor:
        """All elements in a row, zero where others hold them, so that the sum over processes is the whole."""
        flat = held.new_zeros(prod(self.shape))
        flat[self.start : self.stop] = held
        return flat

    def shaped(self, flat: Tensor) -> Tensor:
        """The whole from all of its elements in a row."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.view([self.shape[dim] for dim in self.order]).permute(back)
