"""Running statistics of K series at once; every update returns a new value and leaves the old one alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import wide_dtype

_FIRST_CAPACITY, _TAIL = 1024, 256


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
    """All values of one series, in two parts, each ascending and padded with inf, so that a step copies the short one.

    ``values`` (1, C) has most of them, ``tail`` (1, 256) those of the last ``steps`` % 256 pushes (none in the first
    1,024 steps), and ``seen`` (1,) is their number. ``steps``, an int64 on the host, counts pushes, observed or not: it
    bounds ``seen`` without asking the device. A history that was saved when there was no tail has all in ``values``.
    """

    seen: Tensor
    values: Tensor
    steps: Tensor
    tail: Tensor

    @property
    def grows(self) -> tuple[str, ...]:
        """The fields that get longer."""
        return ("values",)

    @property
    def later(self) -> dict[str, Tensor]:
        """What stands for the fields that earlier versions did not save."""
        return {"tail": torch.full_like(self.tail, torch.inf)}

    def flaw(self) -> str:
        """Why saved numbers cannot be a history; empty if they can."""
        capacity, seen, steps = self.values.shape[1], int(self.seen), int(self.steps)
        rest = steps % _TAIL if steps > _FIRST_CAPACITY else 0
        if steps - rest > capacity or seen > steps or int(self.tail.isfinite().sum()) > rest:
            return f"{seen} values of {steps} steps in {capacity} places"
        ascending = all(bool((part[:, 1:] >= part[:, :-1]).all()) for part in (self.values, self.tail))
        found = int(self.values.isfinite().sum() + self.tail.isfinite().sum())
        return "" if ascending and found == seen else "the values are not in order"


def empty_history(like: Tensor) -> History:
    """Nothing seen yet; ``like`` has shape (1,)."""
    steps = torch.zeros((), dtype=torch.int64, device="meta" if like.is_meta else "cpu")
    values, tail = (like.new_full((1, size), torch.inf) for size in (_FIRST_CAPACITY, _TAIL))
    return History(torch.zeros_like(like, dtype=torch.int64), values, steps, tail)


def push_history(history: History, values: Tensor, where: Tensor) -> History:
    """Insert the value into its place where ``where``; the capacity doubles when the steps reach it."""
    seen, kept, steps, tail = history
    new = torch.where(where, values, torch.inf).unsqueeze(1)
    if int(steps) < _FIRST_CAPACITY:
        return History(seen + where, _inserted(kept, new), steps + 1, tail)
    tail, steps = _inserted(tail, new), steps + 1
    if int(steps) % _TAIL == 0:
        kept, tail = _merged(kept, tail, int(steps)), torch.full_like(tail, torch.inf)
    return History(seen + where, kept, steps, tail)


def _inserted(kept: Tensor, new: Tensor) -> Tensor:
    place = torch.searchsorted(kept, new)
    index = torch.arange(kept.shape[1], device=kept.device)
    shifted = torch.cat([kept[:, :1], kept[:, :-1]], dim=1)
    return torch.where(index < place, kept, torch.where(index == place, new, shifted))


def _merged(values: Tensor, tail: Tensor, steps: int) -> Tensor:
    capacity = values.shape[1]
    while capacity < steps:
        capacity *= 2
    together = values.new_full((1, max(capacity, values.shape[1] + _TAIL)), torch.inf)
    from_values = torch.ones_like(together, dtype=torch.bool)
    from_values[:, values.shape[1] + _TAIL :] = False
    places = _places(values, tail)
    together.scatter_(1, places, tail).masked_scatter_(from_values.scatter_(1, places, False), values)
    return together[:, :capacity].contiguous()


def _places(values: Tensor, tail: Tensor) -> Tensor:
    """Where each value of the tail lies among all, ascending."""
    return torch.searchsorted(values, tail, right=True) + torch.arange(_TAIL, device=tail.device)


def quantile(ascending: Tensor, seen: Tensor, fraction: float) -> Tensor:
    """Quantile of the first ``seen`` (K,) values of each ascending row, linear between two of them; shape (K,).

    ``fraction`` lies in [0, 1]; rows without a value give inf. The definition is ``numpy.quantile``'s default.
    """
    ranks, share = _ranks(seen, fraction)
    return _between(ascending.gather(1, ranks), seen, share)


def quantile_of_ring(ring: Ring, fraction: float) -> Tensor:
    """The same of what a ring holds; only the values beyond the quantile, on its shorter side, are sorted."""
    window = ring.values.shape[1]
    if ring.seen.numel() == 1 and ring.seen.device.type == "cpu":
        return _quantile_of_one(ring.values[:, : int(ring.seen)], fraction)
    seen = ring.seen.clamp(max=window)
    beyond = int(min(fraction, 1 - fraction) * (window - 1)) + 3  # one more than needed, for the rounding
    if 4 * beyond > window:
        return quantile(ring.values.sort(dim=1).values, seen, fraction)
    ranks, share = _ranks(seen, fraction)
    if fraction < 0.5:
        least = ring.values.topk(beyond, dim=1, largest=False).values
        return _between(least.gather(1, ranks.clamp(max=beyond - 1)), seen, share)
    largest = ring.values.nan_to_num(posinf=-1.0).topk(beyond, dim=1).values  # norms are not below zero
    from_above = (seen - 1).clamp(min=0).unsqueeze(1) - ranks
    return _between(largest.gather(1, from_above.clamp(max=beyond - 1)), seen, share)


def _quantile_of_one(values: Tensor, fraction: float) -> Tensor:
    """The same of one series on the host, all of whose (1, n) values are there: its ranks are numbers, not tensors."""
    last = values.shape[1] - 1
    if last < 0:
        return values.new_full((1,), torch.inf)
    position = fraction * last
    low = int(position)
    high = min(low + 1, last)
    if fraction < 0.5:
        side = values.topk(high + 1, dim=1, largest=False).values
    else:
        side, low, high = values.topk(last - low + 1, dim=1).values, last - low, last - high
    return torch.lerp(side[:, low], side[:, high], position - int(position))


def quantile_of_history(history: History, fraction: float) -> Tensor:
    """The same of a history, shape (1,)."""
    seen, values, steps, tail = history
    if int(steps) <= _FIRST_CAPACITY:
        return quantile(values, seen, fraction)
    ranks, share = _ranks(seen, fraction)
    places = _places(values, tail)
    before = torch.searchsorted(places, ranks)  # how many values of the tail come before the rank
    at = before.clamp(max=_TAIL - 1)
    in_values = values.gather(1, (ranks - before).clamp(min=0, max=values.shape[1] - 1))
    return _between(torch.where(places.gather(1, at) == ranks, tail.gather(1, at), in_values), seen, share)


def _ranks(seen: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Between which two values the quantile lies, (K, 2), and how far it is from the first to the second, (K,)."""
    last = (seen - 1).clamp(min=0)
    position = fraction * last.to(wide_dtype(seen.device))
    low = position.floor()
    return torch.stack([low.long(), torch.minimum(low.long() + 1, last)], dim=1), position - low


def _between(pair: Tensor, seen: Tensor, share: Tensor) -> Tensor:
    below, above = pair.unbind(1)
    return torch.where(seen > 0, torch.lerp(below, above, share.to(pair.dtype)), torch.inf)
