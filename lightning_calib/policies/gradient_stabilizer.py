"""A norm near one: a short average of the segment's norms over a long one."""

from dataclasses import dataclass
from math import inf, log
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_number
from lightning_calib.functional.judge import Observation, Policy


class NormAverages(NamedTuple):
    """What is known of K segments, every field of shape (K,).

    ``seen``, int64, counts the norms that were observed; ``mean`` is their average over ``decay_short``, ``rms`` the
    root of the average of their squares over ``decay_long``, both without the bias of a start at zero.
    """

    seen: Tensor
    mean: Tensor
    rms: Tensor


@dataclass(frozen=True)
class GradientStabilizer(Policy):
    r"""For ``GradientNormalize``: a norm near 1, the short average of the norm over the long one.

    With :math:`n_t = \lVert g_t \rVert`, :math:`m_t = \gamma_1 m_{t-1} + (1 - \gamma_1) n_t` and
    :math:`v_t = \gamma_2 v_{t-1} + (1 - \gamma_2) n_t^2`, both from 0, the target is

    .. math:: \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \quad
        \hat m_t = \frac{m_t}{1 - \gamma_1^t}, \quad \hat v_t = \frac{v_t}{1 - \gamma_2^t}.

    It is a pure number, not in the unit of the gradient: 1 on the first step and while norms are constant, less
    where they vary or fall, more where they rise. With the defaults it is at most 1.41, and 0.95 on a step whose norm
    is far above all before it. The spike stays in the squares: after one norm 10 (100, 1000) times the others the
    target falls to 0.5 (0.08, 0.01) within 9 (15, 22) steps and is below 0.9 for 34 (79, 123). The norm of the
    gradient itself is lost: SGD needs another learning rate, while Adam and its relatives hardly depend on it.

    Args:
        decay_short: :math:`\gamma_1`, what the average of the norms keeps per step, in [0, 1); 0.7, the authors',
            remembers about 3 steps.
        decay_long: :math:`\gamma_2`, the same for the squares, in [``decay_short``, 1): a much shorter one would let
            the target grow without bound after norms have fallen. 0.9, the authors', remembers about 10 steps.
        eps: :math:`\epsilon`, in the unit of the gradient norm, above 0: norms far below it are hardly enlarged. 1e-8,
            Adam's, in the authors' code.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is out of range.

    Example:
        >>> import torch
        >>> from lightning_calib import GradientStabilizer
        >>> from lightning_calib.functional import clip_grad_
        >>> weight, state = torch.nn.Parameter(torch.zeros(1)), None
        >>> for norm in (20.0, 20.0, 2e6):
        ...     weight.grad = torch.tensor([norm])
        ...     report, state = clip_grad_([weight], GradientStabilizer(), state)
        >>> report.targets  # (0.3 / 0.657) / sqrt(0.1 / 0.271)
        tensor([0.7517])

    Note:
        Differs from the authors' code (Stable-SPAM): there this is one of three parts of an optimizer and stands behind
        a clip of single elements and before Adam's moments, which are reset from time to time; here it is alone. There
        :math:`\gamma_1` may be lowered over the training by a cosine, here it is constant. There it is one norm per
        tensor, which is ``scope="parameter"``; here any scope. There a norm of zero enters the averages, and one that
        is not finite spoils them for good; here neither enters. In ``GradientClip`` it clips to about 1 and enlarges
        nothing, which no paper proposes.

    References:
        Huang et al., *Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam*, 2025, arXiv 2502.17055 (AdaGN);
        since its third version, 2026, *GradientStabilizer: Fix the Norm, Not the Gradient*. Authors' code:
        TianjinYellow/StableSPAM.
    """

    decay_short: float = 0.7
    decay_long: float = 0.9
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_number("decay_short", self.decay_short, "Use 0.7 to remember about 3 steps.", 0, 1, ends="[)")
        remedy = "Use 0.9 to remember about 10 steps, never fewer than `decay_short` does."
        check_number("decay_long", self.decay_long, remedy, self.decay_short, 1, ends="[)")
        check_number("eps", self.eps, "Use 1e-8.", 0, inf, ends="()")

    def init(self, norms: Tensor) -> NormAverages:
        """No norm observed yet."""
        seen = torch.zeros_like(norms, dtype=torch.int64)
        return NormAverages(seen, torch.zeros_like(norms), torch.zeros_like(norms))

    def __call__(self, observation: Observation, state: NormAverages) -> tuple[Tensor, NormAverages]:
        """Observe first, then judge: the current norm is in both averages."""
        norms, observed, _ = observation
        seen = state.seen + observed
        steps = seen.clamp(min=1).to(norms.dtype)
        short, long = _newest_share(self.decay_short, steps), _newest_share(self.decay_long, steps)
        mean = (1 - short) * state.mean + short * norms
        # Roots in place of squares: those of norms beyond 1e19 or below 1e-19 are no float32.
        rms = torch.hypot((1 - long).sqrt() * state.rms, long.sqrt() * norms)
        # An average is at most the larger of its two: rounding must not carry it past the largest number there is.
        mean, rms = mean.minimum(state.mean.maximum(norms)), rms.minimum(state.rms.maximum(norms))
        new = NormAverages(seen, torch.where(observed, mean, state.mean), torch.where(observed, rms, state.rms))
        return torch.where(seen > 0, new.mean / (new.rms + self.eps), inf), new


def _newest_share(decay: float, steps: Tensor) -> Tensor:
    """The share of the newest of so many values in their bias-corrected exponential average: 1 of the first."""
    rate = log(decay) if decay else -inf
    return ((1 - decay) / -torch.expm1(rate * steps)).clamp(max=1)
