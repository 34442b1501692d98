"""The first sentence of a report, and at most two more."""

from collections.abc import Sequence

import numpy as np

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite
from lightning_calib.report.wording import count, percent, was

_ENOUGH = 20  # steps; of fewer nothing can be said of the course of a run


def verdict(measured: Sequence[Measured], findings: Sequence[Finding]) -> str:
    """The most important finding's sentence, or that nothing is wrong, with the two numbers that matter."""
    if findings and findings[0].severity != "note":
        return findings[0].sentence
    if not measured:
        return "No optimizer step has been seen yet."
    seen = measured[0]
    steps = sum(one.run.counts.steps for one in measured)
    span = count(steps, "optimizer step")
    so_far = f" in {span}, too few to say much" if steps < _ENOUGH else f" in {span}"
    loss, ratio = seen.loss, seen.update_ratio
    numbers = []
    if len(measured) == 1 and np.isfinite([loss.first, loss.last]).all():
        way = "fell" if loss.last < loss.first and loss.learned is not False else "went"
        numbers.append(f"the loss {way} from {loss.first:.3g} to {loss.last:.3g}")
    elif len(seen.norms):
        numbers.append(f"the gradient norm is usually {np.median(seen.norms):.3g}")
    if np.isfinite(ratio):
        numbers.append(f"a step changes the weights by {percent(ratio)}")
    elif len(numbers) == 1 and len(seen.norms) and "loss" in numbers[0]:
        numbers.append(f"the gradient norm is usually {np.median(seen.norms):.3g}")
    told = " and ".join(numbers) if numbers else "no gradient was inf or nan"
    if len(measured) == 1 and loss.learned is False:
        return f"Nothing is wrong that gradients show, but the loss has not fallen: {told}{so_far}."
    return f"Nothing is wrong: {told}{so_far}."


def rest(measured: Sequence[Measured], findings: Sequence[Finding]) -> list[str]:
    """At most two more sentences: what to change (or the first note), and the norms with what went wrong."""
    seen = [one for one in measured if one.run.counts.steps]
    if not seen:
        return [findings[0].advice] if findings and findings[0].advice else []
    first = findings[0] if findings else None
    sentences = []
    if first is not None:
        sentences.append(first.sentence if first.severity == "note" else _one_sentence(first.advice))
    sentences.append(_norms(seen))
    return [one for one in sentences if one][:2]


def _one_sentence(text: str) -> str:
    """Joined with semicolons, so that it counts as one."""
    return text.rstrip(".").replace(". ", "; ") + "." if text else ""


def _norms(measured: Sequence[Measured]) -> str:
    several = len(measured) > 1
    parts = []
    for one in measured:
        facts, counts = one.run.facts, one.run.counts
        norms = finite(one.run.scalars.grad_norm_before)
        norms = norms[norms > 0]
        named = f"optimizer {facts.position} ({facts.optimizer}): " if several else ""
        span = (
            f"in the {count(counts.steps, 'optimizer step')} of this fit"
            if counts.earlier
            else f"in {count(counts.steps, 'optimizer step')}"
        )
        if not len(norms):
            parts.append(f"{named}{span} no gradient was finite and above zero")
            continue
        text = f"{named}{span} the gradient norm ran from {norms.min():.3g} to {_highest(one, norms):.3g}"
        text += f" (half of them up to {np.median(norms):.3g}, 95 % up to {np.percentile(norms, 95):.3g})"
        text += "" if acting(one) else ", and nothing clipped it"
        if counts.nonfinite or counts.skipped:
            text += f", {count(counts.nonfinite, 'step')} had one that was inf or nan, and {count(counts.skipped, 'step')} {was(counts.skipped)} skipped"
        parts.append(text)
    joined = "; ".join(parts)
    return joined[0].upper() + joined[1:] + "."


def _highest(one: Measured, norms: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    maxima = finite(one.run.scalars.grad_norm_max)
    return float(max(norms.max(), maxima.max(initial=0.0)))
