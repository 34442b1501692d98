"""The plan: which tensors there are, each once, and what each of them is called."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from lightning_calib.functional.batches import Batches, batches_of
from lightning_calib.functional.checks import message
from lightning_calib.functional.deepspeed import whole_shape
from lightning_calib.functional.flat_part import FlatPart
from lightning_calib.functional.fsdp1 import parts_of, plain_path, wrappers
from lightning_calib.functional.mesh_sums import Shards

Source = nn.Module | Optimizer | Iterable[Tensor]


_REMEDY = "Pass a module, an optimizer or an iterable of tensors such as `model.parameters()`."


class _Label(NamedTuple):
    name: str
    layer: str
    transposed: int = 0  # groups of a transposed convolution's weight, 0 for every other tensor


def _labels(module: nn.Module) -> dict[int, _Label]:
    """Name every parameter after the first module that owns it; `torch.compile`'s wrapper and FSDP1 leave no trace."""
    found: dict[int, _Label] = {}
    wrapped = bool(wrappers(module))
    for path, owner in module.named_modules():
        path = plain_path(path) if wrapped else path
        layer = path.replace("_orig_mod.", "").removesuffix("_orig_mod").removesuffix(".")
        for key, tensor in owner.named_parameters(recurse=False):
            groups = owner.groups if isinstance(owner, _ConvTransposeNd) and key == "weight" else 0
            found.setdefault(id(tensor), _Label(f"{layer}.{key}" if layer else key, layer or "(root)", groups))
    return found


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest real type there is on the device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def moved(value: Tensor, device: torch.device) -> Tensor:
    """The value there; the host never sees it before it has arrived."""
    return value.to(device, non_blocking=device.type != "cpu")


def tensors_of(source: nn.Module | Optimizer) -> list[Tensor]:
    """The parameters of a module, or of an optimizer in the order of its groups."""
    if isinstance(source, nn.Module):
        return list(source.parameters())
    return [tensor for group in source.param_groups for tensor in group["params"]]


@dataclass(frozen=True, eq=False)
class Plan:
    """The T tensors whose gradients are read together; everything here is fixed before the first step.

    Attributes:
        tensors: The parameters, each once, in the source's order.
        names: The name of each; ``"(unnamed <group>.<position>)"`` where no module names it.
        layers: The module that owns each.
        groups: The optimizer's parameter group of each (0 without an optimizer).
        transposed: The number of convolution groups where the tensor is the weight of a transposed
            convolution, whose output units lie along the second dimension; 0 for every other tensor.
        labelled: The scopes that the source can label.
        shapes: The tensors' shapes when the plan was laid.
        flat: What this process holds of each that FSDP1 has cut into flat shards; None for every other one.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    groups: tuple[int, ...]
    transposed: tuple[int, ...]
    labelled: frozenset[str]
    shapes: tuple[torch.Size, ...]
    flat: tuple[FlatPart | None, ...]

    @staticmethod
    def of(source: Source) -> "Plan":
        """Lay the plan for a module's, an optimizer's or a list's parameters."""
        if isinstance(source, Optimizer):
            return Plan.of_optimizer(source)
        if isinstance(source, nn.Module):
            return _build(((0, tensor) for tensor in source.parameters()), source, {"layer"})
        if not isinstance(source, Iterable):
            raise TypeError(message("parameters", "a module, an optimizer or tensors", source, _REMEDY))
        try:
            tensors = [source] if isinstance(source, Tensor) else list(source)
        except TypeError as reason:  # it says that it is iterable and is not, as an array without dimensions
            raise TypeError(message("parameters", "a module, an optimizer or tensors", source, _REMEDY)) from reason
        return _build(((0, tensor) for tensor in tensors), None, set())

    @staticmethod
    def of_optimizer(optimizer: Optimizer, module: nn.Module | None = None) -> "Plan":
        """Lay the plan for what ``optimizer`` steps; ``module`` gives the names and the layers."""
        return Plan.of_groups([group["params"] for group in optimizer.param_groups], module)

    @staticmethod
    def of_groups(groups: Iterable[Iterable[Tensor]], module: nn.Module | None) -> "Plan":
        """The same, of an optimizer's groups that are no longer in it."""
        pairs = ((g, tensor) for g, group in enumerate(groups) for tensor in group)
        return _build(pairs, module, {"group"} | ({"layer"} if module is not None else set()))

    @cached_property
    def device(self) -> torch.device:
        """Where the norms are brought together: the first tensor's device."""
        return self.tensors[0].device if self.tensors else torch.device("cpu")

    @cached_property
    def spread_out(self) -> bool:
        """Whether some tensor lives elsewhere."""
        return any(tensor.device != self.device for tensor in self.tensors)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of norms and state: float64 where a tensor is, else float32 (half types accumulate in float32)."""
        wide = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in self.tensors)
        return torch.float64 if wide else torch.float32

    @cached_property
    def shards(self) -> Shards | None:
        """How the tensors are spread over processes; None unless some are DTensors, or FSDP1's."""
        return Shards.of(self.tensors, self.unit_counts, self.transposed, self.flat)

    @cached_property
    def cut(self) -> bool:
        """Whether FSDP1 has cut some tensor into flat shards, so that what is held elsewhere cannot be seen here."""
        return any(flat is not None for flat in self.flat)

    @cached_property
    def whole_shapes(self) -> tuple[torch.Size, ...]:
        """The shape of each tensor over all processes."""
        return tuple(
            whole_shape(tensor) if flat is None else flat.shape
            for tensor, flat in zip(self.tensors, self.flat, strict=True)
        )

    @cached_property
    def wide(self) -> torch.dtype:
        """For sums of many norms: their squares overflow and underflow in float32 long before the norms do."""
        return wide_dtype(self.device)

    @cached_property
    def has_complex(self) -> bool:
        """Whether some tensor is complex."""
        return any(tensor.is_complex() for tensor in self.tensors)

    @cached_property
    def unit_counts(self) -> tuple[int, ...]:
        """How many units each tensor has: rows, or the whole tensor below two dimensions."""
        return tuple(map(self._units, range(len(self.tensors))))

    @cached_property
    def unit_starts(self) -> tuple[int, ...]:
        """Where each tensor's units start in the (U,) vector of all units; one more entry at the end, U."""
        return tuple(accumulate(self.unit_counts, initial=0))

    @cached_property
    def unit_owner(self) -> Tensor:
        """Shape (U,): the position of each unit's tensor."""
        counts = torch.tensor(self.unit_counts)
        return torch.arange(len(self.tensors)).repeat_interleave(counts).to(self.device)

    @cached_property
    def by_tensor(self) -> Batches:
        """Small tensors of one shape."""
        counts = [1] * len(self.tensors)
        return batches_of(self.tensors, counts, self.transposed, largest=2**11, fewest=16, rows=False)

    @cached_property
    def by_unit(self) -> Batches:
        """Small tensors with rows of one shape; below two dimensions, of one shape."""
        largest = 2**12 if self.device.type == "cpu" else 2**14
        alone = [groups or flat is not None for groups, flat in zip(self.transposed, self.flat, strict=True)]
        return batches_of(self.tensors, self.unit_counts, alone, largest=largest, fewest=2, rows=True)

    def _units(self, i: int) -> int:
        shape = self.whole_shapes[i]
        if len(shape) < 2 or shape.numel() == 0:
            return 1
        return self.transposed[i] * shape[1] if self.transposed[i] else shape[0]

    def unit_view(self, i: int, value: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """A view of ``value``, shaped like tensor ``i``, and the dimensions in it that lie inside a unit.

        The other dimensions, which come first, number the units in order. A transposed convolution's weight
        (in, out / groups, *kernel) has one for each group and column: its view is
        (groups, out / groups, in / groups, *kernel).
        """
        groups = self.transposed[i]
        if groups:
            value = torch.unflatten(value, 0, (groups, -1)).transpose(1, 2)
        return value, tuple(range(2 if groups else 1, value.ndim))

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are still the tensors, and their shapes, that the plan was laid for."""
        same = len(tensors) == len(self.tensors) and all(map(is_, tensors, self.tensors))
        return same and all(tensor.shape == shape for tensor, shape in zip(tensors, self.shapes, strict=True))

    def gradients(self, *, to_write: bool = True) -> list[Tensor | None]:
        """The gradients now, None where there is none; those of sharded parameters are placed as these are."""
        if self.shards is not None:
            return self.shards.gradients(to_write=to_write)
        return [tensor.grad for tensor in self.tensors]


def _distinct(pairs: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (group, position, tensor) for each tensor once: a tied one would be counted and scaled twice."""
    seen: set[int] = set()
    for position, (group, tensor) in enumerate(pairs):
        if not isinstance(tensor, Tensor):
            raise TypeError(message("parameters", "made of tensors", tensor, _REMEDY))
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield group, position, tensor


def _build(pairs: Iterable[tuple[int, Tensor]], module: nn.Module | None, labelled: set[str]) -> Plan:
    known = _labels(module) if module is not None else {}
    groups, tensors, labels = [], [], []
    for group, position, tensor in _distinct(pairs):
        groups.append(group)
        tensors.append(tensor)
        fallback = f"(unnamed {group}.{position})"
        labels.append(known.get(id(tensor), _Label(fallback, fallback)))
    names, layers, transposed = zip(*labels, strict=True) if labels else ((), (), ())
    scopes = frozenset(labelled | {"global", "parameter", "unit"})
    shapes = tuple(tensor.shape for tensor in tensors)
    flat = parts_of(tensors, module)
    return Plan(tuple(tensors), tuple(names), tuple(layers), tuple(groups), tuple(transposed), scopes, shapes, flat)
