"""The codes of findings, in the order in which they are told: causes before consequences, facts last."""

from collections.abc import Mapping

from lightning_calib.report.finding import Severity

PAGE = "docs/findings.md"

CODES: Mapping[str, tuple[Severity, ...]] = {
    "no-steps-seen": ("look",),
    "loss-summed": ("look",),
    "diverged": ("act",),
    "nonfinite": ("act", "look"),
    "rate-too-high": ("act",),
    "clip-below-eps": ("act",),
    "rate-cut": ("act",),
    "dominated": ("look",),
    "clip-twice": ("look",),
    "clip-cuts-rate": ("act", "look"),
    "dead-layer": ("look",),
    "vanishing": ("look",),
    "exploding": ("look",),
    "unused-parameter": ("look",),
    "batch-norm": ("look",),
    "spike": ("look",),
    "level-shift": ("look",),
    "rate-too-low": ("look",),
    "layer-rate": ("look",),
    "skipped-steps": ("look",),
    "clip-always": ("note",),
    "clip-never": ("note",),
    "frozen": ("note",),
    "loss-scale": ("note",),
}
"""Every code, with the severities that it can have."""

EXPLAINS: Mapping[str, frozenset[str]] = {
    cause: frozenset(told.split())
    for cause, told in {
        "diverged": (
            "nonfinite rate-too-high rate-too-low spike level-shift layer-rate dead-layer vanishing exploding "
            "batch-norm "
            "skipped-steps dominated clip-always"
        ),
        "rate-too-high": "rate-too-low spike level-shift layer-rate dead-layer vanishing batch-norm clip-always",
        "clip-below-eps": "rate-too-low vanishing dead-layer clip-always layer-rate",
        "rate-cut": "rate-too-low vanishing",
        "clip-cuts-rate": "rate-too-low vanishing clip-always",
        "dominated": "clip-always layer-rate",
        "dead-layer": "rate-too-low vanishing",
        "vanishing": "layer-rate",
        "exploding": "layer-rate",
    }.items()
}
"""What is left out where a cause has been found: it follows from it, and its advice would mislead."""


def link(code: str) -> str:
    """Where a code is explained."""
    return f"{PAGE}#{code}"
