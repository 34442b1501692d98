"""The one pass over the gradients: a norm per tensor, or per unit where a scope needs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held
from lightning_calib.functional.piece_norms import piece_norms
from lightning_calib.functional.plan import Plan
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
        if self.plan.device.type == "cpu" and not self.scaled:
            return self._from_powers()
        each = torch.split(self.pieces, list(self.plan.unit_counts))
        if self.scaled:
            return torch.stack([self.fold(one, 0) for one in each])
        folded = torch._foreach_norm(each, self.norm_type, dtype=self.plan.wide)
        return torch.stack(folded).to(self.plan.dtype)

    def _from_powers(self) -> Tensor:
        """The tensors' norms from sums of powers; on a GPU the order of such sums would change from run to run."""
        wide = self.pieces.to(self.plan.wide)
        sums = wide.new_zeros(len(self.plan.tensors))
        if self.norm_type == inf:
            norms = sums.scatter_reduce_(0, self.plan.unit_owner, wide, "amax")
        elif self.norm_type == 2.0:
            norms = sums.index_add_(0, self.plan.unit_owner, wide * wide).sqrt()
        else:
            norms = sums.index_add_(0, self.plan.unit_owner, wide**self.norm_type) ** (1 / self.norm_type)
        return norms.to(self.plan.dtype)

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

    To be called under `torch.no_grad`.
    """
    reading = Reading(plan, norm_type, piece_norms(plan, values, norm_type, units), units)
    if norm_type != inf and (scaled or (plan.device.type == "cpu" and not _fits(reading))):
        return _read_scaled(reading, values)
    return reading


def _fits(reading: Reading) -> bool:
    """Whether all norms are finite, and so are the sums of their powers that `fold` makes."""
    total: float = reading.pieces.sum().item()
    limit: float = torch.finfo(reading.plan.wide).max ** min(1.0, 1 / reading.norm_type)
    return total <= limit


def _read_scaled(reading: Reading, values: Sequence[Tensor | None]) -> Reading:
    """Read again what is not finite though its elements are: times a power of two that brings the largest below 4."""
    plan, norm_type, pieces = reading.plan, reading.norm_type, reading.pieces
    beyond = ~pieces.isfinite()
    if beyond.any():
        tops = piece_norms(plan, values, inf, reading.by_unit)
        beyond &= tops.isfinite()
    if beyond.any():
        factors = torch.where(beyond, 4 * torch.frexp(tops).mantissa / tops, 1.0)
        owners = plan.unit_owner[beyond] if reading.by_unit else beyond.nonzero().flatten()
        chosen = set(owners.tolist())
        copies = [held(one).clone() if one is not None and i in chosen else None for i, one in enumerate(values)]
        rescale_(plan, copies, factors)
        pieces = torch.where(beyond, piece_norms(plan, copies, norm_type, reading.by_unit) / factors, pieces)
    return Reading(plan, norm_type, pieces, reading.by_unit, scaled=True)
