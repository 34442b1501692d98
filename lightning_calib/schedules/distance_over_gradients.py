"""A learning rate from the distance that was covered and the gradients that it took."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_number
from lightning_calib.schedules.rule import LearningRateRule, Measurement, Setting, required

_ROOT_EPS = 1e-4  # the root of the authors' 1e-8, which they add to the sum of squares
_NOT_PLAIN = ("ASGD", "DAdaptSGD")  # named like SGD, but they set a step length of their own


class Travelled(NamedTuple):
    """The largest distance so far and the root of the summed squared norms; both of shape (G,)."""

    farthest: Tensor
    root_squares: Tensor


@dataclass(frozen=True)
class DistanceOverGradients(LearningRateRule):
    r"""DoG: the distance from the start, over the root of all squared gradient norms so far. No rate to tune.

    For each param group, with weights :math:`x_t`, gradient :math:`g_t` and :math:`r = d\,(1 + \lVert x_0 \rVert)`:

    .. math:: \eta_t = \frac{\max(r, \max_{i \le t} \lVert x_i - x_0 \rVert)}
        {\sqrt{\sum_{i \le t} \lVert g_i \rVert^2 + 10^{-8}}}

    The factor is :math:`\eta_t`: with ``lr=1.0`` and plain SGD it is the published step. The distance grows until it
    is about the distance to a solution; the rate then falls like one over the root of t.

    Args:
        initial_distance: d, the first movement relative to the size of the weights (:math:`r_\epsilon` is r above),
            above 0. 1e-6 in the authors' code, 1e-4 for models with batch normalisation; too large a value may
            diverge in the first steps, too small a one wastes some hundred of them.

    Raises:
        TypeError: If ``initial_distance`` is not a number.
        ValueError: If it is out of range.

    Example:
        >>> import torch
        >>> from lightning_calib import DistanceOverGradients, Measurement
                >>> rule, norms = DistanceOverGradients(), torch.tensor([2.0])
        >>> where = {"distances": torch.tensor([0.5]), "start_norms": torch.tensor([3.0])}
        >>> factors, _ = rule(Measurement(norms, norms > 0, **where), rule.init(norms))
        >>> factors
        tensor([0.2500])

    Note:
        Differs from the authors' code: weight decay is not in the gradient that is measured. As there, each param
        group has its own distance and its own sum, and the results that they report are those of an average of the
        weights, which is not part of this rule (torch and Lightning have weight averaging).

    References:
        Ivgi, Hinder, Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule*, ICML 2023,
        arXiv 2302.12022: the DoG step.
    """

    needs_distance: ClassVar[bool] = True
    meant_for: ClassVar[Setting | None] = Setting("plain SGD", rate=1.0)

    initial_distance: float = 1e-6

    def __post_init__(self) -> None:
        remedy = "Use 1e-6, or 1e-4 for models with batch normalisation."
        check_number("initial_distance", self.initial_distance, remedy, 0, inf, ends="()")

    def refuses(self, optimizer_class_name: str, momentum: float = 0.0) -> str | None:
        """The step is derived for an update that is the gradient itself."""
        if momentum:
            return (
                f"DistanceOverGradients computes a step length for SGD without momentum; momentum {momentum:g} "
                "lengthens every step, and training diverges. Use torch.optim.SGD(lr=1.0, momentum=0.0)."
            )
        if optimizer_class_name.endswith("SGD") and optimizer_class_name not in _NOT_PLAIN:
            return None
        return (
            f"DistanceOverGradients computes a step length for plain SGD, whose update is the gradient itself; "
            f"{optimizer_class_name} rescales the gradient, so that the length is wrong by orders of magnitude. "
            "Use torch.optim.SGD(lr=1.0) with it, or SpikeBackoff() with this optimizer."
        )

    def init(self, norms: Tensor) -> Travelled:
        """Nothing covered yet."""
        return Travelled(torch.zeros_like(norms), torch.full_like(norms, _ROOT_EPS))

    def __call__(self, measurement: Measurement, state: Travelled) -> tuple[Tensor, Travelled]:
        """Distance and gradient of this step count already."""
        norms = measurement.norms
        distances = required("distances", measurement.distances)
        start = self.initial_distance * (1 + required("start_norms", measurement.start_norms))
        observed = measurement.observed & distances.isfinite() & start.isfinite()
        farthest = torch.maximum(torch.maximum(distances, start), state.farthest)
        root_squares = torch.hypot(state.root_squares, norms)
        new = Travelled(
            torch.where(observed, farthest, state.farthest), torch.where(observed, root_squares, state.root_squares)
        )
        return torch.where(observed, farthest / root_squares, 1.0), new
