"""A warm-up: the steps in which a policy has not yet seen enough of a segment to judge it. Not public."""

from math import inf

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_count, check_number
from lightning_calib.functional.judge import Policy


class Warmup(Policy):
    """A policy with no judgement of its own until a segment has been observed in ``warmup_steps`` steps.

    Until then ``warmup_max_norm`` is the target, or there is none. Either way the whole norm enters the state: a bound
    on what the optimizer gets tells nothing about what is usual.
    """

    warmup_steps: int
    warmup_max_norm: float | None

    @property
    def unbounded_steps(self) -> int:
        """In how many of a segment's first steps it may have any norm."""
        return self.warmup_steps if self.warmup_max_norm is None else 0

    def _check_warmup(self, remedy: str, low: int) -> None:
        check_count("warmup_steps", self.warmup_steps, remedy, low)
        if self.warmup_max_norm is not None:
            remedy = "Use for instance 1.0, or None for a warm-up that clips nothing."
            check_number("warmup_max_norm", self.warmup_max_norm, remedy, 0, inf, ends="(]")

    def _once(self, judged: Tensor, targets: Tensor) -> Tensor:
        """The targets where the warm-up is over, and its own elsewhere."""
        return torch.where(judged, targets, inf if self.warmup_max_norm is None else self.warmup_max_norm)
