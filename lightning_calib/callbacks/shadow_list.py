"""What GradientMonitor takes as ``shadow``: policies, numbers or callbacks of ours, each as what would judge it."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from inspect import Parameter
from typing import Any

from lightning_calib.callbacks.gradient_clip import GradientClip
from lightning_calib.callbacks.public import arguments_of
from lightning_calib.callbacks.published import AdaGC
from lightning_calib.callbacks.segment_rescaler import SegmentRescaler
from lightning_calib.fit.participant import FitStart
from lightning_calib.fit.shadow_keeper import ShadowKeeper
from lightning_calib.fit.trainer_facts import engine_of
from lightning_calib.functional.checks import message
from lightning_calib.functional.judge import Policy
from lightning_calib.functional.max_norm import MaxNorm
from lightning_calib.policies import Percentile, ZScore
from lightning_calib.report.shadow_rows import ShadowNames
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.saved_state import Losses
from lightning_calib.steps.shadows import Shadow

Shadows = Sequence[Policy | SegmentRescaler | float] | bool | None
_REMEDY = "Use for instance [MaxNorm(1.0), ZScore(), AGC()], or True for a sensible set."


def sensible() -> list[Policy | SegmentRescaler]:
    """What ``shadow=True`` stands for: needs no reading beyond the one of every step."""
    return [MaxNorm(1.0), Percentile(90.0), Percentile(95.0), ZScore(), AdaGC()]


class ShadowList:
    """The shadows of a monitor.

    Args:
        shadow: As the user gives it.

    Attributes:
        judges: A callback for each, which knows its scope, norm and rules; it takes no part in the fit.
        names: Distinct.

    Raises:
        TypeError: If ``shadow`` is no list, or has something else than numbers, policies and callbacks that rescale.
        ValueError: If a number is out of range, or if two of the list are the same.
    """

    def __init__(self, shadow: Shadows) -> None:
        given: Any = sensible() if shadow is True else [] if shadow is None or shadow is False else shadow
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
            raise TypeError(message("shadow", "a list of policies or callbacks of ours, True or None", shadow, _REMEDY))
        self.judges: list[SegmentRescaler] = [_judge(i, one) for i, one in enumerate(given)]
        self.names: list[str] = [_name(one, judge) for one, judge in zip(given, self.judges, strict=True)]
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            remedy = "Leave one of them out, or give callbacks names: GradientClip(..., name='mine')."
            raise ValueError(message("shadow", "a list of different entries", [twice, twice], remedy))

    def __bool__(self) -> bool:
        return bool(self.judges)

    @property
    def rereads(self) -> str:
        """Why gradients or weights are read once more, for the start line."""
        why = [f"norm_type {kind:g}" for kind in sorted({one.norm_type for one in self.judges} - {2.0})]
        why += ["the norms of units"] if any(one.scope == "unit" for one in self.judges) else []
        return f"gradients are read once more for shadows ({', '.join(why)})" if why else ""

    @property
    def about(self) -> ShadowNames:
        """What they are."""
        scopes = tuple(str(one.scope) for one in self.judges)
        return ShadowNames(tuple(self.names), tuple(map(_policy, self.judges)), scopes)

    def keeper(
        self, fit: FitStart, *, saved: dict[str, Any], losses: Losses, warn: Callable[[str], None]
    ) -> ShadowKeeper | None:
        """What judges them in a fit; None without any.

        Raises:
            ValueError: If a glob of a rule matches no parameter.
        """
        for one in self.judges:
            one._learn(fit)
        if not self:
            return None
        engine = engine_of(fit.trainer)
        if engine is not None:
            remedy = "Leave `shadow` out, or use FSDP1, FSDP2 or DDP."
            warn(f"GradientMonitor judges no shadow under {engine}, which keeps the gradients to itself. {remedy}")
            return None
        return ShadowKeeper(self.about, self._lay, saved=saved, losses=losses, warn=warn)

    def _lay(self, view: GradientView) -> list[Shadow]:
        return [Shadow(one._lay(view), one.norm_type, clip=one._clip) for one in self.judges]


def _judge(place: int, one: object) -> SegmentRescaler:
    if isinstance(one, SegmentRescaler):
        return one
    if isinstance(one, Policy) or (isinstance(one, (int, float)) and not isinstance(one, bool)):
        try:
            return GradientClip(one)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`shadow[{place}]` is judged as a clip: {error}") from None
    rule = "a number, a policy, or a callback that clips or normalises by one"
    raise TypeError(message(f"shadow[{place}]", rule, one, _REMEDY))


def _name(given: Any, judge: SegmentRescaler) -> str:
    return judge.name or written(given if isinstance(given, SegmentRescaler) else judge.policy)


def _policy(judge: SegmentRescaler) -> str:
    return repr(judge.policy) + (f", rules={judge.rules!r}" if judge.rules else "")


def written(value: Any) -> str:
    """A policy's or a callback's constructor call without what is at its default; the first argument has no name."""
    if isinstance(value, SegmentRescaler):
        arguments = arguments_of(type(value)).items()
        known = {name: (getattr(value, name, one.default), one.default) for name, one in arguments}
    elif is_dataclass(value) and not isinstance(value, type):
        known = {one.name: (getattr(value, one.name), one.default) for one in fields(value) if one.init}
    else:
        return repr(value)
    first = next(iter(known), None)
    shown = [
        written(now) if name == first else f"{name}={written(now)}"
        for name, (now, default) in known.items()
        if now is not Parameter.empty and not _equal(now, default)
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def _equal(now: Any, default: Any) -> bool:
    """An argument that is None may stand for nothing, such as no rules."""
    return bool(now == default) or (default is None and now in ({}, (), []))
