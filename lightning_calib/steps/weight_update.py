"""How far one optimizer step moved the weights, from copies of them or of a sample."""

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.deepspeed import cut_by_zero, part_here, total_of_parts, whole_shape
from lightning_calib.functional.dtensor import held, is_sharded
from lightning_calib.functional.flat_part import FlatPart
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import wide_dtype

_ELEMENTS = 2**16  # copied per tensor at most
_BYTES = 64 * 2**20  # of all copies together


class WeightUpdate(NamedTuple):
    """What a step did to the weights; of a tensor that was not copied as a whole, estimated from the sample.

    Attributes:
        update: The norm of the whole update, 0-d.
        ratio: The median of |dw| / |w| over weights of more than one dimension that had a gradient, 0-d; None without
            weights of more than one dimension.
        weights: The norms of the weights before the step, one for each tensor that has elements.
        updates: The same of their changes.
    """

    update: Tensor
    ratio: Tensor | None
    weights: Tensor
    updates: Tensor

    def spread(self, filled: Sequence[bool], like: Tensor) -> tuple[Tensor, Tensor]:
        """Of all T tensors, as ``like`` of shape (T,), whose values stand where a tensor has no elements."""
        if all(filled):
            return self.weights.to(like), self.updates.to(like)
        places = torch.tensor([i for i, one in enumerate(filled) if one], device=like.device)
        weights, updates = (like.index_copy(0, places, one.to(like)) for one in (self.weights, self.updates))
        return weights, updates


class SamplePlan:
    """Which elements of the weights are copied, found out once: all up to 2^16 per tensor, else every n-th one.

    Attributes:
        tensors: Those that have elements.
        places: Where they stand among all tensors.
        shards: How they are spread over processes; None where none is.
        cut: One of those that ZeRO-3 has cut; None where it has cut none, for it cuts all or none.
        strides: Every how many elements one of each is copied.
        scales: What makes the norm of a sample that of its tensor, shape (T,); None where all are copied as a whole.
        matrices: Which of them have more than one dimension; None where none has.
        alike: Positions of those that one call serves: of one type, on one device.
    """

    tensors: list[Tensor]

    def __init__(self, tensors: Sequence[Tensor], flat: Sequence[FlatPart | None] = ()) -> None:
        pairs = list(zip(tensors, flat or [None] * len(tensors), strict=True))
        shapes = [whole_shape(one) if part is None else part.shape for one, part in pairs]
        pairs = [pair for pair, shape in zip(pairs, shapes, strict=True) if shape.numel()]
        self.tensors, parts = [one for one, _ in pairs], [part for _, part in pairs]
        self.places: list[int] = [i for i, shape in enumerate(shapes) if shape.numel()]
        self.shards: Shards | None = Shards.of(self.tensors, flat=parts)
        self.cut: Tensor | None = next(filter(cut_by_zero, self.tensors), None)
        self.strides: list[int] = strides(self.tensors)
        held_here = [_held(tensor).numel() for tensor in self.tensors]
        copied = [-(-size // stride) for size, stride in zip(held_here, self.strides, strict=True)]
        share = [size / max(1, count) for size, count in zip(held_here, copied, strict=True)]
        device = self.tensors[0].device if self.tensors else torch.device("cpu")
        narrow = any(wide_dtype(tensor.device) == torch.float32 for tensor in self.tensors)
        self.dtype: torch.dtype = torch.float32 if narrow else torch.float64
        scales = torch.tensor(share, dtype=self.dtype, device=device).sqrt()
        self.scales: Tensor | None = None if all(one == 1.0 for one in share) else scales
        matrices = [i for i, shape in enumerate(shape for shape in shapes if shape.numel()) if len(shape) > 1]
        self.matrices: Tensor | None = torch.tensor(matrices, device=device) if matrices else None
        self.plain: list[bool] = [
            stride == 1 and not is_sharded(one) and not cut_by_zero(one)
            for one, stride in zip(self.tensors, self.strides, strict=True)
        ]
        alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, tensor in enumerate(self.tensors):
            alike.setdefault((tensor.dtype, tensor.device), []).append(i)
        self.alike: list[list[int]] = list(alike.values())

    def now(self) -> list[Tensor]:
        """What would be copied, as it is: no copies."""
        each = zip(self.tensors, self.strides, self.plain, strict=True)
        return [one if plain else _flat(_held(one))[::stride] for one, stride, plain in each]

    def each(self, call: Callable[..., Sequence[Tensor]], *lists: Sequence[Tensor]) -> list[Tensor]:
        """One call for all that are alike; its results in the order of the tensors."""
        found: dict[int, Tensor] = {}
        for places in self.alike:
            found.update(zip(places, call(*([values[i] for i in places] for values in lists)), strict=True))
        return [found[i] for i in range(len(self.tensors))]

    def norms(self, values: Sequence[Tensor]) -> Tensor:
        """Shape (T,), float64 where every device has it, on the first one's device."""
        norms = self.each(_norms, values)
        if len(self.alike) > 1:
            norms = [norm.to(norms[0].device, self.dtype) for norm in norms]
        return torch.stack(norms).to(self.dtype)


class WeightSample:
    """The weights before a step: in all at most 64 MB.

    Of a DTensor each process takes a sample of what it holds, and `moved` brings them together.

    Args:
        plan: Which elements of the weights are copied.
        given: Which of all tensors have a gradient in this step; None where that is not known, as if all had one.
    """

    @torch.no_grad()
    def __init__(self, plan: SamplePlan, given: Sequence[bool] | None = None) -> None:
        self.plan = plan
        self.missing: list[int] = (
            [] if given is None else [i for i, place in enumerate(plan.places) if not given[place]]
        )
        self.before: list[Tensor] = plan.each(_clones, plan.now())

    @torch.no_grad()
    def moved(self) -> WeightUpdate:
        """What the step did: the weights' difference is taken in their own type.

        A weight of norm zero has no ratio, nor has one without a gradient, which the step leaves alone.
        """
        plan = self.plan
        changes = plan.each(torch._foreach_sub, plan.now(), self.before)
        moved, sizes = plan.norms(changes), plan.norms(self.before)
        if plan.scales is not None:
            moved, sizes = moved * plan.scales, sizes * plan.scales
        if plan.shards is not None or plan.cut is not None:
            squares = torch.stack([moved.square(), sizes.square()], dim=1)
            squares = total_of_parts(squares, plan.cut) if plan.shards is None else plan.shards.total(squares)
            moved, sizes = squares.sqrt().unbind(1)
        total = moved.square().sum().sqrt()
        if plan.matrices is None:
            return WeightUpdate(total, None, sizes, moved)
        ratios = torch.where(sizes > 0, moved / sizes, torch.nan)
        if self.missing:
            ratios[self.missing] = torch.nan
        return WeightUpdate(total, ratios[plan.matrices].nanmedian(), sizes, moved)


def strides(tensors: Sequence[Tensor]) -> list[int]:
    """Every how many elements one of each tensor is copied: 1 where it is copied as a whole."""
    widest = max((tensor.element_size() for tensor in tensors), default=1)
    room = max(1, min(_ELEMENTS, _BYTES // (widest * max(1, len(tensors)))))
    return [_stride(_held(tensor), room) for tensor in tensors]


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    return part_here(tensor) if cut_by_zero(tensor) else held(tensor.detach())


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


def _clones(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """A copy of each, by one call where torch has it (since 2.11)."""
    clone: Any = getattr(torch, "_foreach_clone", None)
    return [value.clone() for value in values] if clone is None else clone(values)


def _norms(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of values of one type: each 0-d, float32 or wider."""
    values = [value.abs() for value in values] if values[0].is_complex() else list(values)
    return torch._foreach_norm(values, 2.0, dtype=torch.promote_types(values[0].dtype, torch.float32))
