"""AdaGC's two phases: a global clip for some steps, then every segment by its own average. Not public."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_count, check_number
from lightning_calib.functional.judge import Observation, Policy
from lightning_calib.policies.ema_relative import Average, EMARelative


class WarmAverage(NamedTuple):
    """``seen`` and ``mean`` (K,) as in EMARelative, and ``steps`` (), int64: steps with any norm observed."""

    seen: Tensor
    mean: Tensor
    steps: Tensor


@dataclass(frozen=True)
class GlobalWarmup(Policy):
    r"""For ``warmup_steps`` steps clip the K segments together, then judge each by ``policy``.

    Warm-up: :math:`h = \min(1, \lambda_{abs} / \lVert g \rVert)` over the 2-norm of all segments,
    :math:`t_k = h \lVert g_k \rVert` where h < 1 (no opinion otherwise),
    :math:`\gamma_k \leftarrow \min(\gamma_k, h \lVert g_k \rVert)` (the first value where there is none).
    """

    policy: EMARelative
    max_norm: float
    warmup_steps: int

    def __post_init__(self) -> None:
        remedy = "Use 1.0, or math.inf for a warm-up that clips nothing."
        check_number("warmup_max_norm", self.max_norm, remedy, 0, inf, ends="(]")
        check_count("warmup_steps", self.warmup_steps, "Use 100, or 0 for no warm-up.")

    def init(self, norms: Tensor) -> WarmAverage:
        """No norm observed, no step taken."""
        steps = torch.zeros((), dtype=torch.int64, device=norms.device)
        return WarmAverage(*self.policy.init(norms), steps)

    def __call__(self, observation: Observation, state: WarmAverage) -> tuple[Tensor, WarmAverage]:
        """One phase or the other, by the number of steps."""
        norms, observed, _ = observation
        shared = self.max_norm / torch.linalg.vector_norm(torch.where(observed, norms, 0))
        reduced = norms * shared.clamp(max=1)
        first_targets = torch.where(shared < 1, reduced, torch.inf)
        least = torch.where(state.seen > 0, torch.minimum(state.mean, reduced), reduced)
        first = Average(state.seen + observed, torch.where(observed, least, state.mean))
        targets, later = self.policy(observation, Average(state.seen, state.mean))
        warm = state.steps < self.warmup_steps
        seen, mean = (torch.where(warm, a, b) for a, b in zip(first, later, strict=True))
        return torch.where(warm, first_targets, targets), WarmAverage(seen, mean, state.steps + observed.any())
