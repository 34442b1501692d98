"""A parameter that never got a gradient.

Looks at: tensors that are to be trained (`requires_grad`), and whether a gradient ever existed. Speaks after 50 steps
without one, for the reason of `dead-layer`; the steps are those of the run's busiest optimizer, so that one whose
parameters never got any is named, too. Not to be confused with a gradient of zeros (`dead-layer`), with frozen
parameters (`frozen`), or with experts and branches that are drawn now and then: one gradient is enough to be silent,
and one that was not drawn yet is left in peace where a sibling (the same name but for one number) is drawn now and
then.
"""

import numpy as np

from lightning_calib.report.detectors.dead_layer import STEPS
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Layers
from lightning_calib.report.wording import count, listed, parameter_line

CODES = ("unused-parameter",)


def detect(seen: Measured) -> list[Finding]:
    """A finding for all tensors that nothing depends on."""
    layers, steps = seen.run.layers, max(seen.run.counts.steps, seen.steps_of_others)
    if layers is None or steps < STEPS:
        return []
    drawn = _drawn(layers)
    unused = np.flatnonzero(layers.trainable & ~layers.given)
    names = tuple(layers.names[i] for i in unused if not drawn & _siblings(layers.names[i]))
    if not names:
        return []
    sentence = (
        f"{listed(names)} never got a gradient in {count(steps, 'step')}: the loss did not depend on "
        f"{'it' if len(names) == 1 else 'them'}."
    )
    them = "it" if len(names) == 1 else "them"
    named = not names[0].startswith("(unnamed")
    such = f", such as `{parameter_line(names[0])}.requires_grad_(False)`" if named else ""
    advice = f"Use {them} in `forward`, or freeze {them}{such}."
    return [Finding("unused-parameter", "look", sentence, advice, {"parameters": float(len(names))}, layers=names)]


def _siblings(name: str) -> set[str]:
    """The name with each of its numbers left open, one at a time."""
    parts = name.split(".")
    return {".".join([*parts[:i], "*", *parts[i + 1 :]]) for i, part in enumerate(parts) if part.isdigit()}


def _drawn(layers: Layers) -> set[str]:
    """Siblings of the tensors that had a gradient on some steps and none on some rows where others had one."""
    there = np.logical_not(np.isnan(layers.before))
    missing = (there.any(axis=1).reshape(-1, 1) & ~there).any(axis=0)
    names = [layers.names[i] for i in np.flatnonzero(layers.given & missing)]
    return {pattern for name in names for pattern in _siblings(name)}
