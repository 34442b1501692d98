"""The one pass over the gradients: a norm per tensor, or per unit where a scope needs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held, is_sharded
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import Plan, moved
from lightning_calib.functional.rescale import rescale_


@dataclass(frozen=True, eq=False)
class Reading:
    """What the pass found. A missing gradient and an empty tensor read 0, one with inf or nan in it reads inf or nan.

    Attributes:
        plan: What was read.
        norm_type: The p of the p-norm.
        pieces: Norms of the T tensors, shape (T,), or of their U units, shape (U,); float32, or float64 where a
            parameter is.
        by_unit: Which of the two.
        scaled: Whether what overflowed was read again, scaled.
    """

    plan: Plan
    norm_type: float
    pieces: Tensor
    by_unit: bool = False
    scaled: bool = False

    @property
    def units(self) -> Tensor | None:
        """Norms of the units, shape (U,), if they were taken."""
        return self.pieces if self.by_unit else None

    @cached_property
    def tensors(self) -> Tensor:
        """Norms of the tensors, shape (T,)."""
        if not self.by_unit or not self.plan.tensors:
            return self.pieces
        each = torch.split(self.pieces, list(self.plan.unit_counts))
        if self.scaled:
            return torch.stack([self.fold(one, 0) for one in each])
        folded = torch._foreach_norm(each, self.norm_type, dtype=self.plan.wide)
        return torch.stack(folded).to(self.plan.dtype)

    @cached_property
    def norm(self) -> Tensor:
        """The norm of all the tensors together, 0-d."""
        return self.fold(self.pieces, 0) if self.pieces.numel() else self.pieces.new_zeros(())

    def fold(self, norms: Tensor, dim: int) -> Tensor:
        """The norm of what has these norms, along ``dim``; in a scaled reading their p-th powers may overflow, too."""
        folded: Tensor
        if not self.scaled:
            folded = torch.linalg.vector_norm(norms, self.norm_type, dim=dim, dtype=self.plan.wide)
            return folded.to(norms.dtype)
        wide = norms.to(self.plan.wide)
        top = torch.linalg.vector_norm(wide, inf, dim=dim, keepdim=True)
        top = torch.where(top.isfinite() & (top > 0), top, 1.0)
        folded = torch.linalg.vector_norm(wide / top, self.norm_type, dim=dim) * top.squeeze(dim)
        return folded.to(norms.dtype)

    def rescaled(self, factors: Tensor) -> "Reading":
        """The reading after a rescale by ``factors``: shape (1,), (T,) or (U,). Nothing is read again."""
        if self.by_unit and factors.numel() not in (1, self.pieces.numel()):
            factors = factors[self.plan.unit_owner]
        return Reading(self.plan, self.norm_type, self.pieces * factors, self.by_unit, self.scaled)


@torch.no_grad()
def measure(
    plan: Plan, values: Sequence[Tensor | None], norm_type: float = 2.0, units: bool = False, scaled: bool = False
) -> Reading:
    """Take the norm of every value, laid out as ``plan.tensors``: gradients or weights, dense or sparse.

    Half types accumulate in float32: an fp16 norm above 65504 is right, a bf16 one is not rounded. Squares overflow
    from 1.8e19 on (float64: 1.3e154) although the norm fits into the type. On the CPU what is not finite is therefore
    read again, scaled by its largest magnitude; elsewhere to look would be to wait for the device, so that it is done
    where ``scaled`` asks for it.

    Of DTensors each process reads what it holds, and one collective per mesh, which all processes must come to, makes
    of it the norms of the whole: the same bits on all of them, so that all of them read again or none does.
    """
    reading = Reading(plan, norm_type, _pieces(plan, values, norm_type, units), units)
    if norm_type != inf and (scaled or (plan.device.type == "cpu" and not _fits(reading))):
        return _read_scaled(reading, values)
    return reading


def _fits(reading: Reading) -> bool:
    """Whether all norms are finite, and so are the sums of their powers that `fold` makes."""
    total: float = reading.pieces.sum().item()
    limit: float = torch.finfo(reading.plan.wide).max ** min(1.0, 1 / reading.norm_type)
    return total <= limit


def _pieces(plan: Plan, values: Sequence[Tensor | None], norm_type: float, units: bool) -> Tensor:
    by_unit, dtype = units and bool(plan.tensors), plan.dtype
    if plan.shards is not None:
        return _over_processes(plan, plan.shards, values, norm_type, by_unit, dtype).to(dtype)
    take = _all_unit_norms if by_unit else _tensor_norms
    return take(plan, values, norm_type, dtype)


def _read_scaled(reading: Reading, values: Sequence[Tensor | None]) -> Reading:
    """Read again what is not finite though its elements are: times a power of two that brings the largest below 4."""
    plan, norm_type, pieces = reading.plan, reading.norm_type, reading.pieces
    beyond = ~pieces.isfinite()
    if beyond.any():
        tops = _pieces(plan, values, inf, reading.by_unit)
        beyond &= tops.isfinite()
    if beyond.any():
        factors = torch.where(beyond, 4 * torch.frexp(tops).mantissa / tops, 1.0)
        owners = plan.unit_owner[beyond] if reading.by_unit else beyond.nonzero().flatten()
        chosen = set(owners.tolist())
        copies = [held(one).clone() if one is not None and i in chosen else None for i, one in enumerate(values)]
        rescale_(plan, copies, factors)
        pieces = torch.where(beyond, _pieces(plan, copies, norm_type, reading.by_unit) / factors, pieces)
    return Reading(plan, norm_type, pieces, reading.by_unit, scaled=True)


def _over_processes(
    plan: Plan, shards: Shards, values: Sequence[Tensor | None], norm_type: float, by_unit: bool, dtype: torch.dtype
) -> Tensor:
    values = [None if value is None else held(value) for value in values]
    if not by_unit:
        return shards.norms(_tensor_norms(plan, values, norm_type, dtype), norm_type)
    each = [_held_unit_norms(plan, shards, i, value, norm_type, dtype) for i, value in enumerate(values)]
    return shards.norms(torch.cat([moved(norms, plan.device) for norms in each]), norm_type, units=True)


def _held_unit_norms(
    plan: Plan, shards: Shards, i: int, value: Tensor | None, norm_type: float, dtype: torch.dtype
) -> Tensor:
    """Norms of what this process holds of the units at ``shards.places[i]``, in that order."""
    if not is_sharded(plan.tensors[i]):
        return _unit_norms(plan, i, value, norm_type, dtype)
    places = shards.places[i]
    if value is None or value.numel() == 0:
        return torch.zeros(places.numel(), dtype=dtype, device=plan.device)
    if plan.unit_counts[i] == 1:
        return _norms_over(value.reshape(1, -1), (1,), norm_type, dtype)
    return _norms_over(value, tuple(range(places.ndim, value.ndim)), norm_type, dtype).flatten()


def _tensor_norms(plan: Plan, values: Sequence[Tensor | None], norm_type: float, dtype: torch.dtype) -> Tensor:
    # Duplicate indices of an uncoalesced gradient must be added before the norm is taken.
    values = [value.coalesce().values() if value is not None and value.is_sparse else value for value in values]
    if plan.has_complex:
        values = [value.abs() if value is not None and value.is_complex() else value for value in values]
    present = [value for value in values if value is not None and value.numel()]
    if not present:
        return torch.zeros(len(values), dtype=dtype, device=plan.device)
    norms = list(torch._foreach_norm(present, norm_type, dtype=dtype))
    if plan.spread_out:
        norms = [moved(norm, plan.device) for norm in norms]
    if len(present) < len(values):
        found, zero = iter(norms), torch.zeros((), dtype=dtype, device=plan.device)
        norms = [zero if value is None or not value.numel() else next(found) for value in values]
    return torch.stack(norms)


def _all_unit_norms(plan: Plan, values: Sequence[Tensor | None], norm_type: float, dtype: torch.dtype) -> Tensor:
    """Shape (U,). Small tensors with rows of one length are read in one call, the others one by one."""
    found: dict[int, Tensor] = {}
    for batch in plan.batches:
        rows = [value for i in batch.members if (value := values[i]) is not None and not value.is_sparse]
        if len(rows) == len(batch.members):
            together = torch.cat([value.reshape(-1, batch.length) for value in rows])
            norms = _norms_over(together, (1,), norm_type, dtype)
            found.update(zip(batch.members, torch.split(norms, list(batch.counts)), strict=True))
    each = [found[i] if i in found else _unit_norms(plan, i, value, norm_type, dtype) for i, value in enumerate(values)]
    return torch.cat([moved(norms, plan.device) for norms in each] if plan.spread_out else each)


def _unit_norms(plan: Plan, i: int, value: Tensor | None, norm_type: float, dtype: torch.dtype) -> Tensor:
    """Norms of tensor ``i``'s units, shape (unit_counts[i],); a row that a sparse gradient lacks reads 0."""
    if value is None or value.numel() == 0:
        return torch.zeros(plan.unit_counts[i], dtype=dtype, device=plan.device)
    if value.is_sparse and plan.transposed[i]:
        raise TypeError(
            f"The sparse gradient of {plan.names[i]}, a transposed convolution, has no units. Use scope='parameter'."
        )
    if value.is_sparse and (value.sparse_dim() > 1 or value.ndim < 2):
        value = value.to_dense()
    if value.is_sparse:
        value = value.coalesce()
        touched = _norms_over(value.values(), tuple(range(1, value.ndim)), norm_type, dtype)
        return touched.new_zeros(plan.unit_counts[i]).index_copy_(0, value.indices()[0], touched)
    if value.ndim < 2:
        return _norms_over(value.reshape(1, -1), (1,), norm_type, dtype)
    view, inside = plan.unit_view(i, value)
    return _norms_over(view, inside, norm_type, dtype).flatten()


def _norms_over(view: Tensor, inside: tuple[int, ...], norm_type: float, dtype: torch.dtype) -> Tensor:
    view = view.abs() if view.is_complex() else view
    norms: Tensor = torch.linalg.vector_norm(view, norm_type, dim=inside, dtype=dtype)
    return norms
