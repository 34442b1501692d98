"""DTensors, whose elements are spread over processes: what this one holds of them, and where that lies in the whole."""

import sys
from collections.abc import Iterable
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lightning_calib.functional.since import SPREAD


def is_sharded(value: object) -> TypeGuard[Any]:
    """Whether it is a DTensor; where nobody has imported the class, which takes half a second, there are none."""
    kind: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if kind is None:  # before torch 2.5
        kind = getattr(sys.modules.get("torch.distributed._tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def held(value: Tensor) -> Tensor:
    """What this process holds of it, to be read and written in place; a plain tensor is held as a whole."""
    found: Tensor = value.to_local() if is_sharded(value) else value
    return found


def whole(value: Tensor) -> Tensor:
    """All of it, on every process: a collective, which all of them must come to."""
    found: Tensor = value.full_tensor() if is_sharded(value) else value
    return found


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """What this process would hold of the plain tensor ``value``, were it spread as ``like`` is; nothing is sent."""
    return _placed(value, like, like.placements) if is_sharded(like) else value


def copies(tensor: Tensor) -> int:
    """How many processes hold the same part of a DTensor."""
    spread: Any = tensor
    return prod(spread.device_mesh.size(d) for d, one in enumerate(spread.placements) if one.is_replicate())


def split_dims(tensor: Tensor) -> set[int]:
    """The dimensions of the tensor along which processes share it."""
    found = (_dim(one) for one in tensor.placements) if is_sharded(tensor) else ()
    return {dim % tensor.ndim for dim in found if dim is not None}


def positions(tensor: Tensor, dim: int) -> Tensor:
    """Where along ``dim`` lies what this process holds of a DTensor; asks torch, which knows all kinds of shards."""
    from torch.distributed.tensor import Replicate

    spread: Any = tensor
    shape = [1] * tensor.ndim
    shape[dim] = tensor.shape[dim]
    kept = [one if _dim(one) in (dim, dim - tensor.ndim) else Replicate() for one in spread.placements]
    return _placed(torch.arange(tensor.shape[dim]).view(shape), tensor, kept).flatten().to(tensor.device)


def why_not(tensors: Iterable[Tensor]) -> str | None:
    """Why these cannot be measured over processes, with the way out; None where they can."""
    for tensor in tensors:
        if not is_sharded(tensor):
            continue
        old = SPREAD.why_not()
        if old is not None:
            return old
        shape = tuple(tensor.shape)
        if tensor.device_mesh.get_coordinate() is None:
            return (
                f"A parameter of shape {shape} is spread over {tensor.device_mesh}, to which this process does not "
                "belong, so that it cannot know the norm. Give an optimizer parameters that all its processes share."
            )
        if not all(one.is_replicate() or _dim(one) is not None for one in tensor.placements):
            return (
                f"A parameter of shape {shape} is placed as {tensor.placements}: what a process holds is no part of "
                "it, but a term of a sum. Make the parameter from `tensor.redistribute(placements=[Replicate()])`."
            )
    return None


def _dim(placement: Any) -> int | None:
    """The dimension that it shards, strided or not; None if it does not."""
    return getattr(placement, "dim", None)


def _placed(value: Tensor, like: Any, placements: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return held(distribute_tensor(value.detach(), like.device_mesh, placements, src_data_rank=None))
