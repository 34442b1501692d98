"""FSDP1 (`FullyShardedDataParallel`): which part of a parameter this process holds, and of whose gradients it knows.

Outside forward and backward a parameter is the flat run of its elements that fell to this process, perhaps none, and so
is its gradient. Only this file knows torch's private names for the rest; `why_not` looks whether they are as known.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_calib.functional.checks import message
from lightning_calib.functional.flat_part import FlatPart, Group
from lightning_calib.functional.since import FLAT

_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_OF_HANDLE = ("flat_param", "process_group", "device", "uses_sharded_strategy", "_offload_params")
_OF_FLAT = ("grad", "_params", "_shapes", "_strides", "_shard_param_infos", "_is_grad_none_mask")
_OF_SHARD = ("in_shard", "intra_param_start_idx", "intra_param_end_idx")


def is_flat(tensor: Tensor) -> bool:
    """Whether FSDP1 has taken the tensor into a flat parameter, or it is one."""
    return getattr(tensor, "_fsdp_flattened", False) or _is_several(tensor)


def _is_several(tensor: Tensor) -> bool:
    return getattr(tensor, "_is_flat_param", False)


def wrappers(module: nn.Module) -> list[nn.Module]:
    """FSDP1's wrappers in a module; where nobody has imported the class there are none."""
    loaded: Any = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(loaded, "FullyShardedDataParallel", None)
    return [] if kind is None else [one for one in module.modules() if isinstance(one, kind)]


def plain_path(path: str) -> str:
    """The module's path as the user knows it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def parts_of(tensors: Sequence[Tensor], module: nn.Module | None) -> tuple[FlatPart | None, ...]:
    """What is held of each; None for every one that each process holds as a whole.

    Raises:
        ValueError: If FSDP1 has cut some, and it cannot be found out how; or while they are whole for a time.
    """
    reason = why_not(tensors, module)
    if reason is not None:
        raise ValueError(reason)
    known = _parts(module) if module is not None else {}
    found = tuple(known.get(id(tensor)) for tensor in tensors)
    for tensor, flat in zip(tensors, found, strict=True):
        if flat is not None and tensor.numel() != flat.stop - flat.start:
            rule = "flat shards, as FSDP1 leaves them outside of forward, backward and `summon_full_params`"
            raise ValueError(message("parameters", rule, tuple(tensor.shape), "Call it there."))
    return found


def given(flat: Sequence[FlatPart | None], tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[bool]:
    """Which tensors have a gradient, on whatever process it lies."""
    found = [gradient is not None for gradient in gradients]
    # A backward pass reaches a flat parameter as a whole: a gradient held here tells for those that are not.
    held: dict[int, bool] = {}
    for part, tensor, one in zip(flat, tensors, found, strict=True):
        if part is not None and tensor.numel() and tensor.requires_grad:
            held[id(part.handle)] = held.get(id(part.handle), False) or one
    return [
        one
        if part is None or tensor.numel()
        else tensor.requires_grad and _reached(part) and held.get(id(part.handle), True)
        for part, tensor, one in zip(flat, tensors, found, strict=True)
    ]


def _reached(part: FlatPart) -> bool:
    """Whether a backward pass reached the flat parameter: known to all processes, whoever holds the gradient."""
    flat = part.handle.flat_param
    return flat.grad is not None and not flat._is_grad_none_mask[part.index]


def any_reached(flat: Sequence[FlatPart | None], tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> bool:
    """Whether there is any gradient, as all processes know it without asking each other."""
    each = zip(flat, tensors, gradients, strict=True)
    return any(
        one is not None if part is None else tensor.requires_grad and _reached(part) for part, tensor, one in each
    )


def _parts(module: nn.Module) -> dict[int, FlatPart]:
    """By identity, every parameter of the module that is shared among processes; none that each holds as a whole."""
    found: dict[int, FlatPart] = {}
    for handle in _handles(module):
        if not handle.uses_sharded_strategy:
            continue
        flat, group = handle.flat_param, Group(handle.process_group, handle.device.type)
        each = zip(flat._params, flat._shapes, flat._strides, flat._shard_param_infos, strict=True)
        for index, (tensor, shape, stride, info) in enumerate(each):
            start, end = (info.intra_param_start_idx, info.intra_param_end_idx) if info.in_shard else (0, -1)
            order = tuple(sorted(range(len(shape)), key=lambda dim, stride=stride: -stride[dim]))  # type: ignore[misc]
            if all(size <= 1 or a == b for size, a, b in zip(shape, stride, _contiguous(shape), strict=True)):
                order = tuple(range(len(shape)))
            found[id(tensor)] = FlatPart(torch.Size(shape), order, start, end + 1, group, handle, index)
    return found


def why_not(tensors: Iterable[Tensor], module: nn.Module | None) -> str | None:
    """Why FSDP1's among these cannot be measured, with the way out; None where all can."""
    flat = [tensor for tensor in tensors if is_flat(tensor)]
    if not flat:
        return None
    old = FLAT.why_not()
    if old is not None:
        return old
    if any(map(_is_several, flat)):
        return (
            "FSDP1 has put many parameters into one, so that no tensor, layer or row can be told. Pass "
            "`use_orig_params=True` to `FullyShardedDataParallel`, which is what `FSDPStrategy` does by itself."
        )
    handles = _handles(module) if module is not None else []
    unknown = next((name for handle in handles for name in _unknown(handle)), None)
    if unknown is not None:
        return (
            f"torch {torch.__version__} keeps FSDP1's shards in another way than is known here: there is no {unknown}. "
            "Use FSDP2 (`ModelParallelStrategy`, with `fully_shard` in `configure_model`) or DDP."
        )
    if any(handle._offload_params for handle in handles):
        return (
            "FSDP1 keeps parameters on the CPU while it computes elsewhere, which was never tried. Leave out "
            "`cpu_offload`, or use FSDP2 (`ModelParallelStrategy`, with `fully_shard` in `configure_model`)."
        )
    known = {id(tensor) for handle in handles for tensor in handle.flat_param._params}
    if any(id(tensor) not in known for tensor in flat) and not _alone():
        return (
            "FSDP1 has cut these parameters into flat shards, and only its root module knows where. Pass that module, "
            "such as `trainer.strategy.model`, and not an optimizer, a list of parameters, or a module inside of it."
        )
    return None


def _alone() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def _handles(module: nn.Module) -> list[Any]:
    found = [getattr(one, "_handle", one) for one in wrappers(module)]
    return [handle for handle in found if handle is not None]


def _unknown(handle: Any) -> Iterator[str]:
    """The names that are missing."""
    for name in _OF_HANDLE:
        if not hasattr(handle, name):
            yield f"`FlatParamHandle.{name}`"
            return
    yield from (f"`FlatParameter.{name}`" for name in _OF_FLAT if not hasattr(handle.flat_param, name))
    for info in getattr(handle.flat_param, "_shard_param_infos", ())[:1]:
        yield from (f"`_ShardParamInfo.{name}`" for name in _OF_SHARD if not hasattr(info, name))


def _contiguous(shape: Iterable[int]) -> list[int]:
    sizes = list(shape)
    return [prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
