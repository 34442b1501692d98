"""Two clips reduce the same gradient, one behind the other.

Looks at: who reduced the gradient on which share of the steps. Speaks where two do on half of the steps or more: the
second then judges what the first has left, and neither threshold means what its author set. Half, because it is where
clipping is no exception any more; two safety nets that fire now and then, on outliers, are no fault.

Not to be confused with a clip beside a dry run, or with rules of one clipper (one name).
"""

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import percent

CODES = ("clip-twice",)
_HALF = 0.5


def detect(seen: Measured) -> list[Finding]:
    """A finding where two clips share the work."""
    often = [(one, one.clip_rate) for one in acting(seen) if one.clip_rate is not None and one.clip_rate >= _HALF]
    if len(often) < 2:
        return []
    (first, rate), (second, rate_second) = often[:2]
    sentence = (
        f"The gradient is clipped twice: {first.name} reduced it on {percent(rate)} of the steps, and {second.name} "
        f"what was left on {percent(rate_second)}."
    )
    fixed = [(one.max_norm, one.name) for one, _ in often[:2] if one.max_norm is not None]
    keep = f"the lower one, {min(fixed)[1]}, decides alone" if len(fixed) == 2 else "one is enough"
    advice = f"Remove one of them: {keep}."
    if second.name.startswith("Trainer("):
        advice += " Without the Trainer's, drop `gradient_clip_val`."
    return [Finding("clip-twice", "look", sentence, advice, {"clip_rate": rate, "clip_rate_second": rate_second})]
