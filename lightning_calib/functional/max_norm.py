"""A fixed threshold, which a plain number stands for."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_number, message
from lightning_calib.functional.judge import Observation, Policy


class Stateless(NamedTuple):
    """The state of what remembers nothing."""


@dataclass(frozen=True)
class MaxNorm(Policy):
    r"""One fixed target for every segment: :math:`t_k = c`.

    Args:
        max_norm: The target c, in the unit of the gradient norm, in (0, inf]; inf never acts.

    Raises:
        TypeError: If ``max_norm`` is not a number.
        ValueError: If it is not above 0.

    Example:
        >>> import torch
        >>> from lightning_calib import MaxNorm
        >>> from lightning_calib.functional import clip_grad_
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> report, _ = clip_grad_([weight], MaxNorm(1.0))
        >>> report.coefficients
        tensor([0.2000])

    Note:
        A norm above the largest number of its type (3.4e38 in float32) counts as not finite and is left alone; on a GPU
        so does one of elements above about 1e19, whose squares overflow, unless ``NonFiniteGuard`` looks closer.

    References:
        Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, Algorithm 1.
    """

    max_norm: float

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, "Use math.inf to observe without acting.", 0, inf, ends="(]")

    def init(self, norms: Tensor) -> Stateless:
        """Nothing to remember."""
        return Stateless()

    def __call__(self, observation: Observation, state: Stateless) -> tuple[Tensor, Stateless]:
        """The same target for each of the K segments."""
        return torch.full_like(observation.norms, self.max_norm), state


def policy_of(name: str, value: object, rule: str = "a number or a policy") -> Policy:
    """A policy as it is; a number is a fixed threshold.

    Raises:
        TypeError: If the argument ``name`` is neither; ``rule`` says what it must be.
        ValueError: If the number is not above 0.
    """
    if isinstance(value, Policy):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return MaxNorm(value)
        except ValueError as reason:
            raise ValueError(f"`{name}` is taken for MaxNorm: {reason}") from reason
    raise TypeError(message(name, rule, value, "Use for instance 1.0 or Percentile(95)."))
