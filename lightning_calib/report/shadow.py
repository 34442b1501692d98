"""Shadows: what policies would have done that were judged on every step and never applied."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_calib.report.run import Floats
from lightning_calib.report.shadow_rows import ShadowRows
from lightning_calib.report.wording import count, percent

LIMITS = "To first order: had one of them acted, the norms after it would have been others."


class ShadowCourse(NamedTuple):
    """A shadow over time, in at most some hundred rows.

    Attributes:
        step: Of each row, ascending.
        threshold: Norm above which it would have reduced the gradient; the median over segments. None where none was
            judged.
        clip_rate: Share of the steps since the row before on which it would have, in [0, 1].
    """

    step: tuple[int, ...] = ()
    threshold: tuple[float | None, ...] = ()
    clip_rate: tuple[float | None, ...] = ()


class ShadowResult(NamedTuple):
    """What one policy would have done to one optimizer's gradients, judged on every step and never applied.

    Numbers are of the norms of the run as it was. What a shadow cannot know: acting changes the weights, and so every
    later norm. The prediction is of first order: good for thresholds that fire seldom, under Adam and its kin. Near the
    usual norm it is off by ten points and more, and with SGD, where a clipped step is a shorter one, the real rate is
    often far higher.

    Attributes:
        name: As it was given, without arguments at their defaults, or the callback's ``name``.
        policy: As a constructor's call; of a callback with rules those, too.
        clip_rate: Share of the steps with a gradient on which it would have reduced the gradient, in [0, 1]; None
            before the first.
        mean_factor: Mean over steps of the mean over segments of what a segment would have been multiplied by.
        lowest_factor: The least that any segment would have been multiplied by.
        threshold: The last target norm; the median over segments. None where none was judged, as in a warm-up.
        optimizer: Index of the optimizer.
        scope: What makes a segment.
        kept: Mean over steps of the share of the gradient's norm, the step's length, that would have been left.
        agreement: Share of the steps on which it would have reduced the gradient and somebody did, or neither; None
            where nobody clips, or where it is not known who reduced what.
        steps: Steps with a gradient that it was judged over; skipped ones count as not reduced.
        course: Its threshold and rate over time; None where they are not known.

    Example:
        >>> from lightning_calib import ShadowResult
        >>> result = ShadowResult("MaxNorm(1.0)", "MaxNorm(max_norm=1.0)", 0.04, 0.99, 0.5, 1.0)
        >>> f"{result.name} would have clipped {result.clip_rate:.0%} of the steps"
        'MaxNorm(1.0) would have clipped 4% of the steps'
    """

    name: str
    policy: str
    clip_rate: float | None
    mean_factor: float | None = None
    lowest_factor: float | None = None
    threshold: float | None = None
    optimizer: int = 0
    scope: str = "global"
    kept: float | None = None
    agreement: float | None = None
    steps: int = 0
    course: ShadowCourse | None = None


_LAST = ("clip_rate", "mean_factor", "lowest_factor", "kept", "agreement")


def shadow_results(rows: ShadowRows, optimizer: int) -> tuple[ShadowResult, ...]:
    """One result for each shadow: the last row says what is counted, the rows how it went."""
    found = []
    for place, (name, policy, scope) in enumerate(zip(rows.names, rows.policies, rows.scopes, strict=True)):
        mine = {key: values[:, place] for key, values in rows.values.items()}
        steps = _last(mine["steps"])
        found.append(
            ShadowResult(
                name=name,
                policy=policy,
                scope=scope,
                optimizer=optimizer,
                threshold=_last_known(mine["threshold"]),
                steps=int(steps or 0),
                course=ShadowCourse(
                    tuple(rows.step.tolist()), _plain(mine["threshold"]), _plain(mine["clip_fraction"])
                ),
                **{key: _last(mine[key]) for key in _LAST},
            )
        )
    return tuple(found)


def sentence(one: ShadowResult, *, several: bool) -> str:
    """A line of the report's text; ``several`` optimizers are named."""
    name = f"{one.name}, optimizer {one.optimizer}" if several else one.name
    if one.clip_rate is None:
        return f"{name}: no step was judged."
    parts = [f"would have reduced {percent(one.clip_rate)} of {count(one.steps, 'step')}"]
    if one.kept is not None and one.lowest_factor is not None:
        parts.append(f"left {percent(one.kept)} of the length (lowest factor {one.lowest_factor:.3g})")
    parts.append("no threshold yet" if one.threshold is None else f"threshold {one.threshold:.3g}")
    if one.agreement is not None:
        parts.append(f"as what really clips on {percent(one.agreement)}")
    return f"{name}: {', '.join(parts)}."


def table(results: Sequence[ShadowResult]) -> list[dict[str, Any]]:
    """Rows of the report's Markdown."""
    return [{key: value for key, value in one._asdict().items() if key not in ("course", "policy")} for one in results]


def _last(values: Floats) -> float | None:
    return _number(values[-1]) if len(values) else None


def _last_known(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else None


def _plain(values: Floats) -> tuple[float | None, ...]:
    return tuple(_number(value) for value in values)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
