"""The claims, judged, and which callback for what: words, with the figures of the study put in where they are named.

``{experiment/arm/quantity=verdict}`` stands for a comparison with none, ``{.../quantity/other=verdict}`` for one with
another arm, ``{gap/experiment/arm}`` for the share of the gap to AdamW that the arm closes. A row whose figures do not
have the verdict that its words were written for is left out of the page, and a test fails: the words must be written
anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks.study.findings import Finding
from benchmarks.study.sentences import CLAIMS, GUIDE
from benchmarks.study.statistics import UNKNOWN

Found = Mapping[str, Sequence[Finding]]


def judged(found: Found, rows: Sequence[Sequence[str]] = CLAIMS) -> str:
    """What is claimed of calibrated gradients, and what these runs say."""
    head = "### The claims\n\nDifferences of set A and set B; above 0 is better.\n\n"
    return table_of(found, rows, head, ("claim", "verdict", "figures"))


def guide(found: Found, rows: Sequence[Sequence[str]] = GUIDE) -> str:
    head = "### Which callback for what\n\nWhat follows from the tables below, for runs like these.\n\n"
    return table_of(found, rows, head, ("you train", "start with", "expect", "do not expect"))


def table_of(found: Found, rows: Sequence[Sequence[str]], head: str, columns: Sequence[str]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [with_figures(cell, found) for cell in row]
        if None not in cells:
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return head + "\n".join(lines) + "\n\n" if len(lines) > 2 else ""


def with_figures(cell: str, found: Found) -> str | None:
    """The words with their figures; None where a figure is missing or has another verdict."""
    for named in re.findall(r"\{(.+?)\}", cell):
        said = gap(found, named) if named.startswith("gap/") else figure(found, *named.split("="))
        if said is None:
            return None
        cell = cell.replace(f"{{{named}}}", said)
    return cell


def gap(found: Found, named: str) -> str | None:
    """The gain over none, of that of AdamW, in each set that ran."""
    _, experiment, name = named.split("/")
    gains = [
        one.effects
        for arm in (name, "AdamW")
        for one in found.get(experiment, ())
        if (one.arm.name, one.against.name) == (arm, "none") and one.quantity.name.startswith("test")
    ]
    if len(gains) < 2:
        return None
    return ", ".join(
        f"{gains[0][which].mean / gains[1][which].mean:.0%}" for which in gains[0] if gains[0][which].verdict != UNKNOWN
    )


def figure(found: Found, named: str, verdict: str) -> str | None:
    """The mean difference in each set that ran."""
    experiment, arm, quantity, against = (*named.split("/"), "none")[:4]
    for one in found.get(experiment, ()):
        if (one.arm.name, one.against.name) == (arm, against) and one.quantity.name.startswith(quantity):
            means = [f"{round(effect.mean, 5):+.2g}" for effect in one.effects.values() if effect.verdict != UNKNOWN]
            return f"{', '.join(means)} ([{experiment}](#{experiment}))" if one.verdict == verdict else None
    return None
