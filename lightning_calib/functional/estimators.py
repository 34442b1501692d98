"""Running statistics of K series at once; every update returns a new value and leaves the old one alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import wide_dtype

_FIRST_CAPACITY = 1024


class Moments(NamedTuple):
    """Mean and population variance of what was pushed; every field has shape (K,), ``seen`` int64."""

    seen: Tensor
    mean: Tensor
    var: Tensor


def no_moments(like: Tensor) -> Moments:
    """Nothing pushed yet, for series like ``like``."""
    return Moments(torch.zeros_like(like, dtype=torch.int64), torch.zeros_like(like), torch.zeros_like(like))


def push_arithmetic(moments: Moments, values: Tensor, where: Tensor) -> Moments:
    """Add one value to each series where ``where``, all values weighing the same.

    References:
        Welford, *Note on a method for calculating corrected sums of squares and products*, Technometrics 4(3), 1962.
    """
    seen = moments.seen + where
    share = 1 / seen.clamp(min=1).to(values.dtype)
    residual = values - moments.mean
    mean = torch.where(where, moments.mean + share * residual, moments.mean)
    var = moments.var + share * (residual * (values - mean) - moments.var)
    return Moments(seen, mean, torch.where(where, _largest(var), moments.var))


def push_exponential(moments: Moments, values: Tensor, where: Tensor, decay: float) -> Moments:
    """Add one value where ``where``; older ones fade by ``decay``, and the spread is taken about the new mean."""
    mean = torch.where(where, decay * moments.mean + (1 - decay) * values, moments.mean)
    var = decay * moments.var + (1 - decay) * (values - mean) ** 2
    return Moments(moments.seen + where, mean, torch.where(where, _largest(var), moments.var))


def _largest(var: Tensor) -> Tensor:
    """A variance that overflows would stay infinite for good: the largest number there is fades."""
    return var.clamp(max=torch.finfo(var.dtype).max)


class Ring(NamedTuple):
    """The last W values of each series: ``values`` (K, W), inf where empty, and how many were pushed, ``seen`` (K,)."""

    seen: Tensor
    values: Tensor


def empty_ring(like: Tensor, window: int) -> Ring:
    """A ring of ``window`` values for each series of ``like``."""
    return Ring(torch.zeros_like(like, dtype=torch.int64), like.new_full((*like.shape, window), torch.inf))


def push_ring(ring: Ring, values: Tensor, where: Tensor) -> Ring:
    """Overwrite each series' oldest value where ``where``."""
    slot = (ring.seen % ring.values.shape[1]).unsqueeze(1)
    kept = ring.values.gather(1, slot)
    new = torch.where(where.unsqueeze(1), values.unsqueeze(1), kept)
    return Ring(ring.seen + where, ring.values.scatter(1, slot, new))


class History(NamedTuple):
    """All values of one series: ``values`` (1, C) ascending, padded with inf, their number ``seen`` (1,).

    ``steps``, an int64 on the host, counts pushes, observed or not: it bounds ``seen`` without asking the device.
    """

    seen: Tensor
    values: Tensor
    steps: Tensor

    @property
    def grows(self) -> tuple[str, ...]:
        """The fields that get longer."""
        return ("values",)

    def flaw(self) -> str:
        """Why saved numbers cannot be a history; empty if they can."""
        capacity, seen = self.values.shape[1], int(self.seen)
        if int(self.steps) > capacity or seen > int(self.steps):
            return f"{seen} values of {int(self.steps)} steps in {capacity} places"
        ascending = bool((self.values[:, 1:] >= self.values[:, :-1]).all())
        return "" if ascending and int(self.values.isfinite().sum()) == seen else "the values are not in order"


def empty_history(like: Tensor) -> History:
    """Nothing seen yet; ``like`` has shape (1,)."""
    steps = torch.zeros((), dtype=torch.int64, device="meta" if like.is_meta else "cpu")
    return History(torch.zeros_like(like, dtype=torch.int64), like.new_full((1, _FIRST_CAPACITY), torch.inf), steps)


def push_history(history: History, values: Tensor, where: Tensor) -> History:
    """Insert the value into its place where ``where``; the capacity doubles when the steps reach it."""
    seen, kept, steps = history
    if int(steps) >= kept.shape[1]:
        kept = torch.cat([kept, torch.full_like(kept, torch.inf)], dim=1)
    new = torch.where(where, values, torch.inf).unsqueeze(1)
    place = torch.searchsorted(kept, new)
    index = torch.arange(kept.shape[1], device=kept.device)
    shifted = torch.cat([kept[:, :1], kept[:, :-1]], dim=1)
    inserted = torch.where(index < place, kept, torch.where(index == place, new, shifted))
    return History(seen + where, inserted, steps + 1)


def quantile(ascending: Tensor, seen: Tensor, fraction: float) -> Tensor:
    """Quantile of the first ``seen`` (K,) values of each ascending row, linear between two of them; shape (K,).

    ``fraction`` lies in [0, 1]; rows without a value give inf. The definition is ``numpy.quantile``'s default.
    """
    last = (seen - 1).clamp(min=0)
    position = fraction * last.to(wide_dtype(ascending.device))
    low = position.floor()
    high = torch.minimum(low.long() + 1, last)
    below, above = (ascending.gather(1, i.unsqueeze(1)).squeeze(1) for i in (low.long(), high))
    return torch.where(seen > 0, torch.lerp(below, above, (position - low).to(below.dtype)), torch.inf)
