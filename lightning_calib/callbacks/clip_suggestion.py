"""What `clip_find` has found: a value or a policy, the table behind it, a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isfinite, nan
from typing import Any

from lightning_calib.functional.judge import Policy
from lightning_calib.functional.max_norm import MaxNorm
from lightning_calib.policies import Percentile, ZScore
from lightning_calib.report.report import Report
from lightning_calib.report.shadow import ShadowResult
from lightning_calib.report.suggestion import Suggestion

_POLICIES = {"ZScore()": ZScore(), "Percentile(95)": Percentile(95)}


@dataclass(frozen=True, eq=False, repr=False)
class ClipSuggestion:
    """The answer of `clip_find`: which clip value, or that none is needed. `str` says it with its reason.

    Its `repr` is a callback to paste, such as ``GradientClip(0.47)``; where no value is suggested it is
    ``GradientClip(None)``, which clips nothing. Where no one callback does it, as no pattern tells the
    parameters of several optimizers apart, it is ``<...>`` with the values, which cannot be pasted.

    Args:
        report: Of the short run.

    Attributes:
        suggestions: One `Suggestion` for each optimizer: answer, reason, a line for the Trainer and one for a callback.
        value: Largest norm of the whole gradient, None where there is no number; of several optimizers a tuple, in
            their order.
        policy: What to give to ``GradientClip`` for the whole gradient: `MaxNorm` of the value, or a policy that
            follows where the norms moved; None where none is needed, or where only rules do it; of several optimizers
            a tuple. A scope or rules that belong to the answer are in the `repr` alone.
        table: What each policy that was judged would have done, as `Report.shadow`.

    Raises:
        TypeError: If ``report`` is not a `Report`.

    Example:
        >>> from lightning_calib import ClipSuggestion, Report
        >>> ClipSuggestion(Report([]))
        GradientClip(None)
    """

    report: Report

    def __post_init__(self) -> None:
        if not isinstance(self.report, Report):
            raise TypeError(f"`report` must be a Report, got {self.report!r}. Use `clip_find(trainer, model)`.")

    @property
    def suggestions(self) -> tuple[Suggestion, ...]:
        """One for each optimizer."""
        return self.report.suggestion

    @property
    def value(self) -> float | tuple[float | None, ...] | None:
        """The clip value, or one for each optimizer."""
        found: float | tuple[float | None, ...] | None = _only([one.value for one in self.suggestions])
        return found

    @property
    def policy(self) -> Policy | tuple[Policy | None, ...] | None:
        """The policy for ``GradientClip``, or one for each optimizer."""
        found: Policy | tuple[Policy | None, ...] | None = _only([_policy(one) for one in self.suggestions])
        return found

    @property
    def table(self) -> tuple[ShadowResult, ...]:
        """What each policy that was judged would have done."""
        return self.report.shadow

    def plot(self, ax: Any = None) -> Any:
        """The norms of all steps, the suggested value, the thresholds of the policies, and where they would clip.

        Args:
            ax: Axes of matplotlib; of several optimizers a sequence with one for each. None for a new figure.

        Returns:
            The figure.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        try:
            pyplot = import_module("matplotlib.pyplot")
        except ImportError as trouble:
            raise ModuleNotFoundError(
                "`plot` needs matplotlib, which is not installed. Install it with `pip install matplotlib`, or read "
                "the numbers in `table`."
            ) from trouble
        runs = self.report.runs
        if ax is None:
            _, ax = pyplot.subplots(max(1, len(runs)), 1, squeeze=False, sharex=True)
            ax = ax[:, 0]
        axes: Any = ax if isinstance(ax, Sequence) or hasattr(ax, "__len__") else [ax]
        for one, run, place in zip(self.suggestions, runs, axes, strict=False):
            shadows = [each for each in self.table if each.optimizer == one.optimizer]
            _draw(place, one, run.scalars.step.tolist(), run.scalars.grad_norm_before.tolist(), shadows)
        return axes[0].figure

    def __repr__(self) -> str:
        line = next((one.callback for one in self.suggestions if one.callback), "")
        if not line and any(one.answer in ("clip", "keep") for one in self.suggestions):
            return f"<no one callback does it; value: {self.value}>"
        return line or "GradientClip(None)"

    def __str__(self) -> str:
        several = len(self.suggestions) > 1
        return "\n".join(f"Optimizer {one.optimizer}: {one}" if several else str(one) for one in self.suggestions)


def _only(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values) if values else None


def _policy(one: Suggestion) -> Policy | None:
    fixed = MaxNorm(one.value) if one.value is not None and one.policy.startswith("MaxNorm(") else None
    return _POLICIES.get(one.policy, fixed)


def _draw(ax: Any, one: Suggestion, steps: list[int], norms: list[float], shadows: list[ShadowResult]) -> None:
    """One optimizer."""
    norms = [norm if isfinite(norm) else nan for norm in norms]
    ax.plot(steps, norms, color="0.4", linewidth=1, label="gradient norm")
    for shadow in shadows:
        if shadow.course is not None and shadow.clip_rate is not None:
            threshold = [nan if value is None else value for value in shadow.course.threshold]
            ax.plot(shadow.course.step, threshold, linewidth=1, label=f"{shadow.name}: {100 * shadow.clip_rate:.3g} %")
    if one.value is not None:
        ax.axhline(one.value, color="tab:red", linestyle="--", label=f"suggested: {one.value:g}")
        above = [(step, norm) for step, norm in zip(steps, norms, strict=True) if norm > one.value]
        ax.plot([step for step, _ in above], [norm for _, norm in above], ".", color="tab:red")
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("gradient norm")
    ax.legend(fontsize="small")
