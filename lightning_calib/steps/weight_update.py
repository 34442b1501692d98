"""How far one optimizer step moved the weights, from copies of them or of a sample."""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import wide_dtype

_ELEMENTS = 2**16  # copied per tensor at most
_BYTES = 64 * 2**20  # of all copies together


class WeightUpdate(NamedTuple):
    """What a step did to the weights; of a tensor that was not copied as a whole, estimated from the sample.

    Attributes:
        update: The norm of the whole update, 0-d.
        ratio: The median of |dw| / |w| over weights of more than one dimension, 0-d; None without any.
        weights: The norms of the weights before the step, one for each tensor that has elements.
        updates: The same of their changes.
    """

    update: Tensor
    ratio: Tensor | None
    weights: Tensor
    updates: Tensor


class WeightSample:
    """The weights before a step: whole up to 2^16 elements per tensor, else every n-th one; in all at most 64 MB.

    Of a DTensor each process takes a sample of what it holds, and `moved` brings them together.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = [tensor for tensor in tensors if tensor.numel()]
        self.shards = Shards.of(self.tensors)
        self.strides = strides(self.tensors)
        self.before = [sample.clone() for sample in self._now()]

    def _now(self) -> list[Tensor]:
        pairs = zip(self.tensors, self.strides, strict=True)
        return [_flat(held(tensor.detach()))[::stride] for tensor, stride in pairs]

    def moved(self) -> WeightUpdate:
        """What the step did: the weights' difference is taken in their own type; a weight of norm zero has no ratio."""
        changes = [now - old for now, old in zip(self._now(), self.before, strict=True)]
        moved, sizes = _norms(changes), _norms(self.before)
        pairs = zip(self.tensors, self.before, strict=True)
        share = [held(tensor).numel() / max(1, old.numel()) for tensor, old in pairs]
        factors = moved.new_tensor(share).sqrt()
        moved, sizes = moved * factors, sizes * factors
        if self.shards is not None:
            squares = self.shards.total(torch.stack([moved.square(), sizes.square()], dim=1))
            moved, sizes = squares.sqrt().unbind(1)
        total = moved.square().sum().sqrt()
        matrices = [i for i, tensor in enumerate(self.tensors) if tensor.ndim > 1]
        if not matrices:
            return WeightUpdate(total, None, sizes, moved)
        ratios = torch.where(sizes > 0, moved / sizes, torch.nan)[torch.tensor(matrices, device=sizes.device)]
        return WeightUpdate(total, ratios.nanmedian(), sizes, moved)


def strides(tensors: Sequence[Tensor]) -> list[int]:
    """Every how many elements one of each tensor is copied: 1 where it is copied as a whole."""
    widest = max((tensor.element_size() for tensor in tensors), default=1)
    room = max(1, min(_ELEMENTS, _BYTES // (widest * max(1, len(tensors)))))
    return [_stride(held(tensor), room) for tensor in tensors]


def _flat(tensor: Tensor) -> Tensor:
    """All elements in the order of the memory, which needs no copy of a channels-last weight either."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _stride(tensor: Tensor, room: int) -> int:
    """Large enough, and coprime to every dimension: a stride that shares a factor with a row visits few columns."""
    stride = max(1, -(-tensor.numel() // room))
    while stride > 1 and any(gcd(stride, size) > 1 for size in tensor.shape):
        stride += 1
    return stride


def _norms(values: list[Tensor]) -> Tensor:
    """Shape (T,), float32 or wider, on the first value's device."""
    real = [value.abs() if value.is_complex() else value for value in values]
    norms = [torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32)) for value in real]
    narrow = any(wide_dtype(norm.device) == torch.float32 for norm in norms)
    return torch.stack([norm.to(norms[0].device, torch.float32 if narrow else torch.float64) for norm in norms])
