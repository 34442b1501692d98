"""Small tensors of one shape are read, and written, in one call: which of a plan's tensors go together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import is_sharded

_TOGETHER = 2**16  # elements: of what is copied at a time, at most 512 kB


@dataclass(frozen=True, eq=False)
class Batches:
    """Which tensors go together, and where the pieces lie in what is found batch by batch.

    A piece is a tensor, or a unit of one. Sharded, complex and transposed tensors stay by themselves.

    Attributes:
        batches: Positions of tensors of one shape, type and device, or, for units, of rows of one shape.
        others: The positions of those that stay by themselves.
        places: The position of each piece in what is found of the batches and then of the others; None where that is
            the plan's order.
    """

    batches: tuple[tuple[int, ...], ...]
    others: tuple[int, ...]
    places: Tensor | None

    def in_order(self, found: list[Tensor]) -> Tensor:
        """The pieces in the plan's order, from what was found of the batches and then of the others."""
        pieces = torch.cat(found) if len(found) != 1 else found[0]
        return pieces if self.places is None else pieces.index_select(0, self.places)


def batches_of(
    tensors: Sequence[Tensor],
    counts: Sequence[int],
    alone: Sequence[object],
    *,
    largest: int,
    fewest: int,
    rows: bool,
) -> Batches:
    """Bring together what is alike.

    Args:
        tensors: A plan's.
        counts: How many pieces each of them has.
        alone: True, or another true value, for each tensor that stays by itself.
        largest: The number of elements, from which on a call costs less than a copy of the tensor.
        fewest: The number of tensors from which on a batch costs less than they do one by one.
        rows: Whether tensors of two and more dimensions need only have rows of one shape.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if 0 < tensor.numel() <= largest and not (alone[i] or tensor.is_complex() or is_sharded(tensor)):
            shape = tensor.shape[1:] if rows and tensor.ndim > 1 else tensor.shape
            alike.setdefault((tensor.ndim, shape, tensor.dtype, tensor.device), []).append(i)
    batches = [part for members in alike.values() for part in _parts(tensors, members) if len(part) >= fewest]
    chosen = {i for batch in batches for i in batch}
    others = tuple(i for i in range(len(tensors)) if i not in chosen)
    order = [i for batch in batches for i in batch] + list(others)
    return Batches(tuple(batches), others, _places(order, counts, tensors))


def _parts(tensors: Sequence[Tensor], members: list[int]) -> list[tuple[int, ...]]:
    parts: list[list[int]] = []
    size = _TOGETHER
    for i in members:
        size += tensors[i].numel()
        if size > _TOGETHER:
            parts.append([])
            size = tensors[i].numel()
        parts[-1].append(i)
    return [tuple(part) for part in parts]


def _places(order: list[int], counts: Sequence[int], tensors: Sequence[Tensor]) -> Tensor | None:
    if order == sorted(order):
        return None
    starts = dict(zip(order, accumulate((counts[i] for i in order), initial=0), strict=False))
    found = [torch.arange(starts[i], starts[i] + count, dtype=torch.int32) for i, count in enumerate(counts)]
    return torch.cat(found).to(tensors[0].device)


def joined(values: Sequence[Tensor], *, rows: bool) -> Tensor:
    """A copy of a batch: (n, ...) of n tensors, or (r, ...) of all their r rows."""
    return torch.cat(list(values)) if rows and values[0].ndim > 1 else torch.stack(list(values))


def change_together_(
    layout: Batches, values: Sequence[Tensor | None], change: Callable[[list[int], Tensor], None]
) -> list[int]:
    """Let ``change`` write into a copy of each batch of rows, and write what became of it into the values.

    ``change`` gets the batch's positions, without those of missing and sparse values, and the copy of their rows, of
    shape (r, ...). What stays by itself is left alone: its positions are returned, ascending.
    """
    left = list(layout.others)
    for batch in layout.batches:
        present = {i: value for i in batch if (value := values[i]) is not None and not value.is_sparse}
        left += [i for i in batch if i not in present]
        if present:
            dense = list(present.values())
            together = joined(dense, rows=True)
            change(list(present), together)
            by_row = dense[0].ndim > 1
            parts = torch.split(together, [one.shape[0] for one in dense]) if by_row else together.unbind()
            torch._foreach_copy_(dense, list(parts))
    return sorted(i for i in left if values[i] is not None)
