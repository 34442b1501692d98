"""Write the coefficients: multiply gradients in place, and leave alone what is to be left alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_calib.functional.batches import change_together_
from lightning_calib.functional.dtensor import held
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import Plan, moved

_HALF = (torch.float16, torch.bfloat16)


def elements(gradient: Tensor) -> Tensor:
    """What can be multiplied in place: the values, of a sparse gradient the stored ones, duplicates and all."""
    return gradient._values() if gradient.is_sparse else gradient


def rescale_(plan: Plan, gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    """Multiply the gradients in place by ``factors``: (1,) for all, (T,) per tensor, (U,) per unit.

    A factor of exactly 1 keeps the bits. Where the factors lie on the CPU they are looked at, and only what
    changes is written; on another device everything is multiplied, so that nothing waits for the host. Of a DTensor
    each process multiplies what it holds. To be called under `torch.no_grad`.
    """
    if plan.shards is not None:
        gradients = [None if one is None else held(one) for one in gradients]
    if factors.device.type != "cpu":
        _rescale_on_device(plan, gradients, factors)
    elif factors.numel() == 1 or factors.numel() == len(plan.tensors):
        _rescale_tensors(gradients, factors)
    else:
        changed = torch.unique_consecutive(plan.unit_owner[factors != 1.0]).tolist()
        _rescale_units(plan, gradients, factors, changed)


def _rescale_tensors(gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    present = [one._values() if one.is_sparse else one for one in gradients if one is not None]
    if factors.numel() == 1 and {one.dtype for one in present}.isdisjoint(_HALF):
        if present and factors.item() != 1.0:
            torch._foreach_mul_(present, factors.view(()))
        return
    factors = factors.expand(len(gradients))
    each, full, multipliers = factors.unbind(), [], []
    for i, (one, factor) in enumerate(zip(gradients, factors.tolist(), strict=True)):
        if one is None or factor == 1.0:
            continue
        if one.dtype in _HALF:
            elements(one).mul_(factor)  # unlike the call below, it does not round the factor to the half type first
        else:
            full.append(elements(one))
            multipliers.append(each[i])
    if full:
        torch._foreach_mul_(full, multipliers)


def _rescale_on_device(plan: Plan, gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    """Few launches: a list of T factors is a launch for each, so that small tensors are multiplied in batches."""
    if factors.numel() == 1:
        gradients = _rescale_full_(gradients, factors.view(()))
        factors = factors.expand(len(gradients))
    if all(one is None for one in gradients):
        return
    by_tensor = factors.numel() == len(plan.tensors)
    units = torch.split(factors[plan.unit_owner] if by_tensor else factors, list(plan.unit_counts))

    def multiply(members: list[int], rows: Tensor) -> None:
        found = moved(torch.cat([units[i] for i in members]), rows.device)
        if by_tensor and rows.dtype not in _HALF:
            found = found.to(rows.dtype)  # as a factor without dimensions would be, which is what large tensors take
        rows.mul_(found.view(-1, *[1] * (rows.ndim - 1)))

    left = change_together_(plan.by_unit, gradients, multiply)
    if not by_tensor:
        _rescale_units(plan, gradients, factors, left)
        return
    for i in left:
        gradient = gradients[i]
        if gradient is not None:
            one, factor = elements(gradient), moved(factors[i], gradient.device)
            if one.dtype in _HALF:  # without dimensions the factor would be rounded to the half type first
                (one.view(1) if one.ndim == 0 else one).mul_(factor.view(1))
            else:
                one.mul_(factor)


def _rescale_full_(gradients: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """Multiply all by the 0-d factor, in one call for each type; return what it cannot: it would round it to a half."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    left: list[Tensor | None] = [None] * len(gradients)
    for i, one in enumerate(gradients):
        if one is not None and one.dtype in _HALF:
            left[i] = one
        elif one is not None:
            alike.setdefault((one.device, one.dtype), []).append(elements(one))
    for (device, dtype), members in alike.items():
        torch._foreach_mul_(members, moved(factor, device).to(dtype))
    return left


def _rescale_units(plan: Plan, gradients: Sequence[Tensor | None], factors: Tensor, changed: Sequence[int]) -> None:
    counts = list(plan.unit_counts)
    by_ndim: dict[int, tuple[Tensor, ...]] = {}
    views, multipliers = [], []
    for i in changed:
        gradient = gradients[i]
        if gradient is None:
            continue
        ndim = max(gradient.ndim, 1)
        if ndim not in by_ndim:
            by_ndim[ndim] = torch.split(factors.view(-1, *[1] * (ndim - 1)), counts)
        view, multiplier = gradient, by_ndim[ndim][i]
        if plan.shards is not None and plan.shards.spreads(i) and plan.unit_counts[i] > 1:
            for part, factor in _by_places(plan.shards, i, gradient, multiplier.view(-1)):
                views.append(part)
                multipliers.append(factor)
            continue
        if plan.transposed[i] or gradient.is_sparse or gradient.ndim == 0 or plan.spread_out or plan.shards is not None:
            view, multiplier = _by_rows(plan, i, gradient, multiplier.view(-1))
        views.append(view)
        multipliers.append(multiplier)
    if views:
        torch._foreach_mul_(views, multipliers)


def _by_places(shards: Shards, i: int, gradient: Tensor, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of what this process holds of a tensor that is spread over several."""
    factors = moved(factors, gradient.device)
    for view, places in shards.by_unit(i, gradient):
        found = factors[places]
        yield view, found.view(*found.shape, *[1] * (view.ndim - found.ndim))


def _by_rows(plan: Plan, i: int, gradient: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """A view of the gradient and the factors of its units, shaped so that one multiplies the other."""
    factors = moved(factors, gradient.device)
    if gradient.is_sparse and gradient.ndim > 1:
        # Rows that occur twice share a factor, so an uncoalesced gradient needs no coalescing here.
        values = gradient._values()
        return values, factors[gradient._indices()[0]].view(-1, *[1] * (values.ndim - 1))
    if plan.unit_counts[i] == 1 or gradient.is_sparse:
        values = elements(gradient)
        return (values.view(-1) if values.ndim == 0 else values), factors
    view, inside = plan.unit_view(i, gradient)
    return view, factors.view(*view.shape[: view.ndim - len(inside)], *[1] * len(inside))
