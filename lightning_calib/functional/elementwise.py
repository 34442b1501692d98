"""Methods that act on elements, not on norms: clamping and centralisation."""

from collections.abc import Iterable

import torch
from torch import Tensor

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
    view, inside = plan.unit_view(i, gradient)
    if all(view.shape[dim] == 1 for dim in inside):
        return
    view.sub_(view.mean(dim=inside, keepdim=True))
