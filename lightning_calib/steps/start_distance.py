"""How far each param group's weights have travelled from where they started."""

from typing import Any

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held
from lightning_calib.functional.judge import STATE_LIMIT
from lightning_calib.functional.norms import measure
from lightning_calib.functional.saved_state import check_saved
from lightning_calib.functional.segments import Segments


class StartDistance:
    """A copy of the weights at the first step, and the distance from it.

    Raises:
        ValueError: If the copy, which goes into every checkpoint, would take more than 64 MB.
    """

    start_norms: Tensor

    def __init__(self, segments: Segments, rule: object) -> None:
        self.segments = segments
        plan = segments.plan
        each = zip(plan.tensors, plan.whole_shapes, strict=True)
        size = sum(shape.numel() * tensor.element_size() for tensor, shape in each)
        if size > STATE_LIMIT:
            raise ValueError(
                f"`{rule}` needs a copy of the starting weights, {size / 2**20:.0f} MB of every checkpoint, more than "
                f"{STATE_LIMIT / 2**20:.0f} MB. Use a rule without distances for this model, such as InverseNorm()."
            )
        self.start: list[Tensor] = [held(tensor.detach()).clone() for tensor in plan.tensors]
        # Sharded weights are brought together here, where every process is, and not when a checkpoint asks for them.
        spread = None if plan.shards is None else plan.shards.whole(self.start)
        self.whole = None if spread is None else [one.to("cpu", copy=True) for one in spread]
        self.start_norms = self._norms(self.start)

    def distances(self) -> Tensor:
        """Shape (G,); the differences are taken in the weights' own type."""
        with torch.no_grad():
            now = [held(tensor) for tensor in self.segments.plan.tensors]
            return self._norms(list(torch._foreach_sub(now, self.start)))

    def _norms(self, values: list[Tensor]) -> Tensor:
        return self.segments.fold(measure(self.segments.plan, values))

    def saved(self) -> list[Tensor]:
        """For the checkpoint."""
        return [start.cpu().clone() for start in (self.start if self.whole is None else self.whole)]

    @torch.no_grad()
    def restore(self, saved: Any, key: str = "start") -> None:
        """Take up a saved start.

        Raises:
            DamagedStateError: If it is not of these weights.
        """
        plan = self.segments.plan
        each = zip(plan.tensors, plan.whole_shapes, strict=True)
        check_saved(saved, [torch.empty(shape, dtype=one.dtype, device="meta") for one, shape in each], key)
        for i, (start, old) in enumerate(zip(self.start, saved, strict=True)):
            start.copy_(old if plan.shards is None else plan.shards.cut(i, old))
        self.whole = self.whole and [old.clone() for old in saved]
        self.start_norms = self._norms(self.start)
