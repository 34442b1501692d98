"""Methods that act on elements, not on norms: clamping and centralisation."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_calib.functional.batches import change_together_
from lightning_calib.functional.dtensor import held
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import Plan, moved


@torch.no_grad()
def clamp_(parameters: Iterable[Tensor], max_value: float | Tensor) -> None:
    """Clamp every element of the parameters' gradients to [-max_value, max_value]; NaN stays, inf becomes max_value.

    The bound is a number or a 0-d tensor. A sparse gradient is replaced by its coalesced form first, in which duplicate
    indices are one element.

    Raises:
        TypeError: If a gradient is complex: complex numbers have no order.
    """
    for parameter in parameters:
        gradient = _ordered(parameter)
        if gradient is not None:
            limit = torch.as_tensor(max_value, dtype=gradient.dtype, device=gradient.device)
            if limit.device.type == "cpu":  # between numbers it takes a fraction of the time
                gradient.clamp_(-limit.item(), limit.item())
            else:
                gradient.clamp_(-limit, limit)


@torch.no_grad()
def clamp_all_(plan: Plan, bounds: Tensor) -> None:
    """The same for a plan's gradients, each with its own bound, shape (T,); one of inf keeps the bits.

    Bounds on the CPU are looked at, and only what has a finite one is written; elsewhere everything is.
    """
    chosen = (
        range(len(plan.tensors)) if bounds.device.type != "cpu" else (bounds < torch.inf).nonzero().flatten().tolist()
    )
    gradients: list[Tensor | None] = [None] * len(plan.tensors)
    for i in chosen:
        gradients[i] = plan.tensors[i].grad
    of_units = torch.split(bounds[plan.unit_owner], list(plan.unit_counts))

    def clamp(members: list[int], rows: Tensor) -> None:
        limits = moved(torch.cat([of_units[i] for i in members]), rows.device).to(rows.dtype)
        limits = limits.view(-1, *[1] * (rows.ndim - 1))
        rows.clamp_min_(-limits).clamp_max_(limits)  # several times as fast as `clamp_` with two tensors

    for i in change_together_(plan.by_unit, gradients, clamp):
        clamp_([plan.tensors[i]], bounds[i])


def _ordered(parameter: Tensor) -> Tensor | None:
    """What is to be clamped of the parameter's gradient."""
    gradient = parameter.grad
    if gradient is None:
        return None
    if gradient.is_complex():
        raise TypeError("Complex gradients cannot be clamped by value. Clip their norm: GradientClip(1.0).")
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()
        gradient = gradient._values()
    return held(gradient)


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
    split = [] if shards is None else [i for i in members if len(plan.whole_shapes[i]) > 1 and shards.splits_units(i)]
    chosen = set(members) - set(split)
    gradients = [tensor.grad if i in chosen and tensor.ndim > 1 else None for i, tensor in enumerate(plan.tensors)]
    for i in change_together_(plan.by_unit, gradients, _subtract_means_):
        centralize_(plan, i)
    if split and shards is not None:
        _centralize_split_(plan, shards, set(split))


def _subtract_means_(_: list[int], rows: Tensor) -> None:
    if rows[0].numel() > 1:
        rows.sub_(rows.mean(dim=tuple(range(1, rows.ndim)), keepdim=True))


def _centralize_split_(plan: Plan, shards: Shards, members: set[int]) -> None:
    parts = {i: held(gradient) for i in members if (gradient := plan.tensors[i].grad) is not None}
    sums = [_sums(plan, shards, i, parts.get(i)) for i in range(len(plan.tensors))]
    found = torch.split(shards.total_units(torch.cat([one.to(plan.device) for one in sums])), list(plan.unit_counts))
    for i, part in parts.items():
        fan_in = plan.whole_shapes[i].numel() // plan.unit_counts[i]
        for view, places in shards.by_unit(i, part) if fan_in > 1 else ():
            means = (found[i][places] / fan_in).to(part.device, part.dtype)
            view.sub_(means.view(*places.shape, *[1] * (view.ndim - places.ndim)))


def _sums(plan: Plan, shards: Shards, i: int, part: Tensor | None) -> Tensor:
    """One float64 number for each of the places: the sum of what is held of that unit, flat."""
    places = shards.places[i]
    if part is None or part.numel() == 0:
        return torch.zeros(places.numel(), dtype=torch.float64, device=places.device)
    if plan.unit_counts[i] == 1:
        return part.sum(dtype=torch.float64).reshape(1)
    found = [
        view.sum(dim=tuple(range(places.ndim, view.ndim)), dtype=torch.float64).flatten()
        for view, places in shards.by_unit(i, part)
    ]
    return torch.cat(found)
