"""One norm for each of a plan's values, or for each of their units, in few calls."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_calib.functional.batches import joined
from lightning_calib.functional.dtensor import held
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import Plan, moved


def piece_norms(plan: Plan, values: Sequence[Tensor | None], norm_type: float, units: bool) -> Tensor:
    """Norms of the T values, or of their U units, in the plan's order and type."""
    by_unit, dtype = units and bool(plan.tensors), plan.dtype
    if plan.shards is not None:
        return _over_processes(plan, plan.shards, values, norm_type, by_unit, dtype).to(dtype)
    take = _all_unit_norms if by_unit else _tensor_norms
    return take(plan, values, norm_type, dtype)


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
    if not shards.spreads(i):
        return _unit_norms(plan, i, value, norm_type, dtype)
    places = shards.places[i]
    if value is None or value.numel() == 0:
        return torch.zeros(places.numel(), dtype=dtype, device=plan.device)
    if plan.unit_counts[i] == 1:
        return _norms_over(value.reshape(1, -1), (1,), norm_type, dtype)
    found = [
        _norms_over(view, tuple(range(places.ndim, view.ndim)), norm_type, dtype).flatten()
        for view, places in shards.by_unit(i, value)
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def _tensor_norms(plan: Plan, values: Sequence[Tensor | None], norm_type: float, dtype: torch.dtype) -> Tensor:
    """Shape (T,). On the CPU small tensors of one shape are read in one call; elsewhere one call reads all anyway."""
    if plan.device.type != "cpu":
        return _each_norm(plan, values, norm_type, dtype)
    layout = plan.by_tensor
    found = [_batch_norms(plan, batch, values, norm_type, dtype, units=False) for batch in layout.batches]
    if layout.others or not found:
        found.append(_each_norm(plan, [values[i] for i in layout.others], norm_type, dtype))
    return layout.in_order(found)


def _each_norm(plan: Plan, values: Sequence[Tensor | None], norm_type: float, dtype: torch.dtype) -> Tensor:
    """One norm for each value, which may be of any shape and kind."""
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


def _batch_norms(
    plan: Plan,
    batch: Sequence[int],
    values: Sequence[Tensor | None],
    norm_type: float,
    dtype: torch.dtype,
    *,
    units: bool,
) -> Tensor:
    """Norms of a batch's tensors or of all their units; a missing one reads 0, and a sparse one is read by itself."""
    dense = {i: value for i in batch if (value := values[i]) is not None and not value.is_sparse}
    parts: dict[int, Tensor] = {}
    if dense:
        together = joined(list(dense.values()), rows=units)
        rows = together.flatten(1) if together.ndim > 1 else together.unsqueeze(1)
        norms = moved(_norms_over(rows, (1,), norm_type, dtype), plan.device)
        if len(dense) == len(batch):
            return norms
        counts = [plan.unit_counts[i] if units else 1 for i in dense]
        parts.update(zip(dense, torch.split(norms, counts), strict=True))
    return _completed(plan, batch, parts, values, norm_type, dtype, units=units)


def _completed(
    plan: Plan,
    order: Sequence[int],
    parts: dict[int, Tensor],
    values: Sequence[Tensor | None],
    norm_type: float,
    dtype: torch.dtype,
    *,
    units: bool,
) -> Tensor:
    """The norms of some tensors in ``order``: those in ``parts`` are known, missing ones read 0."""
    missing = [i for i in order if i not in parts and values[i] is None]
    if missing:
        counts = [plan.unit_counts[i] if units else 1 for i in missing]
        zeros = torch.zeros(sum(counts), dtype=dtype, device=plan.device)
        parts.update(zip(missing, torch.split(zeros, counts), strict=True))
    for i in order:
        if i not in parts:
            value = values[i]
            alone = (
                _unit_norms(plan, i, value, norm_type, dtype) if units else _each_norm(plan, [value], norm_type, dtype)
            )
            parts[i] = moved(alone, plan.device)
    return torch.cat([parts[i] for i in order])


def _all_unit_norms(plan: Plan, values: Sequence[Tensor | None], norm_type: float, dtype: torch.dtype) -> Tensor:
    """Shape (U,). Small tensors with rows of one shape are read in one call, the others one by one."""
    layout = plan.by_unit
    found = [_batch_norms(plan, batch, values, norm_type, dtype, units=True) for batch in layout.batches]
    if layout.others:
        whole = [i for i in layout.others if plan.unit_counts[i] == 1 and not _is_sparse(values[i])]
        norms = _each_norm(plan, [values[i] for i in whole], norm_type, dtype)
        parts = dict(zip(whole, torch.split(norms, 1), strict=True)) if whole else {}
        found.append(_completed(plan, layout.others, parts, values, norm_type, dtype, units=True))
    return layout.in_order(found)


def _is_sparse(value: Tensor | None) -> bool:
    return value is not None and value.is_sparse


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
