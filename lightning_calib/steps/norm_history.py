"""The norms of a whole run in bounded memory: all of them at first, then every second, fourth, ... one."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.estimators import quantile
from lightning_calib.functional.plan import Plan

_CAPACITY = 4096


class NormHistory(NamedTuple):
    """``values`` (4096,): every ``stride``-th of the ``seen`` norms; ``low`` and ``high``, 0-d: the extremes of all.

    The numbers are the host's, so that nothing waits for the device. Norms that are not finite, or zero, are nan here.
    """

    seen: int
    stride: int
    values: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def empty(plan: Plan) -> "NormHistory":
        """Nothing seen."""
        values = torch.full((_CAPACITY,), torch.nan, dtype=plan.dtype, device=plan.device)
        return NormHistory(0, 1, values, values.new_tensor(torch.inf), values.new_tensor(0.0))

    def add(self, norms: Tensor) -> "NormHistory":
        """Take in one norm, 0-d, or several, one after the other; at the capacity, drop every second one."""
        norms = norms.reshape(-1)
        valid = norms.isfinite() & (norms > 0)
        low = torch.minimum(self.low, torch.where(valid, norms, torch.inf).min())
        high = torch.maximum(self.high, torch.where(valid, norms, 0).max())
        kept, stride, values = torch.where(valid, norms, torch.nan), self.stride, self.values.clone()
        seen, end = self.seen, self.seen + len(norms)
        while seen < end:
            if seen == stride * _CAPACITY:
                values, stride = torch.cat([values[::2], torch.full_like(values[::2], torch.nan)]), 2 * stride
            until = min(end, stride * _CAPACITY)
            found = kept[-seen % stride : until - seen : stride]
            first = -(-seen // stride)
            values[first : first + len(found)] = found
            seen, kept = until, kept[until - seen :]
        return NormHistory(end, stride, values, low, high)

    @property
    def unusable(self) -> int:
        """How many of the norms were zero or not finite; once some were dropped, an estimate."""
        return max(0, self.seen - self.stride * int((~self.values.isnan()).sum()))

    def flaw(self) -> str:
        """Why a saved history cannot be one; empty if it can."""
        full, doubled = self.stride * _CAPACITY, self.stride & (self.stride - 1) == 0
        if not (doubled and self.stride > 0 and (full // 2 < self.seen or self.stride == 1) and self.seen <= full):
            return f"{self.seen} norms of which every {self.stride}th is kept, in {_CAPACITY} places"
        return "a kept norm is infinite" if bool(self.values.isinf().any()) else ""

    def quantiles(self, *fractions: float) -> list[float]:
        """Quantiles of what was kept; nan where nothing was."""
        kept = self.values[~self.values.isnan()]
        return kept.quantile(kept.new_tensor(fractions)).tolist() if kept.numel() else [float("nan")] * len(fractions)

    def quantiles_of(self, *fractions: float) -> Tensor:
        """The same on the device, so that nothing waits for it; inf where nothing was kept."""
        ascending = self.values[: max(1, -(-self.seen // self.stride))].sort().values.unsqueeze(0)  # nan comes last
        count = (~ascending.isnan()).sum(1)
        return torch.cat([quantile(ascending, count, fraction) for fraction in fractions])
