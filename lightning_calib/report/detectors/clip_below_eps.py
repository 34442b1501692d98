"""A clip so low that Adam's eps drowns what is left of the gradient.

Looks at: the root mean square r of what the optimizer used, tensor by tensor, in the recent window, beside eps. Adam's
update keeps r / (r + eps) of its size. Speaks where less than a tenth is left, of more than half of the elements, that
would keep at least half without the clip. A tenth, because at r = eps a half is left, and such runs train (digits MLP,
AdamW 1e-3: 0.65 after 300 steps where 0.52 is usual, and chance at a tenth of that).

The lowest clip that trains like no eps is where a hundredth of the step is lost: eps is then a rate that is one percent
lower, as if the run were a hundredth shorter, which is less than two seeds differ by. (A tenth is not: digits MLP,
AdamW 1e-3: 0.088 instead of 0.080 after 300 steps, seeds within 0.005; at a hundredth 0.081.) It also covers what norms
of tensors do not tell: an element a decade below its tensor's root mean square keeps ten elevenths.

Muon divides a matrix by its norm plus eps (torch's: by the larger of both): there the norm of the matrix stands for r,
and its iteration undoes a tenth. Sign-like optimizers have no eps.
Not to be confused with a clip that always fires above that floor (`clip-always`: it does not matter), nor with
gradients that are small by nature (without a clip there is nothing to say here).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Clipper, Floats
from lightning_calib.report.wording import decimal, percent

CODES = ("clip-below-eps",)
_LEFT = 0.1
_HALF = 0.5
_ALIKE = 100.0  # times eps: there Adam's update keeps 100 / 101 of its size, as if the run were a hundredth shorter
_ALIKE_MUON = 10.0  # its iteration makes the singular values about 1 again, whatever a tenth less made of them


def acting(seen: Measured) -> list[Clipper]:
    """Those that reduce gradients, in their order."""
    return [one for one in seen.run.clippers if one.kind in ("fixed", "adaptive", "normalise")]


def alike_low(seen: Measured) -> float:
    """The lowest clip of the whole norm that trains like no eps, for nine tenths of the elements; nan if not known."""
    size, used, eps = _sides(seen)
    total = float(np.sqrt(np.nansum(np.square(seen.tensors.grad)))) if seen.tensors is not None else float("nan")
    known = np.isfinite(used) & (used > 0) & (eps > 0) & (total > 0)
    if not known.any():
        return float("nan")
    muon = np.array([kind == "muon" for kind in seen.tensors.kinds] if seen.tensors is not None else [], bool)
    need = np.where(muon, _ALIKE_MUON, _ALIKE)[known] * eps[known] * total / used[known]
    order = np.argsort(need)
    weights = np.cumsum(size[known][order])
    return float(need[order][np.searchsorted(weights, 0.9 * weights[-1])])


def _sides(seen: Measured) -> tuple[Floats, Floats, Floats]:
    """Of each tensor its size, what stands beside eps before the clip, and eps; nan where there is none."""
    tensors, layers = seen.tensors, seen.run.layers
    if tensors is None or layers is None:
        return np.empty(0), np.empty(0), np.empty(0)
    groups = seen.run.facts.groups
    of = [groups[g] if g < len(groups) else None for g in layers.group_of]
    eps = np.array([one.eps if one and one.eps and one.kind in ("adam", "muon") else np.nan for one in of], float)
    muon = np.array([kind == "muon" for kind in tensors.kinds], bool)
    return np.array(layers.sizes, float), np.where(muon, tensors.grad, tensors.rms), eps


def detect(seen: Measured) -> list[Finding]:
    """A finding where eps is larger than what a clip left."""
    clippers, layers, tensors = acting(seen), seen.run.layers, seen.tensors
    if not clippers or layers is None or tensors is None or not len(seen.norms):
        return []
    size, before, eps = _sides(seen)
    after = before * tensors.after / np.where(tensors.rms > 0, tensors.rms, np.nan)
    known = np.isfinite(after) & (eps > 0) & (before > 0)
    if not known.any():
        return []
    left = after[known] / (after[known] + eps[known])
    whole = before[known] / (before[known] + eps[known])
    drowned = (left < _LEFT) & (whole >= _HALF)
    share = size[known][drowned].sum() / size[known].sum()
    if not share > _HALF:
        return []
    typical, value, low = float(np.median(left[drowned])), float(np.median(eps[known][drowned])), alike_low(seen)
    names = tuple(layers.names[i] for i in np.flatnonzero(known)[drowned])
    who = " and ".join(one.name for one in clippers)
    evidence = {
        "update_share": typical,
        "share": float(share),
        "eps": value,
        "alike_low": low,
        "suggested_max_norm": seen.high,
        "window": float(seen.window),
    }
    fixed = next((one.max_norm for one in clippers if one.max_norm is not None), None)
    evidence |= {"max_norm": fixed} if fixed is not None else {}
    sentence = (
        f"{who} clips the gradient so low that the eps of {seen.run.facts.optimizer} ({value:.3g}) drowns it: about "
        f"{percent(typical)} of the step is left."
    )
    advice = (
        f"Clip no lower than {decimal(low)}, or only outliers: {seen.clip(seen.high)}, the 95th "
        f"percentile of the norms of the last {seen.window:,} steps."
    )
    return [Finding("clip-below-eps", "act", sentence, advice, evidence, layers=names)]
