"""Judging: what a policy sees, what it answers, and what becomes of each segment."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_calib.functional.checks import message
from lightning_calib.functional.norms import Reading, measure
from lightning_calib.functional.saved_state import DamagedStateError, restored, tensor_fits
from lightning_calib.functional.segments import Segments

STATE_LIMIT = 64 * 2**20  # bytes, for one policy of one optimizer: it goes into every checkpoint


class State(Protocol):
    """What a policy or a learning-rate rule remembers: any NamedTuple of tensors, empty for one without memory."""

    def _asdict(self) -> dict[str, Any]:
        """The tensors by the names of their fields, for a checkpoint."""

    def __iter__(self) -> Iterator[Tensor]:
        """The tensors in the order of the fields."""

    def __len__(self) -> int:
        """The number of fields."""


class Observation(NamedTuple):
    """What a policy sees of the K segments of one optimizer step; all tensors on one device.

    Attributes:
        norms: Shape (K,), in the unit of the gradient: unscaled, of a whole window of accumulation; 0 where there is
            no gradient, inf or nan where it is not finite. float64 where a gradient is, else float32.
        observed: Shape (K,), bool: finite and above zero. Only such norms may enter a policy's state.
        weight_norms: Shape (K,), in the unit of the weights, of the dtype of ``norms``; None unless the policy
            ``needs_weights``.

    Example:
        >>> import torch
        >>> from lightning_calib import MaxNorm, Observation
        >>> norms, policy = torch.tensor([3.0, 0.0]), MaxNorm(1.0)
        >>> targets, state = policy(Observation(norms, norms > 0), policy.init(norms))
        >>> targets
        tensor([1., 1.])
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
    """From observed norms to target norms: the base of every policy, and of your own.

    A subclass holds hyper-parameters that never change, best as a frozen dataclass; what it remembers is a value that
    it is given and gives back. ``init(norms)`` returns the first state, a NamedTuple of tensors on the device of
    ``norms``, made from its shape, device and dtype alone. ``policy(observation, state)`` returns the target norms,
    shape (K,), of the dtype and on the device of ``observation.norms``, at least 0, and the next state, with the same
    fields, shapes and dtypes. It writes into neither argument, keeps nothing in itself, and lets only norms where
    ``observation.observed`` enter the state. A target of inf is no opinion (a warm-up, say): that segment is left
    alone.

    Attributes:
        needs_weights: Whether ``observation.weight_norms`` must be measured.

    Raises:
        TypeError: When a policy is first used with an optimizer: if it returns something else than it must.
        ValueError: Likewise, if a shape, a dtype or a device is another, if it writes into its arguments, or if its
            state takes more than 64 MB.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import NamedTuple
        >>> import torch
        >>> from lightning_calib import Observation, Policy
        >>> class Last(NamedTuple):
        ...     norms: torch.Tensor
        >>> @dataclass(frozen=True)
        ... class AtMostTwice(Policy):
        ...     def init(self, norms: torch.Tensor) -> Last:
        ...         return Last(torch.full_like(norms, torch.inf))
        ...     def __call__(self, observation: Observation, state: Last) -> tuple[torch.Tensor, Last]:
        ...         norms = torch.where(observation.observed, observation.norms, state.norms)
        ...         return 2 * state.norms, Last(norms)
        >>> policy, state = AtMostTwice(), AtMostTwice().init(torch.zeros(1))
        >>> for norm in (1.0, 5.0):
        ...     targets, state = policy(Observation(torch.tensor([norm]), torch.tensor([True])), state)
        >>> targets
        tensor([2.])
    """

    needs_weights: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, observation: Observation, state: Any) -> tuple[Tensor, State]:
        """Return the target norms, shape (K,), and the next state; neither argument is changed."""


class _Judged(NamedTuple):
    """The tensors of a report."""

    norms: Tensor
    observed: Tensor
    targets: Tensor
    coefficients: Tensor


class SegmentReport(_Judged):
    """What happened to K segments in one step: a tuple of four tensors, each of shape (K,), and the segments' names.

    Attributes:
        norms: Before the rescale.
        observed: Whether the segment was judged by its norm at all: finite and above zero.
        targets: What the policy wanted; inf for no opinion.
        coefficients: What the gradient was multiplied by; exactly 1 where it was left alone.
        names: What each segment is called: ``"global"``, ``"group 0"``, the name of a module or of a parameter, or
            of a parameter's row, ``"head.weight[3]"``.

    Example:
        >>> import torch
        >>> from lightning_calib.functional import clip_grad_
        >>> layer = torch.nn.Linear(2, 1)
        >>> layer.weight.grad, layer.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([0.5])
        >>> report, _ = clip_grad_(layer, 1.0, scope="parameter")
        >>> dict(zip(report.names, report.clipped.tolist()))
        {'weight': True, 'bias': False}
    """

    names: Sequence[str] = ()

    def __new__(
        cls, norms: Tensor, observed: Tensor, targets: Tensor, coefficients: Tensor, names: Sequence[str] = ()
    ) -> "SegmentReport":
        """The tensors are the tuple's items; the names stand beside it."""
        report = super().__new__(cls, norms, observed, targets, coefficients)
        report.names = names
        return report

    @property
    def clipped(self) -> Tensor:
        """Whether the gradient was reduced, for each segment; shape (K,), bool."""
        return self.coefficients < 1


def observe(segments: Segments, reading: Reading, *, weights: bool = False) -> Observation:
    """Fold a reading to the segments; with ``weights``, read the weights of the members too."""
    norms = segments.fold(reading)
    weight_norms = segments.fold(_read_weights(segments, reading)) if weights else None
    return Observation(norms, (norms > 0) & (norms < torch.inf), weight_norms)


def _read_weights(segments: Segments, reading: Reading) -> Reading:
    values: list[Tensor | None] = [None] * len(segments.plan.tensors)
    for i in segments.members:
        values[i] = segments.plan.tensors[i]
    return measure(segments.plan, values, reading.norm_type, units=segments.scope == "unit")


def judge(
    policy: Policy, observation: Observation, state: State, names: Sequence[str] = (), *, clip: bool = True
) -> tuple[SegmentReport, State]:
    """Ask the policy; targets t and norms n make the coefficients t / n, where t < n only if ``clip``."""
    targets, state = policy(observation, state)
    factors = coefficients(observation, targets, clip=clip)
    return SegmentReport(observation.norms, observation.observed, targets, factors, names), state


def coefficients(observation: Observation, targets: Tensor, *, clip: bool) -> Tensor:
    """What the gradients are multiplied by, exactly 1 where they are left alone.

    Args:
        observation: Of K segments, or of one that has several targets.
        targets: Shape (K,), or (S,) of S policies that see the same segment.
        clip: See `judge`.
    """
    norms, observed, _ = observation
    ratios = targets / norms  # beyond the type where a norm is near the smallest number: then it is left alone, too
    act = observed & (targets < norms if clip else ratios.isfinite())
    return torch.where(act, ratios, 1.0)


def fresh_state(policy: Method, segments: Segments) -> State:
    """The policy's, or the rule's, first state for these segments.

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
    likes: dict[str, Tensor] = planned._asdict()
    if isinstance(state, Mapping) and likes.keys() - {*getattr(planned, "later", {})} <= state.keys() <= likes.keys():
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


def _planned(policy: Method, segments: Segments) -> State:
    return policy.init(torch.empty(len(segments), dtype=segments.plan.dtype, device="meta"))
