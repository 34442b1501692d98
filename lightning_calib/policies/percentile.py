"""A threshold at a percentile of the norms seen so far."""

from dataclasses import dataclass

from torch import Tensor

from lightning_calib.functional.checks import check_count, check_number, message
from lightning_calib.functional.estimators import (
    History,
    Ring,
    empty_history,
    empty_ring,
    push_history,
    push_ring,
    quantile_of_history,
    quantile_of_ring,
)
from lightning_calib.functional.judge import STATE_LIMIT, Observation
from lightning_calib.policies.warmup import Warmup

_WIDEST = STATE_LIMIT // 4 - 2  # float32 numbers, beside the count of them


@dataclass(frozen=True)
class Percentile(Warmup):
    r"""The p-th percentile of the norms so far, the current one among them.

    With :math:`G_h = \{\lVert g_0 \rVert, \dots, \lVert g_t \rVert\}` (its last ``window`` elements),
    :math:`t = \mathrm{percentile}_p(G_h)`, linear between two neighbours. So about 100 - p percent of the steps
    are clipped, whatever the scale of the gradients, and a change of level is learnt within a window.

    Args:
        percentile: p, 0 or in [1, 100], and no fraction of 1. 95 touches outliers only; the AutoClip paper recommends
            10.
        window: The number of norms to remember, in [1, 2^24 - 2]; None keeps the whole history, for one segment only.
        warmup_steps: The number of observed norms before the first judgement, at least 0.
        warmup_max_norm: The largest norm of a segment during its warm-up, in (0, inf]; None clips nothing in it. What
            enters the window is the whole norm, with or without it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, or ``window=None`` meets several segments.

    Example:
        >>> import torch
        >>> from lightning_calib import Percentile
        >>> from lightning_calib.functional import clip_grad_
        >>> weight, state = torch.nn.Parameter(torch.zeros(1)), None
        >>> for norm in (1.0, 2.0, 3.0, 4.0):
        ...     weight.grad = torch.tensor([norm])
        ...     report, state = clip_grad_([weight], Percentile(50, warmup_steps=0), state)
        >>> report.targets
        tensor([2.5000])

    Note:
        Each step finds the largest 100 - p percent of K x ``window`` numbers, or the least p percent; without a window
        it searches the history, and every 256th step copies it.

    References:
        Seetharaman et al., *AutoClip: Adaptive gradient clipping for source separation networks*, MLSP 2020,
        Algorithm 1 (``window=None``, ``warmup_steps=0``).
    """

    percentile: float = 95.0
    window: int | None = 1000
    warmup_steps: int = 100
    warmup_max_norm: float | None = None

    def __post_init__(self) -> None:
        check_number("percentile", self.percentile, "Use 95 to clip about one step in twenty.", 0, 100)
        if 0 < self.percentile < 1:
            raise ValueError(message("percentile", "0 or in [1, 100]", self.percentile, _in_percent(self.percentile)))
        if self.window is not None:
            check_count("window", self.window, "Use 1000, or None for the whole history.", 1, _WIDEST)
        self._check_warmup("Use 100, or 0 to judge from the first step on.", 0)

    @property
    def kind(self) -> str:
        """A ring cannot change its length."""
        return f"Percentile(window={self.window})"

    def init(self, norms: Tensor) -> Ring | History:
        """An empty window, or an empty history, for each of the K segments."""
        if self.window is not None:
            return empty_ring(norms, self.window)
        if norms.numel() != 1:
            raise ValueError(
                f"`window` must be a whole number for several segments, got None for {norms.numel()}. "
                'Use window=1000, or scope="global".'
            )
        return empty_history(norms)

    def __call__(self, observation: Observation, state: Ring | History) -> tuple[Tensor, Ring | History]:
        """Observe first, then judge."""
        judged = state.seen >= self.warmup_steps
        new: Ring | History
        if isinstance(state, Ring):
            new = push_ring(state, observation.norms, observation.observed)
            targets = quantile_of_ring(new, self.percentile / 100)
        else:
            new = push_history(state, observation.norms, observation.observed)
            targets = quantile_of_history(new, self.percentile / 100)
        return self._once(judged, targets), new


def _in_percent(fraction: float) -> str:
    percent = max(round(100 * fraction, 6), 1.0)
    endings = {1.0: "st", 2.0: "nd", 3.0: "rd"}
    ending = "th" if 10 < percent < 14 else endings.get(percent % 10, "th")
    return f"Use {percent} for the {percent:g}{ending} percentile."
