"""A threshold relative to the weights."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor

from lightning_calib.functional.checks import check_number
from lightning_calib.functional.judge import Observation, Policy
from lightning_calib.functional.max_norm import Stateless


@dataclass(frozen=True)
class WeightRelative(Policy):
    r"""A target in proportion to the weight norm: :math:`t_k = \lambda \max(\lVert w_k \rVert, \epsilon)`.

    The floor keeps a weight that starts at zero able to learn.

    Args:
        factor: :math:`\lambda`, the gradient norm allowed per weight norm, above 0. 0.01 is the NFNet authors' for
            batches of 4096; smaller batches want larger values.
        min_weight_norm: The floor :math:`\epsilon`, in the unit of the weights, above 0; 1e-3 in the authors' code.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is out of range.

    Example:
        >>> import torch
        >>> from lightning_calib import WeightRelative
        >>> from lightning_calib.functional import clip_grad_
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> weight.grad = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
        >>> report, _ = clip_grad_([weight], WeightRelative(), scope="unit")
        >>> report.targets
        tensor([5.0000e-02, 1.0000e-05])

    References:
        Brock et al., *High-Performance Large-Scale Image Recognition Without Normalization*, ICML 2021, Equation 3.
    """

    needs_weights: ClassVar[bool] = True
    factor: float = 0.01
    min_weight_norm: float = 1e-3

    def __post_init__(self) -> None:
        check_number("factor", self.factor, "Use values near 0.01.", 0, inf, ends="()")
        remedy = "Use values near 1e-3: without a floor a weight that starts at zero never learns."
        check_number("min_weight_norm", self.min_weight_norm, remedy, 0, inf, ends="()")

    def init(self, norms: Tensor) -> Stateless:
        """Nothing to remember."""
        return Stateless()

    def __call__(self, observation: Observation, state: Stateless) -> tuple[Tensor, Stateless]:
        """Targets in proportion to ``observation.weight_norms``."""
        assert observation.weight_norms is not None, "`needs_weights` was not honoured"  # noqa: S101
        return self.factor * observation.weight_norms.clamp(min=self.min_weight_norm), state
