"""How far each param group's weights have travelled from where they started."""

from typing import Any

import torch
from torch import Tensor

from lightning_calib.functional.judge import STATE_LIMIT
from lightning_calib.functional.norms import measure
from lightning_calib.functional.segments import Segments


class Travel:
    """A copy of the weights at the first step, and the distance from it.

    Raises:
        ValueError: If the copy, which goes into every checkpoint, would take more than 64 MB.
    """

    def __init__(self, segments: Segments, rule: object) -> None:
        self.segments = segments
        size = sum(tensor.numel() * tensor.element_size() for tensor in segments.plan.tensors)
        if size > STATE_LIMIT:
            raise ValueError(
                f"`{rule}` needs a copy of the starting weights, {size / 2**20:.0f} MB of every checkpoint, more than "
                f"{STATE_LIMIT / 2**20:.0f} MB. Use a rule without distances for this model, such as InverseNorm()."
            )
        self.start = [tensor.detach().clone() for tensor in segments.plan.tensors]
        self.start_norms = self._norms(self.start)

    def distances(self) -> Tensor:
        """Shape (G,); the differences are taken in the weights' own type."""
        tensors = self.segments.plan.tensors
        return self._norms([tensor.detach() - start for tensor, start in zip(tensors, self.start, strict=True)])

    def _norms(self, values: list[Tensor]) -> Tensor:
        return self.segments.fold(measure(self.segments.plan, values))

    def saved(self) -> list[Tensor]:
        """For the checkpoint."""
        return [start.cpu().clone() for start in self.start]

    @torch.no_grad()
    def restore(self, saved: Any) -> None:
        """Take up a saved start."""
        for start, old in zip(self.start, saved, strict=True):
            start.copy_(old)
        self.start_norms = self._norms(self.start)
