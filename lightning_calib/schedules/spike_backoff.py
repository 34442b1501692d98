"""A lower learning rate for a while after a spike of the gradient norm."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import Any, cast

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_number, message, told
from lightning_calib.functional.contract import check_first_state
from lightning_calib.functional.judge import Observation, Policy, State
from lightning_calib.policies.zscore import ZScore
from lightning_calib.schedules.rule import LearningRateRule, Measurement

# A factor that reached zero in a long burst of spikes could not recover; from here it takes 142 calm steps at 1.05.
_LEAST = 2.0**-10


@dataclass(frozen=True)
class SpikeBackoff(LearningRateRule):
    r"""Multiply the learning rate by ``backoff`` at a spike, then let it recover geometrically.

    A policy judges each group's gradient norm :math:`n`, as it would to clip it, with target :math:`t`:

    .. math:: f \leftarrow \max(b f, 2^{-10}) \text{ if } n > t, \quad f \leftarrow \min(1, r f) \text{ otherwise.}

    The step of the spike is taken with the reduced rate already. At the defaults a single spike is forgotten after
    15 calm steps.

    Args:
        policy: What a spike is: any policy that needs no weights. By default ``ZScore()``: the norm lies more than
            2.5 standard deviations above its running mean; nothing is a spike in its first 25 steps.
        backoff: b, what remains of the factor at a spike, in (0, 1). Ours.
        recovery: r, by what the factor grows on every other step, in (1, inf). Ours.

    Raises:
        TypeError: If an argument has the wrong type, or the policy is not hashable.
        ValueError: If one is out of range, or the policy needs the weights.

    Example:
        >>> import torch
        >>> from lightning_calib import MaxNorm, Measurement, SpikeBackoff
        >>> rule = SpikeBackoff(MaxNorm(2.0))
        >>> state = rule.init(torch.zeros(1))
        >>> for norm in (1.0, 5.0, 5.0, 1.0):
        ...     norms = torch.tensor([norm])
        ...     factors, state = rule(Measurement(norms, norms > 0), state)
        ...     print(round(float(factors), 4))
        1.0
        0.5
        0.25
        0.2625

    Note:
        There is no paper: halving and creeping back is how people treat spikes by hand. The floor of 2^-10, or
        ``backoff`` where that is less, keeps a long burst from stopping the training for good.

    References:
        The judgement is that of the policy; see ``ZScore``.
    """

    policy: Policy = field(default_factory=ZScore)
    backoff: float = 0.5
    recovery: float = 1.05

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            is_number = isinstance(self.policy, (int, float)) and not isinstance(self.policy, bool)
            remedy = f"Use MaxNorm({told(self.policy)})." if is_number else "Use ZScore()."
            raise TypeError(message("policy", "a policy", self.policy, remedy))
        if self.policy.needs_weights:
            rule = "a policy that needs no weights"
            raise ValueError(message("policy", rule, self.policy, "Use ZScore() or EMARelative()."))
        try:
            hash(self.policy)
        except TypeError as reason:
            remedy = "Declare its class with `@dataclass(frozen=True)`, and write tuples in place of lists."
            raise TypeError(message("policy", "hashable", self.policy, remedy)) from reason
        check_number("backoff", self.backoff, "Use 0.5 to halve the rate at a spike.", 0, 1, ends="()")
        check_number("recovery", self.recovery, "Use 1.05 to win back a halving in 15 steps.", 1, inf, ends="()")

    @property
    def kind(self) -> str:
        """The state of one policy is not that of another."""
        return f"SpikeBackoff({self.policy.kind})"

    def init(self, norms: Tensor) -> State:
        """The full rate, and the policy's first state."""
        _, outer = _types(self.policy)
        return outer(torch.ones_like(norms), *self.policy.init(norms))

    def __call__(self, measurement: Measurement, state: Any) -> tuple[Tensor, State]:
        """Judge the norms, then move the factors of the observed groups."""
        norms, observed = measurement.norms, measurement.observed
        inner, outer = _types(self.policy)
        targets, judged = self.policy(Observation(norms, observed), inner(*state[1:]))
        moved = torch.where(norms > targets, state.factors * self.backoff, state.factors * self.recovery)
        moved = moved.clamp(min(self.backoff, _LEAST), 1.0)
        kept = torch.where(observed, moved, state.factors)
        return torch.where(observed, moved, 1.0), outer(kept, *judged)


@cache
def _types(policy: Policy) -> tuple[Callable[..., State], Callable[..., State]]:
    """The class of the policy's state, and the class of ours: the factors, then the fields of the policy's state."""
    first: Any = check_first_state(policy, torch.empty(1, device="meta"))
    inner, fields = type(first), ["factors", *(f"policy_{name}" for name in first._fields)]
    outer = cast(Any, namedtuple)("SpikeBackoffState", fields)
    outer.grows = tuple(f"policy_{name}" for name in getattr(first, "grows", ()))
    outer.later = property(lambda state: {f"policy_{k}": v for k, v in getattr(inner(*state[1:]), "later", {}).items()})
    outer.flaw = lambda state: inner(*state[1:]).flaw() if hasattr(inner, "flaw") else ""
    return inner, outer
