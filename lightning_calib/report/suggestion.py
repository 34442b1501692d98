"""Which clip value: one answer for each optimizer, with its reason and a line to paste.

The findings of the report come first: where one of them says what to do about a clip, its value is the answer. Without
such a finding the norms of the recent window (the last half of the rows) decide. A clip of the whole norm is for
outliers, and there are some where a norm stands out of those around it as for `SpikeGuard`: three times the median of
the eleven rows around it, and its logarithm four standard deviations above (0 of 4,800 healthy steps did; at 2.5
deviations without the three times, 260). Then the value is the 95th percentile of the window, else none is needed: with
SGD a lower one would only lower the learning rate, and Adam and its kin, Lion and Muon divide the scale out again.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lightning_calib.report.detectors.clip_below_eps import acting, alike_low
from lightning_calib.report.finding import Finding
from lightning_calib.report.loss_course import noise_of
from lightning_calib.report.measured import SCALE_FREE, Measured, finite
from lightning_calib.report.rules import rules_line
from lightning_calib.report.shadow import ShadowResult
from lightning_calib.report.wording import count, decimal, percent, times

_BY_LAYER = 'GradientClip(Percentile(95), scope="layer")'
Answer = Literal["clip", "keep", "none", "unknown"]
_ENOUGH = 20  # steps; the 95th percentile of fewer is their largest
_LEAST = 4  # rows, of whose differences a deviation can be told
_TIMES = 3.0
_DEVIATIONS = 4.0
_ROWS = 5  # before a norm, and as many behind it: what is around it
_DRIFT = 2.0  # between the medians of the window's two halves: a factor that a search for a rate would notice
_RISING = 1.1
_BROKEN = ("diverged", "nonfinite", "rate-too-high")  # no value is known to mend it ...
_TOLD = ("clip-below-eps", "clip-cuts-rate", "exploding", "spike")  # ... and findings that name one


class Suggestion(NamedTuple):
    """The clip value of one optimizer.

    Attributes:
        answer: "clip": use `value`; "keep": the clip in force is right; "none": none is needed; "unknown": the run does
            not tell.
        value: Largest norm of the whole gradient, with two digits; None where there is no number.
        reason: Why, in sentences with their numbers.
        trainer: An argument of the Trainer, such as "gradient_clip_val=0.47"; empty where it has none that does it.
        callback: A callback of ours that does the same, such as "GradientClip(0.47)"; of several optimizers one for
            all; empty where none is needed, and under DeepSpeed, which refuses it.
        policy: What the callback judges this optimizer's gradient by, such as "MaxNorm(0.47)" or "ZScore()"; empty
            where there is no callback, or where only its rules do it.
        optimizer: Its place among the optimizers.
        clip_rate: Share of the steps of the window whose norm was above `value`, in [0, 1]; nan without a value.
        window: Steps of the recent window that it is taken from.

    Example:
        >>> str(Suggestion("clip", 0.47, "Two norms stood far out.", "gradient_clip_val=0.47", "GradientClip(0.47)"))
        'gradient_clip_val=0.47, or callbacks=[GradientClip(0.47)]. Two norms stood far out.'
    """

    answer: Answer
    value: float | None
    reason: str
    trainer: str = ""
    callback: str = ""
    policy: str = ""
    optimizer: int = 0
    clip_rate: float = float("nan")
    window: int = 0

    def __str__(self) -> str:
        if self.answer == "none":
            return f"You need none. {self.reason}"
        lines = [one for one in (self.trainer, f"callbacks=[{self.callback}]" if self.callback else "") if one]
        if not lines and self.value is None:
            return f"No value can be told from this run. {self.reason}" if self.answer == "unknown" else self.reason
        said = ", or ".join(lines) or f"Its clip value is {self.value:g}"
        return f"{'Keep ' if self.answer == 'keep' and lines else ''}{said}. {self.reason}"


def suggest(
    measured: Sequence[Measured], findings: Sequence[Finding], shadows: Sequence[ShadowResult] = ()
) -> tuple[Suggestion, ...]:
    """One answer for each optimizer; of several they share the line for a callback.

    Args:
        measured: One for each optimizer.
        findings: Of the same report.
        shadows: Of the same report: what a policy that follows would have done.
    """
    found = [_one(seen, [one for one in findings if one.optimizer in (None, _place(seen))]) for seen in measured]
    found = [_judged(one, shadows) for one in found]
    if len(found) < 2:
        return tuple(found)
    names = [one.run.layers.names if one.run.layers is not None else () for one in measured]
    line = rules_line(names, [one.callback for one in found])
    return tuple(one._replace(callback=line if one.callback else "") for one in found)


def _one(seen: Measured, findings: Sequence[Finding]) -> Suggestion:
    found = _of_findings(seen, {one.code: one for one in findings}) or _of_norms(seen)
    return found._replace(optimizer=_place(seen), window=seen.window)


def _judged(one: Suggestion, shadows: Sequence[ShadowResult]) -> Suggestion:
    """What the suggested policy would have done, if it was judged on every step; of a fixed value the norms tell."""
    for shadow in shadows:
        if (shadow.name, shadow.scope, shadow.optimizer) == (one.policy, "global", one.optimizer) and shadow.clip_rate:
            rate = f"{percent(shadow.clip_rate)} of {count(shadow.steps, 'step')}"
            told = f"{shadow.name}, judged on every step, would have reduced {rate}."
            return one._replace(reason=f"{one.reason} {told}")
    return one


def _place(seen: Measured) -> int:
    return seen.run.facts.position


def _of_findings(seen: Measured, found: dict[str, Finding]) -> Suggestion | None:
    """What the findings say of a clip; None where they leave it open."""
    broken = next((found[code] for code in _BROKEN if code in found and found[code].severity == "act"), None)
    if broken is not None:
        healthy = broken.evidence.get("suggested_max_norm", float("nan"))
        return _clip(seen, healthy, "")._replace(reason=_said(broken))  # how it blew up is no prediction
    told = found.get("dominated")
    if told is not None and seen.run.facts.engine:
        return _clip(seen, seen.high, _said(told))
    if told is not None:
        return Suggestion("clip", None, _said(told), callback=_quoted(told.advice))
    told = found.get("clip-twice")
    if told is not None:
        clippers = acting(seen)
        known = [one.max_norm for one in clippers if one.max_norm is not None]
        if len(known) < len(clippers):  # which of them is lower is not known
            return Suggestion("unknown", None, _said(told))
        return _clip(seen, min(known), _said(told), "keep")
    told = next((found[code] for code in _TOLD if code in found), None)
    if told is not None and "suggested_max_norm" in told.evidence:
        return _clip(seen, told.evidence["suggested_max_norm"], _said(told))
    if told is not None and seen.run.facts.engine:
        return _clip(seen, seen.high, _said(told))
    if told is not None:  # a depth that explodes is clipped by layers
        return Suggestion("clip", None, _said(told), callback=_BY_LAYER, policy="Percentile(95)")
    return _always(seen, found["clip-always"]) if "clip-always" in found else None


def _always(seen: Measured, found: Finding) -> Suggestion:
    """A clip that fires on every step: with Adam and its kin it may stay, unless eps shows."""
    value, low = found.evidence.get("max_norm"), alike_low(seen)
    if not seen.scale_free or value is None:
        return _clip(seen, seen.high, _said(found))
    if np.isfinite(low) and value < low:
        return _clip(seen, max(seen.high, low), _said(found))
    return _clip(seen, value, _said(found), "keep")


def _of_norms(seen: Measured) -> Suggestion:
    """Without a finding: a clip is for outliers, and none is needed without them."""
    if seen.run.counts.usable < _ENOUGH:
        few = count(seen.run.counts.usable, "optimizer step")
        return Suggestion("unknown", None, f"There were {few} with a norm above zero: {_ENOUGH} are needed.")
    if len(seen.norms) < _LEAST:
        few = count(len(seen.norms), "logged row")
        return Suggestion("unknown", None, f"There were {few} in the last half of the run: {_LEAST} are needed.")
    (highest, median), low = _farthest(seen), alike_low(seen)
    names = seen.run.facts.optimizer
    largest = (
        f"In the last {seen.window:,} steps the norm that stood out most, {highest:.3g}, was "
        f"{times(highest / median)} times the median around it, {median:.3g}"
    )
    there = " and ".join(f"{one.name}, which is there" for one in acting(seen) if one.clip_rate)
    there = f" {there}, may stay: nothing speaks against it." if there else ""
    if any(one.kind == "normalise" for one in acting(seen)):
        return Suggestion("none", None, "The norm of the gradient is set already: nothing is left to clip.")
    noise = noise_of(np.log(seen.norms))
    if highest < _TIMES * median or np.log(highest / median) < _DEVIATIONS * noise:
        why = f"{largest}: no outlier stands out. {_lower(seen)}{there}{_rising(seen)}"
        return Suggestion("none", None, why)
    if seen.high < low:
        why = f"{largest}, but the eps of {names} shows at {decimal(low)} already, and a clip would make it worse."
        return Suggestion("none", None, why + there)
    why = f"{largest}: {decimal(seen.high)}, the 95th percentile, takes the outliers only. {_lower(seen)}"
    first, second = (float(np.median(half)) for half in np.array_split(seen.norms, 2))
    found = _clip(seen, seen.high, why + there + _rising(seen))
    if max(first, second) > _DRIFT * min(first, second) and not seen.run.facts.engine:
        why += f" The norm moved from {first:.3g} to {second:.3g} in these steps: a threshold that follows is better."
        found = found._replace(reason=why + there + _rising(seen), callback="ZClip()", policy="ZScore()")
    return found


def _lower(seen: Measured) -> str:
    """What a lower value would do, by kind of optimizer."""
    names, free = seen.run.facts.optimizer, bool(seen.kinds & set(SCALE_FREE))
    if seen.scale_free:
        return f"{names} divides a factor that all steps share out again: a value that always fires changes little."
    part = " for a part of the parameters" if free else ""
    return f"With {names} a lower value would only lower the learning rate{part}."


def _rising(seen: Measured) -> str:
    """Whether a warm-up goes on, behind which the norms are others."""
    rates = finite(seen.run.scalars.lr[seen.recent])
    rising = len(rates) > 1 and rates[-1] == rates.max() > _RISING * rates[0]
    return " The learning rate was still rising: ask again behind the warm-up." if rising else ""


def _farthest(seen: Measured) -> tuple[float, float]:
    """The norm of the window that is farthest above the median of the rows around it, and that median.

    Norms of steps between two rows are among them.
    """
    scalars = seen.run.scalars
    norms, tops = scalars.grad_norm_before, np.fmax(scalars.grad_norm_max, scalars.grad_norm_before)
    usable = np.flatnonzero(np.isfinite(norms) & (norms > 0) & np.isfinite(tops))
    norms, tops = norms[usable], tops[usable]
    first = int(np.searchsorted(usable, seen.recent.start))
    pairs = [
        (float(tops[i]), float(np.median(norms[max(0, i - _ROWS) : i + _ROWS + 1]))) for i in range(first, len(norms))
    ]
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def _clip(seen: Measured, value: float, reason: str, answer: Answer = "clip") -> Suggestion:
    if not (np.isfinite(value) and value > 0):
        return Suggestion("unknown", None, reason)
    text = f"{value:g}" if answer == "keep" else decimal(value)
    trainer = "" if seen.run.facts.manual else f"gradient_clip_val={text}"
    share = float(np.mean(seen.norms > float(text))) if len(seen.norms) else float("nan")
    if answer == "clip" and len(seen.norms):
        reason += f" It would have reduced {percent(share)} of the last {seen.window:,} steps."
    ours = ("", "") if seen.run.facts.engine else (f"GradientClip({text})", f"MaxNorm({text})")
    return Suggestion(answer, float(text), reason, trainer, *ours, clip_rate=share)


def _said(finding: Finding) -> str:
    return f"{finding.sentence} {finding.advice}".rstrip()


def _quoted(advice: str) -> str:
    """The callback that an advice gives to paste, as in "`callbacks=[...]`"."""
    return advice.partition("`callbacks=[")[2].rpartition("]`")[0]
