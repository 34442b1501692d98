"""A finding: what is wrong or worth knowing, how it was decided, and what to change."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Severity = Literal["act", "look", "note"]


class Finding(NamedTuple):
    """One thing that a report has found.

    Attributes:
        code: What it is, in the words that filters and CI use, such as "rate-too-high"; `codes.CODES` has all of them.
        severity: "act": training is being harmed now; "look": probably not what you want; "note": a fact.
        sentence: What was seen, in one sentence with its numbers.
        advice: What to change, with a number and a line to paste; empty where there is nothing to do.
        evidence: The numbers behind it, by the keys of `evidence.EVIDENCE`; nan where one is not known.
        optimizer: Index of the optimizer; None for the whole run.
        layers: The parameters that it is about, the worst first; empty for the whole gradient.
        steps: First and last step of what was seen; None where it is of no steps.

    Raises:
        AttributeError: On assignment to a field; use ``_replace``.

    Example:
        >>> Finding("frozen", "note", "2 tensors of the optimizer are frozen or empty: `a` and `b`.").severity
        'note'
    """

    code: str
    severity: Severity
    sentence: str
    advice: str = ""
    evidence: Mapping[str, float] = {}
    optimizer: int | None = None
    layers: tuple[str, ...] = ()
    steps: tuple[int, int] | None = None
