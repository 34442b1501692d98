"""BatchNorm's running statistics: kept before a window of micro-batches, put back where it has ruined them."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_calib.functional.finiteness import look_closer, not_finite
from lightning_calib.functional.fsdp1 import plain_path
from lightning_calib.functional.plan import Plan


class BatchNormBackup:
    """A copy of every BatchNorm's float statistics, refreshed with one call."""

    def __init__(self, module: nn.Module) -> None:
        self._owners = [
            (plain_path(f"{path}.{key}"), one, key)
            for path, one in module.named_modules()
            if isinstance(one, _BatchNorm)
            for key in ("running_mean", "running_var")
            if getattr(one, key) is not None
        ]
        self._kept = {name: value.clone() for name, value in self.live.items()}

    @property
    def live(self) -> dict[str, Tensor]:
        """What the modules have now; looked up each time, because a buffer may be replaced."""
        return {name: getattr(one, key) for name, one, key in self._owners}

    def keep(self) -> None:
        """Copy what is there now."""
        if self._owners:
            torch._foreach_copy_(list(self._kept.values()), list(self.live.values()))

    @torch.no_grad()
    def put_back(self) -> list[str]:
        """Restore those that are not finite; returns their names."""
        live = self.live
        bad = not_finite(live.items())
        for name in bad:
            live[name].copy_(self._kept[name])
        return bad


def broken(module: nn.Module, statistics: BatchNormBackup, *, put_back: bool) -> tuple[str, bool]:
    """What is not finite besides the gradient, as part of a sentence; BatchNorm's statistics are mended if asked.

    Returns:
        The text, and whether weights are not finite.
    """
    mended = statistics.put_back() if put_back else []
    plan = Plan.of(module)
    weights = [one.name for one in look_closer(plan, [weight.detach() for weight in plan.tensors])]
    bad = not_finite(statistics.live.items())
    mended = [name for name in mended if name not in bad]
    buffers = ((plain_path(path), buffer) for path, buffer in module.named_buffers())
    others = [name for name in not_finite(buffers) if name not in statistics.live]
    parts = [
        ("weights are not finite either (%s), which no skipped step can mend", weights),
        ("BatchNorm statistics were not finite and are put back (%s)", mended),
        ("BatchNorm statistics are not finite (%s)" + " and were not before the window" * put_back, bad),
        ("other buffers are not finite and stay so (%s)", others),
    ]
    return "; ".join(text % _some(names) for text, names in parts if names), bool(weights)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
