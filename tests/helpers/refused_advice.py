"""What a report advises that an engine such as DeepSpeed refuses."""

from __future__ import annotations

import re

from lightning_calib import Report

# Callbacks that act, and those that need a forward pass of their own: docs/compatibility.md.
_REFUSED = re.compile(
    r"\b(GradientClip|GradientNormalize|GradientValueClip|GradientCentralize|AutoClip|ZClip|AGC|AdaGC|NonFiniteGuard"
    r"|SpikeGuard|LearningRateControl|PreciseBatchNorm)\b"
)


def refused(report: Report) -> list[str]:
    """Advice and lines to paste that name such a callback; why a value is suggested may name one that ran."""
    lines = [f"{one.code}: {one.advice}" for one in report.findings if _REFUSED.search(one.advice)]
    for one in report.suggestion:
        to_paste = " ".join([one.callback, *re.findall("`[^`]*`", str(one))])
        lines += [f"suggestion: {one}"] if _REFUSED.search(to_paste) else []
    return lines
