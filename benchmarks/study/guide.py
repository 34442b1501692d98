"""Which callback for what: rows of words, with the figures of the study put in where they are named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks.study.findings import Finding
from benchmarks.study.statistics import UNKNOWN

ROWS: tuple[tuple[str, str, str, str], ...] = ()


def guide(found: Mapping[str, Sequence[Finding]], rows: Sequence[Sequence[str]] = ROWS) -> str:
    """The table; a row whose figures are not there yet is left out."""
    lines = ["| you train | start with | expect | do not expect |", "|---|---|---|---|"]
    for row in rows:
        cells = [with_figures(cell, found) for cell in row]
        if all(cell is not None for cell in cells):
            lines.append(f"| {' | '.join(map(str, cells))} |")
    if len(lines) == 2:
        return ""
    return "### Which callback for what\n\nEach row follows from the tables below.\n\n" + "\n".join(lines) + "\n\n"


def with_figures(cell: str, found: Mapping[str, Sequence[Finding]]) -> str | None:
    """Puts a figure in place of each {experiment/arm/quantity} or {experiment/arm/quantity/against}."""
    names = re.findall(r"\{(.+?)\}", cell)
    figures = [figure(found, *name.split("/")) for name in names]
    if None in figures:
        return None
    for name, said in zip(names, figures, strict=True):
        cell = cell.replace(f"{{{name}}}", str(said))
    return cell


def figure(
    found: Mapping[str, Sequence[Finding]], experiment: str, arm: str, quantity: str, against: str = "none"
) -> str | None:
    """The mean difference in each set that ran, and the verdict of all of them."""
    for one in found.get(experiment, ()):
        if (one.arm.name, one.against.name) == (arm, against) and one.quantity.name.startswith(quantity):
            means = [f"{effect.mean:+.2g}" for effect in one.effects.values() if effect.verdict != UNKNOWN]
            return f"{' and '.join(means)}, {one.verdict} ([{experiment}](#{experiment}))" if means else None
    return None
