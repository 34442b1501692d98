"""Writes docs/compatibility.md from the table that the tests run: ``make compatibility``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from modes.expected import GROUPS, NOT_RUN
from modes.laws import CASES
from modes.matrix import Mode

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
SIGNS = {"works": "yes", "refuses": "**no**", "silent": "silent", "absent": "-"}
HEAD = """# What works where

Made by `make compatibility` from the table in `tests/modes/expected.py`; every cell is a test.

- **yes**: a real `Trainer.fit`, and on every step: the gradients that the callback left, the learning rates that torch
  used and the norms that were logged are those of an independent computation in float64; what only observes leaves
  every bit as it is. `shadow=[...]` stands for a fixed norm, a percentile, a z-score, `AGC()` and a z-score by layer:
  each has learnt, counted and told, to the bit, what a dry run of it does in the same mode; on several processes, what
  it does on one.
- **no**: it raises `MisconfigurationException` with the reason and the way out (the notes below each table).
- **silent**: it says the same once, logs nothing that could be wrong, and training goes on.
- **-**: there is nothing for it to do.
"""


def render() -> str:
    """The page."""
    parts = [HEAD]
    for title, modes in GROUPS.items():
        parts += [f"## {title}\n", *_table(modes), ""]
    parts += ["## Not run", "", "Read in the source at most, never tried; no promise is made:", ""]
    parts += [f"- {one}" for one in NOT_RUN]
    return "\n".join(parts) + "\n"


def _table(modes: Iterable[Mode]) -> list[str]:
    lines: dict[str, list[Mode]] = {}
    for mode in modes:
        lines.setdefault(mode.line or mode.title, []).append(mode)
    found = ["| |" + " | ".join(f"`{column}`" for column in CASES) + " |", "|---|" + "---|" * len(CASES)]
    notes: dict[str, int] = {}
    for line, together in lines.items():
        cells = [_cell(together, column, notes) for column in CASES]
        found.append(f"| {line} | " + " | ".join(cells) + " |")
    return [*found, "", *(f"{number}. {words}" for words, number in notes.items())]


def _cell(together: list[Mode], column: str, notes: dict[str, int]) -> str:
    (outcome,) = {mode.outcome(column) for mode in together}
    words = together[0].refuses.get(column) or together[0].silent.get(column)
    note = f" ({notes.setdefault(words, len(notes) + 1)})" if words else ""
    return SIGNS[outcome] + note


if __name__ == "__main__":
    PAGE.write_text(render())
