"""The first sentence of a report, and at most two more."""

from collections.abc import Sequence

import numpy as np

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite
from lightning_calib.report.run import Counts, Norms
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
    known = loss.learned is False or (loss.learned is None and loss.last > loss.first)  # of few rows nobody knows
    flat = alone and known and loss.first - loss.last < _TENTH * abs(loss.first)
    if flat and loss.learned is None and not few:
        few = f" ({count(len(seen.run.scalars.step), 'logged row')}: too few to say much)"
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
    sentences.append(_norms(seen, told=any(one.code.startswith("clip-") for one in findings[:1])))
    return [one for one in sentences if one][:2]


def _first_sentence(text: str) -> str:
    """The first of several."""
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def _norms(measured: Sequence[Measured], *, told: bool) -> str:
    several = len(measured) > 1
    parts = []
    for one in measured:
        facts, counts = one.run.facts, one.run.counts
        named = f"optimizer {facts.position} ({facts.optimizer}): " if several else ""
        text = f"{named}in {_span(counts)}{_range(one)}"
        text += "" if told else _clipping(one)
        text += f"; {count(counts.nonfinite, 'step')} had one that was inf or nan" if counts.nonfinite else ""
        text += f"; {count(counts.skipped, 'step')} {was(counts.skipped)} skipped" if counts.skipped else ""
        text += f"; {count(counts.rewound, 'step')} {was(counts.rewound)} undone by a rewind" if counts.rewound else ""
        parts.append(text)
    joined = "; ".join(parts)
    return joined[0].upper() + joined[1:] + "."


def _span(counts: Counts) -> str:
    steps = count(counts.steps, "optimizer step")
    return f"the {steps} of this fit" if counts.earlier else steps


def _range(one: Measured) -> str:
    """Of all steps where they are known, as in a fit; event files have those of the rows, and the largest of all."""
    norms, rows = one.run.norms, finite(one.run.scalars.grad_norm_before)
    rows = rows[rows > 0]
    if norms is None and not len(rows):
        return " no gradient was finite and above zero"
    where = "" if norms is not None else f" ({count(len(rows), 'logged row')})"
    if norms is None:
        highest = max(rows.max(), finite(one.run.scalars.grad_norm_max).max(initial=0.0))
        norms = Norms(rows.min(), float(np.median(rows)), float(np.percentile(rows, 95)), float(highest))
    if norms.lowest == norms.highest:
        return f"{where} the gradient norm was {norms.highest:.3g}"
    ran = f"{where} the gradient norm ran from {norms.lowest:.3g} to {norms.highest:.3g}"
    return f"{ran} (half of them up to {norms.median:.3g}, 95 % up to {norms.high:.3g})"


def _clipping(one: Measured) -> str:
    """Who reduced it how often."""
    by = acting(one)
    shares = [
        f"{each.name} reduced {percent(each.clip_rate)} of the steps" for each in by if each.clip_rate is not None
    ]
    shares += [
        f"{each.name}, a dry run, would have reduced {percent(each.clip_rate)} of the steps"
        for each in one.run.clippers
        if each.kind == "dry" and each.clip_rate is not None
    ]
    return ("" if by else ", and nothing clipped it") + ("; " + " and ".join(shares) if shares else "")
