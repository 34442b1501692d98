"""The one pass over the gradients: a norm per tensor, or per unit where a scope needs it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import Plan


class Reading(NamedTuple):
    """What the pass found: norms of the T tensors and, where asked, of their U units.

    A missing gradient and an empty tensor read 0. A non-finite element makes its tensor's (and unit's) norm inf or nan.

    Attributes:
        norm_type: The p of the p-norm.
        tensors: Shape (T,), float32, or float64 where a parameter is.
        units: Shape (U,) or None.
    """

    norm_type: float
    tensors: Tensor
    units: Tensor | None = None

    def rescaled(self, plan: Plan, factors: Tensor) -> "Reading":
        """The reading after a rescale by ``factors``: shape (1,), (T,) or (U,). Nothing is read again."""
        if self.units is None:
            return self._replace(tensors=self.tensors * factors)
        if factors.numel() == self.units.numel():
            units = self.units * factors
            return self._replace(tensors=_of_units(plan, units, self.norm_type), units=units)
        per_unit = factors if factors.numel() == 1 else factors[plan.unit_owner]
        return self._replace(tensors=self.tensors * factors, units=self.units * per_unit)


@torch.no_grad()
def measure(plan: Plan, values: Sequence[Tensor | None], norm_type: float = 2.0, units: bool = False) -> Reading:
    """Take the norm of every value, laid out as ``plan.tensors``: gradients or weights, dense or sparse.

    Half types accumulate in float32: an fp16 norm above 65504 is right, a bf16 one is not rounded.
    """
    if not units:
        return Reading(norm_type, _tensor_norms(plan, [_dense(value) for value in values], norm_type))
    rows = torch.cat(_all_unit_norms(plan, values, norm_type)) if values else torch.zeros(0)
    return Reading(norm_type, _of_units(plan, rows, norm_type), rows)


def _dense(value: Tensor | None) -> Tensor | None:
    # Duplicate indices of an uncoalesced gradient must be added before the norm is taken.
    return value.coalesce().values() if value is not None and value.is_sparse else value


def _tensor_norms(plan: Plan, values: list[Tensor | None], norm_type: float) -> Tensor:
    zero = torch.zeros((), dtype=plan.dtype, device=plan.device)
    if not plan.plain:
        values = [value.abs() if value is not None and value.is_complex() else value for value in values]
    present = [value for value in values if value is not None and (plan.plain or value.numel())]
    if not present:
        return zero.expand(len(values)).clone()
    norms = list(torch._foreach_norm(present, norm_type, dtype=plan.dtype))
    if not plan.one_device:
        norms = [norm.to(plan.device, non_blocking=True) for norm in norms]
    if len(present) < len(values):
        found = iter(norms)
        norms = [zero if value is None or not value.numel() else next(found) for value in values]
    return torch.stack(norms)


def _all_unit_norms(plan: Plan, values: Sequence[Tensor | None], norm_type: float) -> list[Tensor]:
    whole = [None if plan.unit_counts[i] > 1 else _dense(value) for i, value in enumerate(values)]
    singles = torch.split(_tensor_norms(plan, whole, norm_type), 1)
    return [
        single if plan.unit_counts[i] == 1 else _unit_norms(plan, i, value, norm_type).to(plan.device)
        for i, (value, single) in enumerate(zip(values, singles, strict=True))
    ]


def _unit_norms(plan: Plan, i: int, value: Tensor | None, norm_type: float) -> Tensor:
    """Norms of tensor ``i``'s units, shape (unit_counts[i],); a row that a sparse gradient lacks reads 0."""
    if value is None:
        return torch.zeros(plan.unit_counts[i], dtype=plan.dtype, device=plan.device)
    if value.is_sparse and (value.sparse_dim() > 1 or plan.transposed[i]):
        value = value.to_dense()
    if value.is_sparse:
        value = value.coalesce()
        touched = _row_norms(value.values(), tuple(range(1, value.ndim)), norm_type, plan.dtype)
        return touched.new_zeros(plan.unit_counts[i]).index_copy_(0, value.indices()[0], touched)
    view, inside = plan.unit_view(i, value)
    return _row_norms(view, inside, norm_type, plan.dtype).flatten()


def _row_norms(view: Tensor, inside: tuple[int, ...], norm_type: float, dtype: torch.dtype) -> Tensor:
    view = view.abs() if view.is_complex() else view
    norms: Tensor = torch.linalg.vector_norm(view, norm_type, dim=inside, dtype=dtype)
    return norms


def _of_units(plan: Plan, rows: Tensor, norm_type: float) -> Tensor:
    if not plan.tensors:
        return rows
    each = torch.split(rows, list(plan.unit_counts))
    return torch.stack(torch._foreach_norm(each, norm_type, dtype=plan.dtype))
