"""A threshold at so many standard deviations above the running mean."""

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_flag, check_number
from lightning_calib.functional.estimators import Moments, no_moments, push_arithmetic, push_exponential
from lightning_calib.functional.judge import Observation
from lightning_calib.policies.warmup import Warmup

_PAPER_EPS = 1e-6  # the reference implementation's guard against a zero deviation
_WINSOR = 3.0  # residuals enter the robust statistics at most this many deviations from the mean
_FLOOR = 0.01  # the least deviation of log-norms: a rise of 2.5 % alone is never a spike at z_max=2.5


class LogMoments(NamedTuple):
    """As ``Moments``, of the norms' logarithms."""

    seen: Tensor
    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class ZScore(Warmup):
    r"""Clip a norm whose z-score exceeds ``z_max``, the more the further out it is.

    With running mean :math:`\mu` and deviation :math:`\sigma` of x, and :math:`z = (x - \mu) / \sigma`:
    :math:`z > z_{max}` gives the target :math:`\mu + z_{max}^2 \sigma / z`; else the target is the trigger,
    :math:`\mu + z_{max} \sigma`, which the norm does not reach. The first ``warmup_steps`` observed norms give the
    first moments, and are clipped to ``warmup_max_norm`` or not at all; later moments are exponential averages.

    ``robust=False`` is the paper: x is the norm, and what enters the moments is the *clipped* norm. After a rise of
    more than :math:`z_{max}^2 \sigma` the deviation then shrinks faster than the mean rises, and every later step is
    clipped to the old level. ``robust=True``: x is the logarithm of the norm, residuals enter the moments cut at three
    deviations, and the deviation keeps a floor of 0.01, so that a new level is learnt within some tens of steps.

    Args:
        z_max: The largest z-score that is left alone, above 0; 2.5 in the paper.
        decay: What the moments keep per step, in [0, 1); 0.97 in the paper.
        warmup_steps: The number of observed norms before a segment is judged, at least 2; 25 in the paper.
        robust: Whether to re-adapt (True) or to follow the paper (False).
        warmup_max_norm: The largest norm of a segment during its warm-up, in (0, inf]; None clips nothing in it. What
            enters the moments is the whole norm, with or without it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.

    Example:
        >>> import torch
        >>> from lightning_calib import ZScore
        >>> from lightning_calib.functional import clip_grad_
        >>> weight, state = torch.nn.Parameter(torch.zeros(1)), None
        >>> for step in range(30):
        ...     weight.grad = torch.tensor([1.0 + 0.1 * (step % 3) if step < 29 else 100.0])
        ...     report, state = clip_grad_([weight], ZScore(), state)
        >>> bool(weight.grad < 1.3), bool(report.clipped)
        (True, True)

    Note:
        Differs from the paper: the reference implementation's silent ``max_grad_norm=1.0`` is left out (for the warm-up
        ``warmup_max_norm`` is the same), and steps whose norm is zero or not finite never enter the moments.

    References:
        Kumar et al., *ZClip: Adaptive Spike Mitigation for LLM Pre-Training*, 2025, arXiv 2504.02507:
        z-score clipping with reciprocal scaling.
    """

    z_max: float = 2.5
    decay: float = 0.97
    warmup_steps: int = 25
    robust: bool = True
    warmup_max_norm: float | None = None

    def __post_init__(self) -> None:
        check_number("z_max", self.z_max, "Use 2.5; larger values clip less.", 0, inf, ends="()")
        check_number("decay", self.decay, "Use values near 0.97 to remember about 33 steps.", 0, 1, ends="[)")
        self._check_warmup("Use 25: a deviation needs some values.", 2)
        check_flag("robust", self.robust, "Use True to follow changes of level, False for the paper's rule.")

    @property
    def kind(self) -> str:
        """Moments of logarithms are not moments of norms."""
        return f"ZScore(robust={self.robust})"

    def init(self, norms: Tensor) -> Moments | LogMoments:
        """No norm observed yet."""
        return LogMoments(*no_moments(norms)) if self.robust else no_moments(norms)

    def __call__(self, observation: Observation, state: Any) -> tuple[Tensor, Moments | LogMoments]:
        """Judge by the moments so far, then let the norm enter them."""
        norms, observed, _ = observation
        x = torch.where(observed, norms.log() if self.robust else norms, state.mean)
        judged, kind = state.seen >= self.warmup_steps, type(state)
        # On the host a look is cheap, and then one of the two is enough; elsewhere nothing waits for the device.
        done = int(judged.sum()) if judged.device.type == "cpu" else None
        early = push_arithmetic(state, x, observed) if done != len(norms) else None
        if early is not None and done == 0:
            return self._once(judged, norms), kind(*early)
        targets, late = self._judge(norms, observed, x, state)
        if early is None:
            return targets, kind(*late)
        new = kind(*(torch.where(judged, b, a) for a, b in zip(early, late, strict=True)))
        return self._once(judged, targets), new

    def _judge(self, norms: Tensor, observed: Tensor, x: Tensor, state: Any) -> tuple[Tensor, Moments]:
        """As after the warm-up."""
        residual, deviation = x - state.mean, state.var.sqrt().clamp(min=_FLOOR if self.robust else 0)
        z = residual / (deviation if self.robust else deviation + _PAPER_EPS)
        spike = z > self.z_max
        spiked = spike.device.type != "cpu" or bool(spike.any())  # most steps have no spike, which the host may see
        above = self.z_max * deviation
        if spiked:
            above = torch.where(spike, float(self.z_max) ** 2 * deviation / z, above)
        limit = _WINSOR * deviation if self.robust else torch.where(spike, above, torch.inf)
        pushed = state.mean + residual.clamp(-limit, limit)
        targets = state.mean + above
        targets = targets.exp() if self.robust else targets
        calm = torch.maximum(targets, torch.where(observed, norms, 0))
        targets = torch.where(spike, targets, calm) if spiked else calm
        return targets, push_exponential(state, pushed, observed, self.decay)
