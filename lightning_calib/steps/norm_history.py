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

    def add(self, norm: Tensor) -> "NormHistory":
        """Take one norm in; at the capacity, drop every second one."""
        valid = norm.isfinite() & (norm > 0)
        low = torch.where(valid, torch.minimum(self.low, norm), self.low)
        high = torch.where(valid, torch.maximum(self.high, norm), self.high)
        stride, values = self.stride, self.values
        if self.seen == stride * _CAPACITY:
            values, stride = torch.cat([values[::2], torch.full_like(values[::2], torch.nan)]), 2 * stride
        if self.seen % stride == 0:
            values = values.clone()
            values[self.seen // stride] = torch.where(valid, norm, torch.nan)
        return NormHistory(self.seen + 1, stride, values, low, high)

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
