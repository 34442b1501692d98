"""BatchNorm's running statistics: kept before a window of micro-batches, put back where it has ruined them."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_calib.functional.finiteness import not_finite


class Statistics:
    """A copy of every BatchNorm's float statistics, refreshed with one call."""

    def __init__(self, module: nn.Module) -> None:
        self.live = dict(_statistics(module))
        self.kept = {name: value.clone() for name, value in self.live.items()}

    def keep(self) -> None:
        """Copy what is there now."""
        if self.live:
            torch._foreach_copy_(list(self.kept.values()), list(self.live.values()))

    def put_back(self, names: list[str]) -> None:
        """Restore some of them."""
        for name in names:
            self.live[name].copy_(self.kept[name])


def _statistics(module: nn.Module) -> list[tuple[str, Tensor]]:
    found = []
    for path, one in module.named_modules():
        if isinstance(one, _BatchNorm):
            for key in ("running_mean", "running_var"):
                value = getattr(one, key)
                if value is not None:
                    found.append((f"{path}.{key}", value))
    return found


def broken(module: nn.Module, statistics: Statistics, *, put_back: bool) -> str:
    """What is not finite besides the gradient, as part of a sentence; BatchNorm's statistics are mended if asked."""
    weights = not_finite((name, weight.detach()) for name, weight in module.named_parameters())
    bad = not_finite(statistics.live.items())
    others = [name for name in not_finite(module.named_buffers()) if name not in statistics.live]
    if put_back:
        statistics.put_back(bad)
    parts = []
    if weights:
        parts.append(f"weights are not finite either ({_some(weights)}), which no skipped step can mend")
    if bad:
        done = "were not finite and are put back" if put_back else "are not finite"
        parts.append(f"BatchNorm statistics {done} ({_some(bad)})")
    if others:
        parts.append(f"other buffers are not finite and stay so ({_some(others)})")
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
