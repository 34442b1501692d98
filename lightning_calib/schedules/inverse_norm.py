"""Updates of one length."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_number
from lightning_calib.functional.max_norm import Stateless
from lightning_calib.schedules.rule import LearningRateRule, Measurement


@dataclass(frozen=True)
class InverseNorm(LearningRateRule):
    r"""Divide the learning rate by the gradient norm, so that plain SGD takes steps of constant length.

    With group norm :math:`n`: factor :math:`= c / n`, from the first step on. The update of plain SGD then has the
    length :math:`\eta c`, where :math:`\eta` is the group's learning rate: normalised gradient descent.

    Args:
        target: c, the gradient norm at which the learning rate stays as it is, in the unit of the norm, in (0, inf).

    Raises:
        TypeError: If ``target`` is not a number.
        ValueError: If it is out of range.

    Example:
        >>> import torch
        >>> from lightning_calib import InverseNorm, Measurement
                >>> norms = torch.tensor([4.0, 0.5])
        >>> rule = InverseNorm()
        >>> factors, _ = rule(Measurement(norms, norms > 0), rule.init(norms))
        >>> factors
        tensor([0.2500, 2.0000])

    Note:
        Differs from the textbook: each param group has its own norm, so that with several groups the direction
        changes. ``LearningRateControl`` lowers rates only, unless its ``max_factor`` is raised.

    References:
        Nesterov, *Introductory Lectures on Convex Optimization*, 2004: the subgradient method with normalised steps.
    """

    target: float = 1.0

    def __post_init__(self) -> None:
        check_number("target", self.target, "Use a gradient norm that is typical of the run.", 0, inf, ends="()")

    def init(self, norms: Tensor) -> Stateless:
        """Nothing to remember."""
        return Stateless()

    def __call__(self, measurement: Measurement, state: Stateless) -> tuple[Tensor, Stateless]:
        """The target over the norm; finite for the smallest norm too."""
        factors = (self.target / measurement.norms).clamp(max=torch.finfo(measurement.norms.dtype).max)
        return torch.where(measurement.observed, factors, 1.0), Stateless()
