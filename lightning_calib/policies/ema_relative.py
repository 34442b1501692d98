"""A threshold relative to the segment's own average norm."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_number
from lightning_calib.functional.judge import Observation
from lightning_calib.policies.warmup import Warmup


class Average(NamedTuple):
    """How many norms were observed, ``seen`` (K,) int64, and their average, ``mean`` (K,)."""

    seen: Tensor
    mean: Tensor


@dataclass(frozen=True)
class EMARelative(Warmup):
    r"""A multiple of the segment's own running norm: :math:`t_k = \lambda_{rel} \gamma_k`.

    During the warm-up :math:`\gamma` is the arithmetic mean, and norms are clipped to ``warmup_max_norm`` or not at
    all; afterwards :math:`\gamma_k \leftarrow \beta \gamma_k + (1 - \beta) \min(\lVert g_k \rVert, t_k)`.

    Args:
        factor: :math:`\lambda_{rel}`, how far above its average a norm may be, at least 1: below that the average
            could only fall.
        decay: :math:`\beta`, in [0, 1); 0.98 remembers about 50 steps.
        warmup_steps: The number of observed norms before a segment is judged, at least 1.
        warmup_max_norm: The largest norm of a segment during its warm-up, in (0, inf]; None clips nothing in it. What
            enters the average is the whole norm, with or without it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.

    Example:
        >>> import torch
        >>> from lightning_calib import EMARelative
        >>> from lightning_calib.functional import clip_grad_
        >>> weight, state = torch.nn.Parameter(torch.zeros(1)), None
        >>> for norm in (2.0, 2.0, 9.0):
        ...     weight.grad = torch.tensor([norm])
        ...     report, state = clip_grad_([weight], EMARelative(factor=1.5, warmup_steps=2), state)
        >>> weight.grad
        tensor([3.])

    Note:
        After the warm-up the clipped norm enters the average, so it grows by at most
        (1 - decay)(factor - 1) per step, 0.1 % with the defaults: a doubling takes about 700 steps.

    References:
        Wang et al., *AdaGC: Improving Training Stability for Large Language Model Pretraining*, 2025,
        arXiv 2502.11034, the local phase.
    """

    factor: float = 1.05
    decay: float = 0.98
    warmup_steps: int = 100
    warmup_max_norm: float | None = None

    def __post_init__(self) -> None:
        check_number("factor", self.factor, "Use values near 1.05.", 1, inf, ends="[)")
        check_number("decay", self.decay, "Use values near 0.98 to remember about 50 steps.", 0, 1, ends="[)")
        self._check_warmup("Use 100: the average needs a first value.", 1)

    def init(self, norms: Tensor) -> Average:
        """No norm observed yet."""
        return Average(torch.zeros_like(norms, dtype=torch.int64), torch.zeros_like(norms))

    def __call__(self, observation: Observation, state: Average) -> tuple[Tensor, Average]:
        """Judge by the average so far, then let the clipped norm enter it."""
        norms, observed, _ = observation
        judged = state.seen >= self.warmup_steps
        targets = torch.where(judged, self.factor * state.mean, torch.inf)
        seen = state.seen + observed
        share = torch.where(judged, 1 - self.decay, 1 / seen.clamp(min=1).to(norms.dtype))
        mean = torch.where(observed, state.mean + share * (torch.minimum(norms, targets) - state.mean), state.mean)
        return self._once(judged, targets), Average(seen, mean)
