"""The door for training loops without Lightning: plan, measure, judge, rescale, report."""

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_calib.functional.checks import check_number, message, told
from lightning_calib.functional.judge import Policy, Report, State, fresh_state, judge, observe, take_up
from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan, Source, tensors_of
from lightning_calib.functional.rescale import rescale_
from lightning_calib.functional.segments import Scope, Segments, check_scope

# Laying a plan takes longer than reading small gradients, so it is kept as long as its module or optimizer lives.
_laid: WeakKeyDictionary[nn.Module | Optimizer, dict[Scope, Segments]] = WeakKeyDictionary()


@torch.no_grad()
def clip_grad_(
    parameters: Source,
    policy: Policy,
    state: State | Mapping[str, Tensor] | None = None,
    scope: Scope = "global",
    norm_type: float = 2.0,
) -> tuple[Report, State]:
    r"""Clip gradients in place so that no segment's norm exceeds the policy's target.

    With the segment norms n and the policy's targets t, each segment k is scaled by
    :math:`c_k = \min(1, t_k / n_k)`; a segment whose norm is zero or not finite is left alone.

    Args:
        parameters: A module (scopes "global", "layer", "parameter", "unit"), an optimizer (all but "layer") or an
            iterable of tensors (all but "layer" and "group"). Call it after ``backward`` and, with a GradScaler,
            after ``scaler.unscale_(optimizer)``.
        policy: What judges the norms, such as ``MaxNorm(1.0)`` or ``ZScore()``.
        state: What this function returned last time, or its ``_asdict()`` from a checkpoint; None starts afresh.
        scope: What makes a segment.
        norm_type: The p of the p-norm, above 0; ``math.inf`` for the largest magnitude.

    Returns:
        The report, K-shaped tensors, and the policy's state for the next call: a NamedTuple of tensors
        (``state._asdict()`` for a checkpoint).

    Raises:
        TypeError: If ``policy`` is not a policy, or ``parameters`` holds something else than tensors.
        ValueError: If the scope cannot be told from ``parameters``, the state is of another policy or of other
            segments, or it would take over 64 MB.

    Example:
        >>> import torch
        >>> from lightning_calib import MaxNorm
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> report, state = clip_grad_([weight], MaxNorm(1.0))
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
    if not isinstance(policy, Policy):
        remedy = (
            f"Write `MaxNorm({told(policy)})`."
            if isinstance(policy, (int, float))
            else "Pass for instance MaxNorm(1.0)."
        )
        raise TypeError(message("policy", "a policy of this package", policy, remedy))
    check_norm_type(norm_type)
    check_scope(scope)
    segments = _segments(parameters, scope)
    plan = segments.plan
    reading = measure(plan, gradients := plan.gradients(), norm_type, units=scope == "unit")
    observation = observe(segments, reading, weights=policy.needs_weights)
    before = fresh_state(policy, segments) if state is None else take_up(policy, state, segments)
    report, after = judge(policy, observation, before)
    rescale_(plan, gradients, segments.spread(report.coefficients))
    return report, after


def check_norm_type(norm_type: object) -> None:
    """Accept a p of (0, inf]."""
    check_number("norm_type", norm_type, "Use 2.0 (Euclidean) or math.inf (largest magnitude).", 0, ends="(]")


def _segments(source: Source, scope: Scope) -> Segments:
    if not isinstance(source, (nn.Module, Optimizer)):
        return Segments.of(Plan.of(source), scope)
    known = _laid.setdefault(source, {}).get(scope)
    if known is None or not known.plan.holds(tensors_of(source)):
        known = _laid[source][scope] = Segments.of(Plan.of(source), scope)
    return known
