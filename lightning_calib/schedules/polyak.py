"""The stochastic Polyak step."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_count, check_number
from lightning_calib.schedules.rule import LearningRateRule, Measurement, Setting, required

_EPS = 1e-8  # the authors' guard against a gradient of zero, added to the squared norm


class PolyakState(NamedTuple):
    """The last factor that was not zero, shape ()."""

    rate: Tensor


@dataclass(frozen=True)
class Polyak(LearningRateRule):
    r"""The step that would bring the loss to its minimum if the loss were as steep all the way (SPS_max).

    With loss :math:`f`, its least value :math:`f^*`, and the gradient :math:`g` of all groups together:

    .. math:: \eta_t = \min\!\left(\frac{f_t - f^*}{c\,\lVert g_t \rVert^2 + 10^{-8}},\;
        \gamma^{1/n} \eta_{t-1}\right), \qquad \eta_0 = 1,

    and 0 where :math:`f_t \le f^*`. The factor is :math:`\eta_t`, the same for all groups: with ``lr=1.0`` and plain
    SGD it is the published step.

    Args:
        loss_min: :math:`f^*`, the least loss that a batch can have, in the unit of the loss; 0 in the authors' code.
        damping: c, above 0; a larger one takes shorter steps. 0.5 in the authors' code.
        growth: :math:`\gamma`, by what the step may grow within ``growth_steps``, in [1, inf]; 2 in the authors'
            code. inf leaves the growth free; the bound of SPS_max is then ``max_factor`` of ``LearningRateControl``.
        growth_steps: n, at least 1: the number of steps in an epoch; 500 in the authors' code.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.

    Example:
        >>> import torch
        >>> from lightning_calib import Measurement, Polyak
                >>> rule, norms = Polyak(), torch.tensor([3.0, 4.0])
        >>> factors, _ = rule(Measurement(norms, norms > 0, loss=torch.tensor(2.5)), rule.init(norms))
        >>> factors
        tensor([0.2000, 0.2000])

    Note:
        Differs from the authors' code: :math:`f^*` counts with smoothing too; a step of length 0 is not remembered
        (there the smoothing could never leave it again); gradients below 1e-8 get no special treatment; and
        ``LearningRateControl`` lowers rates only, unless its ``max_factor`` is raised.

    References:
        Loizou, Vaswani, Laradji, Lacoste-Julien, *Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate for
        Fast Convergence*, AISTATS 2021, arXiv 2002.10542: SPS_max, and its smoothing in the experiments.
    """

    needs_loss: ClassVar[bool] = True
    meant_for: ClassVar[Setting | None] = Setting("plain SGD", rate=1.0)

    loss_min: float = 0.0
    damping: float = 0.5
    growth: float = 2.0
    growth_steps: int = 500

    def __post_init__(self) -> None:
        check_number("loss_min", self.loss_min, "Use 0.0 for losses that can reach zero.", ends="()")
        check_number("damping", self.damping, "Use 0.5; larger values take shorter steps.", 0, inf, ends="()")
        check_number("growth", self.growth, "Use 2.0, or math.inf for no limit on growth.", 1, inf)
        check_count("growth_steps", self.growth_steps, "Use the number of steps in an epoch.", 1)

    def init(self, norms: Tensor) -> PolyakState:
        """The first step may be as long as 1, times one step's growth."""
        return PolyakState(norms.new_ones(()))

    def __call__(self, measurement: Measurement, state: PolyakState) -> tuple[Tensor, PolyakState]:
        """One step for all groups; no opinion where the loss or a part of the gradient is not finite."""
        norms, observed, loss = measurement.norms, measurement.observed, required("loss", measurement.loss)
        length = torch.linalg.vector_norm(torch.where(observed, norms, 0))
        gap = (loss.to(norms.dtype) - self.loss_min).clamp(min=0)
        limit = state.rate * self.growth ** (1 / self.growth_steps)
        rate = torch.minimum(gap / (self.damping * length**2 + _EPS), limit)
        judged = loss.isfinite() & norms.isfinite().all() & observed.any()
        factors = torch.where(judged & observed, rate, 1.0)
        return factors, PolyakState(torch.where(judged & (rate > 0), rate, state.rate))
