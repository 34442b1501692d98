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
    """Advice and lines to paste that name such a callback."""
    lines = [f"{one.code}: {one.advice}" for one in report.findings if _REFUSED.search(one.advice)]
    lines += [f"suggestion: {one}" for one in report.suggestion if _REFUSED.search(f"{one} {one.callback}")]
    return lines
