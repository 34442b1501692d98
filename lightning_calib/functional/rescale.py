"""Write the coefficients: multiply gradients in place, and leave alone what is to be left alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_calib.functional.plan import Plan


@torch.no_grad()
def rescale_(plan: Plan, gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    """Multiply the gradients in place by ``factors``: (1,) for all, (T,) per tensor, (U,) per unit.

    A factor of exactly 1 keeps the bits. Where the factors lie on the CPU they are looked at, and only what
    changes is written; on another device everything is multiplied, so that nothing waits for the host.
    """
    if factors.numel() == 1 or factors.numel() == len(plan.tensors):
        _rescale_tensors(gradients, factors)
    else:
        _rescale_units(plan, gradients, factors)


def _rescale_tensors(gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    present = [gradient for gradient in gradients if gradient is not None]
    if factors.device.type != "cpu":
        _rescale_on_device(gradients, factors)
    elif factors.numel() == 1:
        factor = factors.item()
        if factor != 1.0 and present:
            torch._foreach_mul_(present, factor)
    else:
        each = zip(gradients, factors.tolist(), strict=True)
        changed = [(gradient, factor) for gradient, factor in each if gradient is not None and factor != 1.0]
        if changed:
            torch._foreach_mul_([gradient for gradient, _ in changed], [factor for _, factor in changed])


def _rescale_on_device(gradients: Sequence[Tensor | None], factors: Tensor) -> None:
    present = [gradient for gradient in gradients if gradient is not None]
    if factors.numel() == 1 and all(gradient.device == factors.device for gradient in present):
        if present:
            torch._foreach_mul_(present, factors[0])
        return
    for gradient, factor in zip(gradients, factors.expand(len(gradients)).unbind(), strict=True):
        if gradient is not None:
            gradient.mul_(factor.to(gradient.device, non_blocking=True))


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
    factors = factors.to(gradient.device, non_blocking=True)
    if gradient.is_sparse and gradient.ndim > 1:
        # Rows that occur twice share a factor, so an uncoalesced gradient needs no coalescing here.
        values = gradient._values()
        return values, factors[gradient._indices()[0]].view(-1, *[1] * (values.ndim - 1))
    if plan.unit_counts[i] == 1 or gradient.is_sparse:
        return gradient, factors[0]
    view, inside = plan.unit_view(i, gradient)
    return view, factors.view(*view.shape[: view.ndim - len(inside)], *[1] * len(inside))
