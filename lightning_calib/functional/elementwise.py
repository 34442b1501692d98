"""Methods that act on elements, not on norms: clamping and centralisation."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import Plan


@torch.no_grad()
def clamp_(parameters: Iterable[Tensor], max_value: float | Tensor) -> None:
    """Clamp every element of the parameters' gradients to [-max_value, max_value]; NaN stays, inf becomes max_value.

    The bound is a number or a 0-d tensor. A sparse gradient is replaced by its coalesced form first, in which duplicate
    indices are one element.

    Raises:
        TypeError: If a gradient is complex: complex numbers have no order.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_complex():
            raise TypeError("Complex gradients cannot be clamped by value. Clip their norm: GradientClip(1.0).")
        if gradient.is_sparse:
            parameter.grad = gradient = gradient.coalesce()
            gradient = gradient._values()
        gradient = held(gradient)
        limit = torch.as_tensor(max_value, dtype=gradient.dtype, device=gradient.device)
        gradient.clamp_(-limit, limit)


@torch.no_grad()
def centralize_(plan: Plan, i: int) -> None:
    r"""Subtract from the gradient of each output unit of tensor ``i`` its mean over the fan-in, in place.

    :math:`\Phi(\nabla_{w_i}) = \nabla_{w_i} - \mu_{\nabla_{w_i}}`. Tensors with fewer than two dimensions and
    sparse gradients (embedding tables, which have no fan-in) are left alone, and so are units of one element, of which
    nothing would remain.

    References:
        Yong et al., *Gradient Centralization*, ECCV 2020, Equation 1.
    """
    gradient = plan.tensors[i].grad
    if gradient is None or gradient.is_sparse or gradient.ndim < 2 or gradient.numel() == 0:
        return
    view, inside = plan.unit_view(i, held(gradient))
    if all(view.shape[dim] == 1 for dim in inside):
        return
    view.sub_(view.mean(dim=inside, keepdim=True))


@torch.no_grad()
def centralize_all_(plan: Plan, members: Sequence[int]) -> None:
    """The same for several tensors; where processes share the fan-in among them, one collective per mesh for all."""
    shards = plan.shards
    split = [] if shards is None else [i for i in members if plan.tensors[i].ndim > 1 and shards.splits_units(i)]
    for i in members:
        if i not in split:
            centralize_(plan, i)
    if split and shards is not None:
        _centralize_split_(plan, shards, set(split))


def _centralize_split_(plan: Plan, shards: Shards, members: set[int]) -> None:
    parts = {i: held(gradient) for i in members if (gradient := plan.tensors[i].grad) is not None}
    sums = [_sums(plan, places, i, parts.get(i)) for i, places in enumerate(shards.places)]
    found = torch.split(shards.total_units(torch.cat([one.to(plan.device) for one in sums])), list(plan.unit_counts))
    for i, part in parts.items():
        fan_in, places = plan.tensors[i].numel() // plan.unit_counts[i], shards.places[i]
        if fan_in > 1:
            means = (found[i][places] / fan_in).to(part.device, part.dtype)
            part.sub_(means.view(*places.shape, *[1] * (part.ndim - places.ndim)))


def _sums(plan: Plan, places: Tensor, i: int, part: Tensor | None) -> Tensor:
    """One float64 number for each of the places: the sum of what is held of that unit, flat."""
    if part is None or part.numel() == 0:
        return torch.zeros(places.numel(), dtype=torch.float64, device=places.device)
    if plan.unit_counts[i] == 1:
        return part.sum(dtype=torch.float64).reshape(1)
    return part.sum(dim=tuple(range(places.ndim, part.ndim)), dtype=torch.float64).flatten()
