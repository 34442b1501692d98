"""How far one optimizer step moved the weights, from copies of them or of a sample."""

from math import gcd

import torch
from torch import Tensor

from lightning_calib.functional.plan import wide_dtype

_ELEMENTS = 2**16  # copied per tensor at most
_BYTES = 64 * 2**20  # of all copies together


class WeightSample:
    """The weights before a step: whole up to 2^16 elements per tensor, else every n-th one; in all at most 64 MB."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = [tensor for tensor in tensors if tensor.numel()]
        widest = max((tensor.element_size() for tensor in self.tensors), default=1)
        room = max(1, min(_ELEMENTS, _BYTES // (widest * max(1, len(self.tensors)))))
        self.strides = [_stride(tensor, room) for tensor in self.tensors]
        self.before = [sample.clone() for sample in self._now()]

    def _now(self) -> list[Tensor]:
        pairs = zip(self.tensors, self.strides, strict=True)
        return [_flat(tensor.detach())[::stride] for tensor, stride in pairs]

    def moved(self) -> tuple[Tensor, Tensor | None]:
        """The norm of the update; the median of |dw| / |w| over weights of more than one dimension. Both 0-d.

        The weights' difference is taken in their own type; a weight of norm zero has no ratio.
        """
        changes = [now - old for now, old in zip(self._now(), self.before, strict=True)]
        moved, sizes = _norms(changes), _norms(self.before)
        share = [tensor.numel() / old.numel() for tensor, old in zip(self.tensors, self.before, strict=True)]
        total = (moved.square() * moved.new_tensor(share)).sum().sqrt()
        matrices = [i for i, tensor in enumerate(self.tensors) if tensor.ndim > 1]
        if not matrices:
            return total, None
        ratios = torch.where(sizes > 0, moved / sizes, torch.nan)[torch.tensor(matrices, device=sizes.device)]
        return total, ratios.nanmedian()


def _flat(tensor: Tensor) -> Tensor:
    """All elements in the order of the memory, which needs no copy of a channels-last weight either."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _stride(tensor: Tensor, room: int) -> int:
    """Large enough, and coprime to every dimension: a stride that shares a factor with a row visits few columns."""
    stride = -(-tensor.numel() // room)
    while stride > 1 and any(gcd(stride, size) > 1 for size in tensor.shape):
        stride += 1
    return stride


def _norms(values: list[Tensor]) -> Tensor:
    """Shape (T,), float32 or wider, on the first value's device."""
    real = [value.abs() if value.is_complex() else value for value in values]
    norms = [torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32)) for value in real]
    narrow = any(wide_dtype(norm.device) == torch.float32 for norm in norms)
    return torch.stack([norm.to(norms[0].device, torch.float32 if narrow else torch.float64) for norm in norms])
