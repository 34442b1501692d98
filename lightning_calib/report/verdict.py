"""The first sentence of a report, and at most two more."""

from collections.abc import Sequence

import numpy as np

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite
from lightning_calib.report.wording import count, percent, was

_ENOUGH = 20  # steps; of fewer nothing can be said of the course of a run
_TENTH = 0.1  # of the first loss: a fall that large is one, whatever the noise


def verdict(measured: Sequence[Measured], findings: Sequence[Finding]) -> str:
    """The most important finding's sentence, or that nothing is wrong, with the two numbers that matter."""
    if findings and findings[0].severity != "note":
        return findings[0].sentence
    if not measured:
        return "No optimizer step has been seen yet."
    seen = measured[0]
    steps = sum(one.run.counts.steps for one in measured)
    few = f" ({count(steps, 'optimizer step')}: too few to say much)" if steps < _ENOUGH else ""
    loss, ratio = seen.loss, seen.update_ratio
    alone = len(measured) == 1 and bool(np.isfinite([loss.first, loss.last]).all())
    flat = alone and loss.learned is False and loss.first - loss.last < _TENTH * abs(loss.first)
    numbers = []
    if alone:
        way = "fell" if loss.last < loss.first and not flat else "went"
        numbers.append(f"the loss {way} from {loss.first:.3g} to {loss.last:.3g}")
    if np.isfinite(ratio):
        numbers.append(f"a step changes the weights by {percent(ratio)}")
    if len(numbers) < 2 and len(seen.norms):
        numbers.insert(0, f"the gradient norm is usually {np.median(seen.norms):.3g}")
    told = " and ".join(numbers) if numbers else "no gradient was inf or nan"
    sentence = "Nothing is wrong that gradients show, but the loss has not fallen" if flat else "Nothing is wrong"
    return f"{sentence}: {told}{few}."


def rest(measured: Sequence[Measured], findings: Sequence[Finding]) -> list[str]:
    """At most two more sentences: what to change (or the first note), and the norms with what went wrong."""
    seen = [one for one in measured if one.run.counts.steps]
    if not seen:
        return [_first_sentence(findings[0].advice)] if findings and findings[0].advice else []
    first = findings[0] if findings else None
    sentences = []
    if first is not None:
        sentences.append(first.sentence if first.severity == "note" else _first_sentence(first.advice))
    sentences.append(_norms(seen))
    return [one for one in sentences if one][:2]


def _first_sentence(text: str) -> str:
    """The first of several."""
    return text.split(". ")[0].rstrip(".") + "." if text else ""


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
        text += f"; {count(counts.nonfinite, 'step')} had one that was inf or nan" if counts.nonfinite else ""
        text += f"; {count(counts.skipped, 'step')} {was(counts.skipped)} skipped" if counts.skipped else ""
        parts.append(text)
    joined = "; ".join(parts)
    return joined[0].upper() + joined[1:] + "."


def _highest(one: Measured, norms: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    maxima = finite(one.run.scalars.grad_norm_max)
    return float(max(norms.max(), maxima.max(initial=0.0)))
