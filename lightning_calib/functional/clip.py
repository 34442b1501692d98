"""The door for training loops without Lightning: plan, measure, judge, rescale, report."""

import warnings
from collections.abc import Mapping, Sequence
from types import GeneratorType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_calib.functional.checks import check_number
from lightning_calib.functional.contract import check_policy
from lightning_calib.functional.judge import Policy, SegmentReport, State, fresh_state, judge, observe, take_up
from lightning_calib.functional.max_norm import policy_of
from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan, Source, tensors_of
from lightning_calib.functional.rescale import rescale_
from lightning_calib.functional.segment_names import segment_names
from lightning_calib.functional.segments import Scope, Segments, check_scope

# Laying a plan takes longer than reading small gradients, so it is kept as long as its module or optimizer lives.
Laid = tuple[Segments, Sequence[str]]
_laid: WeakKeyDictionary[nn.Module | Optimizer, dict[Scope, Laid]] = WeakKeyDictionary()
# What of a class of policies has been tried, so that a call without a state, which may be each call, tries it once.
_tried: WeakKeyDictionary[type[Policy], set[tuple[object, ...]]] = WeakKeyDictionary()


@torch.no_grad()
def clip_grad_(
    parameters: Source,
    policy: Policy | float,
    state: State | Mapping[str, Tensor] | None = None,
    *,
    scope: Scope = "global",
    norm_type: float = 2.0,
) -> tuple[SegmentReport, State]:
    r"""Clip gradients in place so that no segment's norm exceeds the policy's target.

    With the segment norms n and the policy's targets t, each segment k is scaled by
    :math:`c_k = \min(1, t_k / n_k)`; a segment whose norm is zero or not finite is left alone.

    Args:
        parameters: A module (scopes "global", "layer", "parameter", "unit"), an optimizer (all but "layer") or an
            iterable of tensors (all but "layer" and "group"). Call it after ``backward`` and, with a GradScaler,
            after ``scaler.unscale_(optimizer)``.
        policy: What judges the norms, such as ``ZScore()``; a number is ``MaxNorm``.
        state: What this function returned last time, or its ``_asdict()`` from a checkpoint; None starts afresh.
        scope: What makes a segment.
        norm_type: The p of the p-norm, above 0; ``math.inf`` for the largest magnitude.

    Returns:
        The report, a ``SegmentReport``: K-shaped tensors and the segments' names. And the policy's state for the next
        call, a NamedTuple of tensors (``state._asdict()`` for a checkpoint).

    Raises:
        TypeError: If ``policy`` is neither a policy nor a number, or ``parameters`` holds something else than tensors;
            on the first call with a policy of your own, if it returns something else than a ``Policy`` must.
        ValueError: If the scope cannot be told from ``parameters``, the state is of another policy or of other
            segments, or it would take over 64 MB.

    Warns:
        UserWarning: If ``parameters`` is a generator with nothing left in it, as torch does.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> report, state = clip_grad_([weight], 1.0)
        >>> weight.grad
        tensor([0.6000, 0.8000])
        >>> report.norms, report.coefficients
        (tensor([5.]), tensor([0.2000]))

    Note:
        ``torch.nn.utils.clip_grad_norm_`` divides by n + 1e-6; here the division is exact.

    References:
        Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013,
        Algorithm 1 (``MaxNorm`` with ``scope="global"``).
    """
    policy = policy_of("policy", policy)
    check_norm_type(norm_type)
    check_scope(scope)
    segments, names = _segments(parameters, scope)
    plan = segments.plan
    if not isinstance(state, tuple):
        _try(policy, segments)
    reading = measure(plan, gradients := plan.gradients(), norm_type, units=scope == "unit")
    observation = observe(segments, reading, weights=policy.needs_weights)
    before = fresh_state(policy, segments) if state is None else take_up(policy, state, segments)
    report, after = judge(policy, observation, before, names)
    rescale_(plan, gradients, segments.spread(report.coefficients))
    return report, after


def check_norm_type(norm_type: object) -> None:
    """Accept a p of (0, inf]."""
    check_number("norm_type", norm_type, "Use 2.0 (Euclidean) or math.inf (largest magnitude).", 0, ends="(]")


def _segments(source: Source, scope: Scope) -> Laid:
    if not isinstance(source, (nn.Module, Optimizer)):
        plan = Plan.of(source)
        if isinstance(source, GeneratorType) and not plan.tensors:
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=4)
        segments = Segments.of(plan, scope)
        return segments, segment_names(segments)
    known = _laid.setdefault(source, {}).get(scope)
    if known is None or not known[0].plan.holds(tensors_of(source)):
        segments = Segments.of(Plan.of(source), scope)
        known = _laid[source][scope] = segments, segment_names(segments)
    return known


def _try(policy: Policy, segments: Segments) -> None:
    known = _tried.setdefault(type(policy), set())
    key = (policy.kind, len(segments), segments.plan.dtype, segments.plan.device)
    if key not in known:
        check_policy(policy, segments)
        known.add(key)
