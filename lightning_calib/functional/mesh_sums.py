"""What all processes together find about tensors that are spread over them: one sum or maximum per mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from lightning_calib.functional.checks import message
from lightning_calib.functional.dtensor import copies, held, is_sharded, part_of, positions, split_dims, whole, why_not
from lightning_calib.functional.flat_part import FlatPart, Group

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, eq=False)
class Shards:
    """T tensors, some of them DTensors or FSDP1's, and how they are spread over processes.

    A piece of which several processes hold a copy (a replicated one; a plain tensor beside sharded ones) counts as the
    mean of its copies: all processes come to the same bits, and one that is not finite anywhere is seen by all.

    Attributes:
        tensors: The T tensors.
        units: How many units each of them has, over all processes.
        transposed: The groups where it is a transposed convolution's weight, whose units lie along the second
            dimension; else 0.
        meshes: Each mesh once, in the order of the tensors, which is the same on all processes.
        mesh_of: The mesh that each tensor is summed over; a plain one takes the largest.
        flat: What this process holds of each that FSDP1 has cut; None for every other one.
    """

    tensors: tuple[Tensor, ...]
    units: tuple[int, ...]
    transposed: tuple[int, ...]
    meshes: "tuple[DeviceMesh | Group, ...]"
    mesh_of: tuple[int, ...]
    flat: tuple[FlatPart | None, ...]

    @staticmethod
    def of(
        tensors: Sequence[Tensor],
        units: Sequence[int] = (),
        transposed: Sequence[int] = (),
        flat: Sequence[FlatPart | None] = (),
    ) -> "Shards | None":
        """Find out; None where all tensors are plain. Without ``units`` only whole tensors can be asked for.

        Raises:
            ValueError: If a parameter is one that cannot be measured.
        """
        flat = tuple(flat) or (None,) * len(tensors)
        meshes: list[Any] = [
            tensor.device_mesh if is_sharded(tensor) else part and part.group
            for tensor, part in zip(tensors, flat, strict=True)
        ]
        distinct = [mesh for mesh in dict.fromkeys(meshes) if mesh is not None]
        if not distinct:
            return None
        reason = why_not(tensors)
        if reason is not None:
            raise ValueError(reason)
        largest = max(distinct, key=lambda mesh: int(mesh.size()))
        mesh_of = tuple(distinct.index(largest if mesh is None else mesh) for mesh in meshes)
        return Shards(tuple(tensors), tuple(units), tuple(transposed), tuple(distinct), mesh_of, flat)

    def spreads(self, i: int) -> bool:
        """Whether tensor ``i`` is more than what this process holds of it."""
        return self.flat[i] is not None or is_sharded(self.tensors[i])

    def gradients(self, *, to_write: bool) -> list[Tensor | None]:
        """Every gradient in its parameter's placements: a partial one is summed, as the step itself would.

        Args:
            to_write: Whether somebody may write to them. Else the sums are made aside, and the terms stay where they
                are: the optimizer sums them in another order, so that its last bits are others.
        """
        found: list[Tensor | None] = []
        for tensor in self.tensors:
            gradient = tensor.grad
            if is_sharded(tensor) and is_sharded(gradient) and gradient.placements != tensor.placements:
                gradient = gradient.redistribute(placements=tensor.placements)
                if to_write:
                    tensor.grad = gradient
            found.append(gradient)
        return found

    def splits_units(self, i: int) -> bool:
        """Whether processes share the units of tensor ``i`` among them, and not only the tensor."""
        return self.flat[i] is not None or bool(split_dims(self.tensors[i]) - {1 if self.transposed[i] else 0})

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """The units of each tensor of which this process holds something: (r,), (r, c) of a transposed convolution.

        Of what FSDP1 has cut: (r,), for each run of a unit's elements.
        """
        return tuple(map(self._places, range(len(self.tensors))))

    def _places(self, i: int) -> Tensor:
        tensor, groups, flat = self.tensors[i], self.transposed[i], self.flat[i]
        if flat is not None:
            return flat.places(self.units[i], groups).to(tensor.device)
        if not is_sharded(tensor) or self.units[i] == 1:
            return torch.arange(self.units[i], device=tensor.device)
        rows, columns = positions(tensor, 0), positions(tensor, 1)
        if (len(rows), len(columns)) != held(tensor).shape[:2]:
            rule = "sharded as `distribute_tensor` does it"
            raise ValueError(message("parameters", rule, tensor.placements, "Use `fully_shard` or DDP."))
        if not groups:
            return rows
        group = torch.div(rows, tensor.shape[0] // groups, rounding_mode="floor")
        places: Tensor = group[:, None] * tensor.shape[1] + columns
        return places

    def by_unit(self, i: int, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of what is held of tensor ``i``, and the units that their first dimensions number."""
        flat, places = self.flat[i], self.places[i]
        if flat is None:
            return [(value, places)]
        views = list(flat.runs(value, self.units[i], self.transposed[i]))
        return list(zip(views, torch.split(places, [len(view) for view in views]), strict=True)) if views else []

    def whole(self, values: Sequence[Tensor]) -> list[Tensor]:
        """All of each, on every process, from what is held of them: a collective, which all of them must come to."""
        pairs = zip(self.tensors, values, strict=True)
        found = [whole(tensor.detach()) if is_sharded(tensor) else one for tensor, one in pairs]
        for i, flat in enumerate(self.flat):
            if flat is not None:
                found[i] = flat.shaped(_over(flat.group, flat.padded(values[i]), largest=False))
        return found

    def cut(self, i: int, value: Tensor) -> Tensor:
        """What this process holds of a whole value of tensor ``i``; nothing is sent."""
        flat = self.flat[i]
        return part_of(value, self.tensors[i]) if flat is None else flat.cut(value)

    def anywhere(self, flag: bool) -> bool:
        """Whether it is so on any process: a collective for each mesh; waits for the device."""
        carried = torch.tensor([float(flag)], dtype=torch.float64, device=self._device)
        for mesh in self.meshes:
            carried = _over(mesh, carried, largest=False)
        return bool(carried > 0)

    def norms(self, pieces: Tensor, norm_type: float, *, units: bool = False) -> Tensor:
        """The p-norms, float64: (T,) of the tensors from those of the parts held, or (U,) of all the units.

        For units, ``pieces`` are the norms of what is held of the units at ``places``, one tensor after the other.
        """
        total = self.total_units if units else self.total
        pieces = pieces.double()
        if norm_type == inf:
            return total(pieces, largest=True)
        norms: Tensor = total(pieces**norm_type) ** (1 / norm_type)
        return norms

    def total(self, values: Tensor, *, largest: bool = False) -> Tensor:
        """The sum, or the largest, over processes: (T, ...) of non-negative float64 in, the same out."""
        if largest:
            return _as_floats(self._reduced(_as_bits(values), self._members, largest=True))
        share = self._shares.view(-1, *[1] * (values.ndim - 1))
        return self._reduced(values * share, self._members)

    def total_units(self, values: Tensor, *, largest: bool = False) -> Tensor:
        """The same from one value per unit at ``places``, (U,) out; with several values for a unit, of all of them."""
        places, shares, members = self._of_units
        if largest:
            bits = _as_bits(values)
            spread = bits.new_zeros(sum(self.units)).scatter_reduce_(0, places, bits, "amax")
            return _as_floats(self._reduced(spread, members, largest=True))
        spread = values.new_zeros(sum(self.units)).index_add_(0, places, values * shares)
        return self._reduced(spread, members)

    def _reduced(self, carried: Tensor, members: Sequence[Tensor], *, largest: bool = False) -> Tensor:
        if len(self.meshes) == 1:
            return _over(self.meshes[0], carried, largest=largest)
        for mesh, index in zip(self.meshes, members, strict=True):
            carried = carried.index_copy(0, index, _over(mesh, carried[index], largest=largest))
        return carried

    @cached_property
    def _device(self) -> torch.device:
        return self.tensors[0].device

    @cached_property
    def _members(self) -> tuple[Tensor, ...]:
        """For each mesh the tensors that are summed over it."""
        owner = torch.tensor(self.mesh_of)
        return tuple((owner == mesh).nonzero().flatten().to(self._device) for mesh in range(len(self.meshes)))

    @cached_property
    def _shares(self) -> Tensor:
        """Shape (T,): one over the number of copies."""
        meshes = [self.meshes[mesh] for mesh in self.mesh_of]
        each = zip(self.tensors, meshes, self.flat, strict=True)
        found = [
            1.0 if flat is not None else 1 / (copies(tensor) if is_sharded(tensor) else mesh.size())
            for tensor, mesh, flat in each
        ]
        return torch.tensor(found, dtype=torch.float64, device=self._device)

    @cached_property
    def _of_units(self) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Where each value goes among all units, what it counts there; and each mesh's part of them."""
        starts = list(accumulate(self.units, initial=0))[:-1]
        each = [(places + start).flatten() for places, start in zip(self.places, starts, strict=True)]
        lengths = torch.tensor([len(one) for one in each], device=self._device)
        owner = torch.tensor(self.mesh_of).repeat_interleave(torch.tensor(self.units))
        members = tuple((owner == mesh).nonzero().flatten().to(self._device) for mesh in range(len(self.meshes)))
        return torch.cat([one.to(self._device) for one in each]), self._shares.repeat_interleave(lengths), members


def _over(mesh: "DeviceMesh | Group", values: Tensor, *, largest: bool) -> Tensor:
    """Sum, or take the largest, over all processes of the mesh."""
    kind = distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM
    carried = values.to(mesh.device_type)  # of parameters that are kept on the CPU the mesh is still the GPUs'
    carried = carried.clone() if carried is values else carried
    for group in _groups(mesh):
        distributed.all_reduce(carried, kind, group)
    return carried.to(values.device)


def _groups(mesh: "DeviceMesh | Group") -> Sequence[Any]:
    """What to reduce over, one after the other: more than one only for a part of the world in several dimensions."""
    if isinstance(mesh, Group) or mesh.ndim == 1:
        return [mesh.get_group()]
    return [None] if mesh.size() == distributed.get_world_size() else mesh.get_all_groups()


def _as_bits(values: Tensor) -> Tensor:
    """Integers in the order of the non-negative numbers, nan on top: a maximum over processes may lose a nan."""
    return torch.where(values.isnan(), torch.nan, values).abs().view(torch.int64)


def _as_floats(bits: Tensor) -> Tensor:
    return bits.view(torch.float64)
