"""Who makes it clip: a few tensors make the whole norm, and the others are scaled down for them.

Looks at: rows of layers of the last half on which a clip of the whole gradient acted (one coefficient for all tensors;
a clip by layers has nobody to scale down for others). Speaks where on half or more of those rows, three at least,

- one to three tensors, one in five at most, make more than 90 % of the squared norm. Then the others' norm is below a
  third of the whole: they alone would hardly be clipped;
- the others would keep more than 3 times as much of their gradient if they were clipped alone: the same half decade by
  which rates are searched;
- they are not simply most of the model: the others that get a gradient hold a tenth of the elements or more, and the
  gradient of the dominating ones is at least 3 times as large as the others' per element, or beside their weights.

With SGD that is a lower rate for the others. Adam and its kin divide a constant factor out again: there it counts only
against the other steps (it comes now and then, and the others then miss that step). An honest large tensor is compared
with its own usual share.

The advice is a rule that gives the tensor a segment of its own, at its own usual norm. Not to be confused with
`layer-rate` (how far a layer moves) or `exploding` (a whole depth).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Floats, Layers
from lightning_calib.report.wording import count, decimal, listed, percent

CODES = ("dominated",)
_SHARE = 0.9
_TIMES = 3.0
_MOST = 3  # tensors are "a few", and at most ...
_ONE_IN = 5  # ... one in so many; one is always
_REST = 0.1  # of the elements
_ROWS = 3
_CLIPPED = 0.98  # what is left; more is rounding, or nothing to speak of
_SAME = 0.05  # coefficients of tensors that one threshold has scaled


class _Hog(NamedTuple):
    """Which tensors make the norm, on which rows, and what the others lose."""

    tensors: NDArray[np.intp]
    share: float
    usual: float
    kept: float
    without: float
    rows: NDArray[np.intp]
    rest: NDArray[np.intp]


def detect(seen: Measured) -> list[Finding]:
    """A finding where some tensors are scaled down for others."""
    layers = seen.run.layers
    # A clip by value scales nobody for another.
    clippers = [one for one in acting(seen) if one.clip_rate != 0 and not one.name.startswith("GradientValueClip")]
    if layers is None or not clippers or len(layers.names) < 2:
        return []
    hog = _find(layers, scale_free=seen.scale_free)
    if hog is None:
        return []
    names = tuple(layers.names[i] for i in hog.tensors)
    others = len(layers.names) - len(names)
    usual = f", usually {percent(hog.usual)}" if np.isfinite(hog.usual) else ""
    scaled = f"the other {count(others, 'tensor')} {'was' if others == 1 else 'were'} scaled by {hog.kept:.2g} for it"
    sentence = (
        f"On clipped steps {listed(names)} {'was' if len(names) == 1 else 'were'} {percent(hog.share)} of the squared "
        f"norm{usual}; {scaled}."
    )
    clipper = next((one for one in clippers if one.max_norm is not None), clippers[0])
    fixed = clipper.max_norm
    own = _own_norms(layers, hog)
    rules = ", ".join(f'"{name}": {decimal(value)}' for name, value in zip(names, own, strict=True))
    line = f"add `rules={{{rules}}}` to your {clipper.name}"  # whose other arguments are to stay
    if fixed is not None:
        instead = "`gradient_clip_val`" if clipper.name.startswith("Trainer") else clipper.name
        line = f"`callbacks=[GradientClip({fixed:g}, rules={{{rules}}})]` instead of {instead}"
    evidence = {
        "share": hog.share,
        "share_usual": hog.usual,
        "mean_factor": hog.kept,
        "factor_without": hog.without,
        "parameters": float(len(names)),
        "suggested_max_norm": float(own[0]),
    }
    evidence |= {"max_norm": fixed} if fixed is not None else {}
    advice = f"Give {'it a rule' if len(names) == 1 else 'them rules'} of its own: {line}."
    if len(names) > 1:
        advice = advice.replace("of its own", "of their own")
    if seen.run.facts.engine:  # which clips the gradient as a whole
        advice = f"Clip outliers only, so that the others keep their size: {seen.clip(seen.high)}."
    steps = (int(layers.step[hog.rows[0]]), int(layers.step[hog.rows[-1]]))
    return [Finding("dominated", "look", sentence, advice, evidence, layers=names, steps=steps)]


def _find(layers: Layers, *, scale_free: bool) -> _Hog | None:
    half = np.arange(len(layers.step) // 2, len(layers.step))
    before, after = layers.before[half], layers.after[half]
    square = np.square(np.where(np.isfinite(before), before, 0.0))
    used = np.square(np.where(np.isfinite(after), after, 0.0))
    total, left = square.sum(axis=1), used.sum(axis=1)
    whole = (
        np.isfinite(before).any(axis=1) & ~np.isinf(before).any(axis=1) & (total > 0) & np.isfinite(after).any(axis=1)
    )
    factor = np.sqrt(np.divide(left, total, out=np.full(len(half), np.nan), where=whole))
    clipped = np.flatnonzero(whole & (factor < _CLIPPED))
    if len(clipped) < _ROWS:
        return None
    shares = np.divide(square, total[:, None], out=np.zeros_like(square), where=whole[:, None])
    order = np.argsort(shares[clipped].mean(axis=0))[::-1][: max(1, min(_MOST, len(layers.names) // _ONE_IN))]
    for few in range(1, len(order) + 1):
        hog = order[:few]
        found = _judge(layers, hog, half, shares[:, hog].sum(axis=1), factor, total, left, clipped, whole, scale_free)
        if found is not None and _one_coefficient(square, used, found, half, hog):
            return found
    return None


def _judge(
    layers: Layers,
    hog: NDArray[np.intp],
    half: NDArray[np.intp],
    share: Floats,
    factor: Floats,
    total: Floats,
    left: Floats,
    clipped: NDArray[np.intp],
    whole: NDArray[np.bool_],
    scale_free: bool,
) -> _Hog | None:
    rows = clipped[share[clipped] > _SHARE]
    rest = np.setdiff1d(np.flatnonzero(whole), rows)
    if len(rows) < _ROWS or (len(rows) < len(clipped) / 2 and not scale_free):
        return None
    others = np.sqrt(np.maximum(total * (1 - share), 1e-300))
    without = np.minimum(1.0, np.sqrt(left) / others)
    gain = without / factor
    usual = float(np.median(share[rest])) if len(rest) >= _ROWS else float("nan")
    times = float(np.median(gain[rows]))
    if scale_free:  # a constant factor is divided out again: only what differs from the other steps counts
        times = times / float(np.median(gain[rest])) if len(rest) >= len(rows) else 0.0
    if not times > _TIMES or not _stands_out(layers, hog, float(np.median(share[rows]))):
        return None
    typical = float(np.median(share[rows]))
    kept, alone = float(np.mean(factor[rows])), float(np.mean(without[rows]))
    return _Hog(hog, typical, usual, kept, alone, half[rows], half[rest])


def _stands_out(layers: Layers, hog: NDArray[np.intp], share: float) -> bool:
    """Whether the others are a tenth of the elements or more, and the few stand out beside their size or weights."""
    alive = (layers.before[len(layers.step) // 2 :] > 0).any(axis=0)
    sizes = np.where(alive, layers.sizes, 0.0)
    if not sizes[alive].all():
        return True  # sizes are not known
    mine = sizes[hog].sum() / sizes.sum()
    square = alive * np.square(np.max(np.where(np.isfinite(layers.weight), layers.weight, 0.0), axis=0, initial=0.0))
    heavy = max(square[hog].sum(), 1e-300) / max(square.sum(), 1e-300)
    odds = share / max(1 - share, 1e-12)
    ratio = odds * max((1 - mine) / mine, (1 - heavy) / heavy)
    return bool(1 - mine >= _REST and ratio >= _TIMES**2)


def _one_coefficient(square: Floats, used: Floats, found: _Hog, half: NDArray[np.intp], hog: NDArray[np.intp]) -> bool:
    """Whether one threshold has scaled the few and the others alike."""
    rows = found.rows - half[0]
    own = np.sqrt(used[rows][:, hog].sum(axis=1) / np.maximum(square[rows][:, hog].sum(axis=1), 1e-300))
    rest = np.delete(np.arange(square.shape[1]), hog)
    others = np.sqrt(used[rows][:, rest].sum(axis=1) / np.maximum(square[rows][:, rest].sum(axis=1), 1e-300))
    return bool(np.median(np.abs(others / np.maximum(own, 1e-300) - 1)) < _SAME)


def _own_norms(layers: Layers, hog: _Hog) -> list[float]:
    """What each of the few should be clipped to: its usual norm where it is not always so, else what it gets now."""
    found = []
    for i in hog.tensors:
        usual = layers.before[hog.rest, i] if len(hog.rest) >= _ROWS else layers.after[hog.rows, i]
        usual = usual[np.isfinite(usual) & (usual > 0)]
        found.append(float(np.percentile(usual, 95)) if len(usual) else float(np.nanmedian(layers.after[hog.rows, i])))
    return found
