"""A layer that moves far faster than all the others, or a group far slower.

Looks at: |dw| / |w| *and* |dw| per element of the matrices, in the median of the last half of the run. Both, because a
weight that began at zero (LoRA's B, a gate) has an infinite ratio, and a small one a large ratio.

- Faster: more than 30 times the median of the others, three at least, and 10 times the next. Recipes for fine-tuning
  give the head up to ten times the rate; 30 is half a decade beyond. The next, because in a deep net each layer may be
  some times faster than the one before it, and none stands out.
- Slower: a group whose rate is set 30 times lower than another's and whose matrices move 30 times less by both. Without
  such a setting slowness is not named: rows of an embedding that no batch touches make it so (`vanishing` has the rest).

Look is the most it deserves: a head 289 times faster than the rest trained as well as without. Not to be confused with
a dead layer (left out of the others).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import decimal, listed

CODES = ("layer-rate",)
_TIMES = 30.0
_NEXT = 10.0
_OTHERS = 3


def detect(seen: Measured) -> list[Finding]:
    """A finding for the fastest layer, if it stands out, or for a slow group."""
    tensors, layers = seen.tensors, seen.run.layers
    if tensors is None or layers is None or len(layers.step) < 4:
        return []
    able = np.flatnonzero(tensors.matrix & (tensors.ratio > 0) & (tensors.step > 0))
    return _faster(seen, able) or _slower(seen, able)


def _faster(seen: Measured, able: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[Finding]:
    tensors, layers = seen.tensors, seen.run.layers
    if tensors is None or layers is None or len(able) < 2:
        return []
    top = int(able[np.argmax(tensors.ratio[able])])
    mine = [i for i in able if layers.owners[i] == layers.owners[top]]
    others = np.array([i for i in able if layers.owners[i] != layers.owners[top]], int)
    if len(others) < _OTHERS:
        return []
    times = min(tensors.ratio[top] / np.median(tensors.ratio[others]), tensors.step[top] / np.median(tensors.step[others]))
    following = min(tensors.ratio[top] / tensors.ratio[others].max(), tensors.step[top] / tensors.step[others].max())
    if not (times > _TIMES and following > _NEXT):
        return []
    ratio = float(tensors.ratio[top] / np.median(tensors.ratio[others]))
    names = tuple(layers.names[i] for i in mine)
    groups, group = seen.run.facts.groups, layers.group_of[top]
    rate = groups[group].lr if group < len(groups) else None
    set_apart = len(groups) > 1 and rate is not None
    evidence = {"ratio": ratio, "update_ratio": float(tensors.ratio[top])}
    sentence = f"{listed(names)} moves {ratio:.3g} times as fast as the median of the other layers, by {tensors.ratio[top]:.2g} of its norm in a step."
    advice = "If that is not meant, give it a parameter group with a lower rate"
    if rate is not None and set_apart:
        evidence |= {"lr": rate, "suggested_lr": rate / ratio}
        advice = f"If that is not meant, lower the rate of its parameter group: `lr={decimal(rate / ratio)}` moves it like the others"
    elif rate is not None:
        evidence |= {"lr": rate, "suggested_lr": rate / ratio}
        advice += f": `{{\"params\": self.{layers.owners[top] or names[0]}.parameters(), \"lr\": {decimal(rate / ratio)}}}`"
    return [Finding("layer-rate", "look", sentence, advice + ".", evidence, layers=names)]


def _slower(seen: Measured, able: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[Finding]:
    tensors, layers, groups = seen.tensors, seen.run.layers, seen.run.facts.groups
    if tensors is None or layers is None:
        return []
    for index, group in enumerate(groups):
        same = [one.lr for one in groups if one.kind == group.kind and one.lr is not None]
        if group.lr is None or group.lr <= 0 or not group.lr * _TIMES <= max(same):
            continue
        mine = np.array([i for i in able if layers.group_of[i] == index], int)
        others = np.array([i for i in able if layers.group_of[i] != index], int)
        if not len(mine) or not len(others):
            continue
        ratio = float(np.median(tensors.ratio[mine]) / np.median(tensors.ratio[others]))
        both = max(ratio, float(np.median(tensors.step[mine]) / np.median(tensors.step[others])))
        if not both * _TIMES < 1:
            continue
        names = tuple(layers.names[i] for i in mine)
        sentence = f"Group {index} ({listed(names)}) moves {1 / ratio:.3g} times slower than the other groups; its rate is {group.lr:.3g}."
        advice = f"If that is not meant, raise it: `lr={decimal(group.lr / ratio)}` moves it like the others; to freeze it, use `requires_grad_(False)`."
        evidence = {"ratio": ratio, "lr": group.lr, "suggested_lr": group.lr / ratio}
        return [Finding("layer-rate", "look", sentence, advice, evidence, layers=names)]
    return []
