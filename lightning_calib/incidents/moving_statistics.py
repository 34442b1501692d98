"""BatchNorm's running statistics: a step that is dropped must not move them either."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class MovingStatistics:
    """A copy of what every BatchNorm and InstanceNorm has learnt of its inputs, refreshed before each step."""

    def __init__(self, module: nn.Module) -> None:
        self._owners = [
            (one, key)
            for one in module.modules()
            if isinstance(one, _NormBase)
            for key in _BUFFERS
            if getattr(one, key) is not None
        ]
        self._kept = [value.clone() for value in self._live()]

    def _live(self) -> list[Tensor]:
        """Looked up each time, because a buffer may be replaced."""
        return [getattr(one, key) for one, key in self._owners]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy what is there now."""
        if self._owners:
            torch._foreach_copy_(self._kept, self._live())

    @torch.no_grad()
    def put_back(self) -> None:
        """Write the copy over what is there now."""
        if self._owners:
            torch._foreach_copy_(self._live(), self._kept)
