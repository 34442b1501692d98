"""Write the coefficients: multiply gradients in place, and leave alone what is to be left alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held, is_sharded
from lightning_calib.functional.plan import Plan, moved

_HALF = (torch.float16, torch.bfloat16)


def elements(gradient: Tensor) -> Tensor:
    """What can be multiplied in place: the values, of a sparse gradient the stored ones, duplicates and all."""
    return gradient._values() if gradient.is_sparse else gradient


@torch.no_grad()
def rescale_(plan: Plan, gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    """Multiply the gradients in place by ``factors``: (1,) for all, (T,) per tensor, (U,) per unit.

    A factor of exactly 1 keeps the bits. Where the factors lie on the CPU they are looked at, and only what
    changes is written; on another device everything is multiplied, so that nothing waits for the host. Of a DTensor
    each process multiplies what it holds.
    """
    if plan.shards is not None:
        gradients = [None if one is None else held(one) for one in gradients]
    if factors.numel() == 1 or factors.numel() == len(plan.tensors):
        _rescale_tensors(gradients, factors)
    else:
        _rescale_units(plan, gradients, factors)


def _rescale_tensors(gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    half = any(one is not None and one.dtype in _HALF for one in gradients)
    if factors.device.type != "cpu":
        _rescale_on_device(gradients, factors)
    elif factors.numel() == 1 and not half:
        factor = factors.item()
        present = [elements(one) for one in gradients if one is not None] if factor != 1.0 else []
        if present:
            torch._foreach_mul_(present, factor)
    else:
        pairs = zip(gradients, factors.expand(len(gradients)).tolist(), strict=True)
        changed = [(elements(one), factor) for one, factor in pairs if one is not None and factor != 1.0]
        for one, factor in changed:
            if one.dtype in _HALF:
                one.mul_(factor)  # unlike the call below, it does not round the factor to the half type first
        full = [(one, factor) for one, factor in changed if one.dtype not in _HALF]
        if full:
            torch._foreach_mul_([one for one, _ in full], [factor for _, factor in full])


def _rescale_on_device(gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    each = zip(gradients, factors.expand(len(gradients)).unbind(), strict=True)
    placed = [(elements(one), moved(factor, one.device)) for one, factor in each if one is not None]
    for one, factor in placed:
        if one.dtype in _HALF:  # without dimensions the factor would be rounded to the half type first
            (one.view(1) if one.ndim == 0 else one).mul_(factor.view(1))
    full = [(one, factor) for one, factor in placed if one.dtype not in _HALF]
    if full:
        torch._foreach_mul_([one for one, _ in full], [factor for _, factor in full])


def _rescale_units(plan: Plan, gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    changed: Sequence[int] = range(len(plan.tensors))
    if factors.device.type == "cpu":
        changed = torch.unique(plan.unit_owner[factors != 1.0]).tolist()
    views, multipliers = [], []
    each = torch.split(factors, list(plan.unit_counts))
    for i in changed:
        gradient = gradients[i]
        if gradient is not None:
            view, multiplier = _by_rows(plan, i, gradient, each[i])
            views.append(view)
            multipliers.append(multiplier)
    if views:
        torch._foreach_mul_(views, multipliers)


def _by_rows(plan: Plan, i: int, gradient: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """A view of the gradient and the factors of its units, shaped so that one multiplies the other."""
    factors = moved(factors, gradient.device)
    if plan.shards is not None and is_sharded(plan.tensors[i]) and plan.unit_counts[i] > 1:
        factors = factors[plan.shards.places[i]]
        return gradient, factors.view(*factors.shape, *[1] * (gradient.ndim - factors.ndim))
    if gradient.is_sparse and gradient.ndim > 1:
        # Rows that occur twice share a factor, so an uncoalesced gradient needs no coalescing here.
        values = gradient._values()
        return values, factors[gradient._indices()[0]].view(-1, *[1] * (values.ndim - 1))
    if plan.unit_counts[i] == 1 or gradient.is_sparse:
        values = elements(gradient)
        return (values.view(-1) if values.ndim == 0 else values), factors
    view, inside = plan.unit_view(i, gradient)
    return view, factors.view(*view.shape[: view.ndim - len(inside)], *[1] * len(inside))
