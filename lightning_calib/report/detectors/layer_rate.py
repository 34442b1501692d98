"""A layer that moves far faster than all the others, or a group far faster or slower.

Looks at: |dw| / |w| *and* |dw| per element of the matrices, in the median of the last half of the run. Both, because a
weight that began at zero (LoRA's B, a gate) has an infinite ratio, and a small one a large ratio.

- Faster: more than 100 times the median of the others, three at least, and 10 times the next. A decade or two between
  layers are usual: size, fan-in, rows that are touched. The next, because in a deep net each layer may be some times
  faster than the one before it, and none stands out.
- A group whose rate is set 30 times (recipes for fine-tuning give the head up to ten times; 30 is half a decade beyond)
  higher, or lower, than that of the median matrix, and whose matrices move 30 times as far, or as little, per element,
  and in the same direction beside their norm (weights that moved far have grown, and their ratio says less). Without
  such a setting slowness is not named: rows of an embedding that no batch touches make it so (`vanishing` has the
  rest).

Look is the most it deserves: a head 289 times faster than the rest trained as well as without. Not to be confused with
a dead layer (left out of the others).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import decimal, listed, module_line, parameter_line
from lightning_calib.report.wording import times as times_of

CODES = ("layer-rate",)
_USUAL = 100.0
_TIMES = 30.0
_NEXT = 10.0
_OTHERS = 3


def detect(seen: Measured) -> list[Finding]:
    """A finding for the fastest layer, if it stands out, or for a group whose rate is far from the others'."""
    tensors, layers = seen.tensors, seen.run.layers
    if tensors is None or layers is None or len(layers.step) < 4:
        return []
    able = np.flatnonzero(tensors.matrix & (tensors.ratio > 0) & (tensors.step > 0))
    return _faster(seen, able) or _set_apart(seen, able)


def _faster(seen: Measured, able: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[Finding]:
    tensors, layers = seen.tensors, seen.run.layers
    if tensors is None or layers is None or len(able) < 2:
        return []
    top = int(able[np.argmax(tensors.ratio[able])])
    mine = [i for i in able if layers.owners[i] == layers.owners[top]]
    others = np.array([i for i in able if layers.owners[i] != layers.owners[top]], int)
    if len(others) < _OTHERS:
        return []
    times = min(
        tensors.ratio[top] / np.median(tensors.ratio[others]), tensors.step[top] / np.median(tensors.step[others])
    )
    following = min(tensors.ratio[top] / tensors.ratio[others].max(), tensors.step[top] / tensors.step[others].max())
    if not (times > _USUAL and following > _NEXT):
        return []
    ratio = float(tensors.ratio[top] / np.median(tensors.ratio[others]))
    names = tuple(layers.names[i] for i in mine)
    groups, group = seen.run.facts.groups, layers.group_of[top]
    rate = groups[group].lr if group < len(groups) else None
    set_apart = len(groups) > 1 and rate is not None
    evidence = {"ratio": ratio, "update_ratio": float(tensors.ratio[top])}
    sentence = (
        f"{listed(names)} moves {times_of(ratio)} times as fast as the median of the other layers, by "
        f"{tensors.ratio[top]:.2g} of its norm in a step."
    )
    advice = "If that is not meant, give it a parameter group with a lower rate"
    if rate is not None and set_apart:
        evidence |= {"lr": rate, "suggested_lr": rate / ratio}
        advice = (
            f"If that is not meant, lower the rate of its parameter group: `lr={decimal(rate / ratio)}` moves it like "
            "the others"
        )
    elif rate is not None:
        evidence |= {"lr": rate, "suggested_lr": rate / ratio}
        owner = layers.owners[top]
        inside = f"[{parameter_line(names[0])}]" if owner.startswith("(") else f"{module_line(owner)}.parameters()"
        advice += f': `{{"params": {inside}, "lr": {decimal(rate / ratio)}}}`'
    return [Finding("layer-rate", "look", sentence, advice + ".", evidence, layers=names)]


def _set_apart(seen: Measured, able: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[Finding]:
    tensors, layers, groups = seen.tensors, seen.run.layers, seen.run.facts.groups
    if tensors is None or layers is None or len(groups) < 2:
        return []
    rates = np.array(
        [groups[layers.group_of[i]].lr or np.nan if layers.group_of[i] < len(groups) else np.nan for i in able]
    )
    for index, group in enumerate(groups):
        inside = np.array([layers.group_of[i] == index for i in able], bool)
        same = np.array([tensors.kinds[i] == group.kind for i in able], bool)
        others, mine = able[~inside & same], able[inside]
        if not group.lr or not len(mine) or not len(others) or not np.isfinite(rates[same]).any():
            continue
        set_to = group.lr / float(np.nanmedian(rates[same]))
        ratio = float(np.median(tensors.ratio[mine]) / np.median(tensors.ratio[others]))
        step = float(np.median(tensors.step[mine]) / np.median(tensors.step[others]))
        faster = set_to >= _TIMES and step > _TIMES and ratio > 1
        slower = set_to * _TIMES <= 1 and step * _TIMES < 1 and ratio < 1
        if not (faster or slower):
            continue
        names = tuple(layers.names[i] for i in mine)
        way = f"{times_of(step)} times as far" if faster else f"{times_of(1 / step)} times less"
        sentence = (
            f"Parameter group {index} ({listed(names)}) moves {way} per element in a step than the others: its rate, "
            f"{group.lr:.3g}, is {times_of(max(set_to, 1 / set_to))} times {'higher' if faster else 'lower'}."
        ).replace("as far per element in a step than", "as far per element in a step as")
        advice = f"If that is not meant, set `lr={decimal(group.lr / step)}` there, which moves it like the others"
        advice += "." if faster else "; to freeze it, use `requires_grad_(False)`."
        evidence = {"ratio": step, "update_ratio": ratio, "lr": group.lr, "suggested_lr": group.lr / step}
        return [Finding("layer-rate", "look", sentence, advice, evidence, layers=names)]
    return []
