"""Judging: what a policy sees, what it answers, and what becomes of each segment."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.checks import message
from lightning_calib.functional.norms import Reading, measure
from lightning_calib.functional.saved_state import DamagedStateError, restored, tensor_fits
from lightning_calib.functional.segments import Segments

# A NamedTuple of tensors; empty for a policy without memory.
State = tuple[Any, ...]
STATE_LIMIT = 64 * 2**20  # bytes, for one policy of one optimizer: it goes into every checkpoint


class Observation(NamedTuple):
    """What a policy sees of K segments.

    Attributes:
        norms: Shape (K,), 0 where there is no gradient, inf or nan where it is not finite.
        observed: Shape (K,), bool: finite and above zero. Only such norms may enter a policy's state.
        weight_norms: Shape (K,): the norms of the weights; None unless the policy ``needs_weights``.
    """

    norms: Tensor
    observed: Tensor
    weight_norms: Tensor | None = None


class Method(ABC):
    """What a policy and a learning-rate rule have in common: hyper-parameters that never change, and a first state."""

    @property
    def kind(self) -> str:
        """What the numbers of a state mean: a saved state fits a method of the same kind only."""
        return type(self).__name__

    @abstractmethod
    def init(self, norms: Tensor) -> State:
        """The state before the first step, for segments like ``norms``, shape (K,): its device, its dtype.

        Its tensors keep their shapes, but for those that its property ``grows`` names, which may get longer in the last
        dimension. From a checkpoint it is taken up if whole numbers are not negative and numbers are finite, unless
        those here are not, and if its method ``flaw``, where it has one, finds nothing.
        """


class Policy(Method):
    """From observed norms to target norms. A frozen dataclass of hyper-parameters; its state is a value.

    A target of inf is no opinion (a warm-up, say): that segment is left alone.
    """

    needs_weights: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, observation: Observation, state: Any) -> tuple[Tensor, State]:
        """Return the target norms, shape (K,), and the next state; neither argument is changed."""


class Report(NamedTuple):
    """What happened to K segments in one step; every tensor has shape (K,).

    Attributes:
        norms: Before the rescale.
        observed: Whether the segment was judged by its norm at all: finite and above zero.
        targets: What the policy wanted; inf for no opinion.
        coefficients: What the gradient was multiplied by; exactly 1 where it was left alone.
    """

    norms: Tensor
    observed: Tensor
    targets: Tensor
    coefficients: Tensor

    @property
    def clipped(self) -> Tensor:
        """Where the gradient was reduced: shape (K,), bool."""
        return self.coefficients < 1


def observe(segments: Segments, reading: Reading, *, weights: bool = False) -> Observation:
    """Fold a reading to the segments; with ``weights``, read the weights of the members too."""
    norms = segments.fold(reading)
    weight_norms = segments.fold(_read_weights(segments, reading)) if weights else None
    return Observation(norms, norms.isfinite() & (norms > 0), weight_norms)


def _read_weights(segments: Segments, reading: Reading) -> Reading:
    values: list[Tensor | None] = [None] * len(segments.plan.tensors)
    for i in segments.members:
        values[i] = segments.plan.tensors[i].detach()
    return measure(segments.plan, values, reading.norm_type, units=segments.scope == "unit")


def judge(policy: Policy, observation: Observation, state: State, *, clip: bool = True) -> tuple[Report, State]:
    """Ask the policy; targets t and norms n make the coefficients t / n, where t < n only if ``clip``."""
    norms, observed, _ = observation
    targets, state = policy(observation, state)
    act = observed & (targets < norms if clip else targets.isfinite())
    return Report(norms, observed, targets, torch.where(act, targets / norms, 1.0)), state


def fresh_state(policy: Policy, segments: Segments) -> State:
    """The policy's first state for these segments.

    Raises:
        ValueError: If it would take more than 64 MB, or the policy refuses that many segments.
    """
    count, plan = len(segments), segments.plan
    planned = _planned(policy, segments)
    size = sum(tensor.numel() * tensor.element_size() for tensor in planned)
    if size > STATE_LIMIT:
        raise ValueError(
            f"The state of `{policy}` for {count} segments (scope={segments.scope!r}) would take "
            f"{size / 2**20:.0f} MB of every checkpoint, more than {STATE_LIMIT / 2**20:.0f} MB. "
            'Use a coarser scope such as "layer", a shorter `window`, or a policy without a window.'
        )
    return policy.init(torch.zeros(count, dtype=plan.dtype, device=plan.device))


def take_up(policy: Policy, state: State | Mapping[str, Tensor], segments: Segments) -> State:
    """A state that was returned before, or the mapping that ``_asdict()`` made of it.

    Raises:
        ValueError: If it is of another policy, or of another number of segments, or if a mapping, which may come from a
            file, holds something damaged.
    """
    planned = _planned(policy, segments)
    likes: dict[str, Tensor] = planned._asdict()  # type: ignore[attr-defined]
    if isinstance(state, Mapping) and state.keys() == likes.keys():
        try:
            return restored(dict(state), fresh_state(policy, segments), "state")
        except DamagedStateError as damage:
            raise ValueError(f"{damage}. Pass None to start afresh.") from damage
    grows = getattr(planned, "grows", ())
    pairs = zip(state, likes.items(), strict=True) if type(state) is type(planned) else ()
    if type(state) is type(planned) and all(tensor_fits(one, x, grows=name in grows) for one, (name, x) in pairs):
        return state
    told = f"one of {type(state).__name__}"
    rule = f"what `{policy}` returned for {len(segments)} segments, or its `_asdict()`"
    raise ValueError(message("state", rule, told, "Pass None to start afresh."))


def _planned(policy: Policy, segments: Segments) -> State:
    return policy.init(torch.empty(len(segments), dtype=segments.plan.dtype, device="meta"))
