"""Several runs beside each other: a line for each optimizer, with what decides between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_calib.report.report import Report

COLUMNS = (
    "run",
    "optimizer",
    "first finding",
    "steps",
    "lr",
    "loss first",
    "loss last",
    "norm median",
    "norm p95",
    "clipped",
    "update ratio",
)
_NUMBERS = ("steps", "lr", "loss_first", "loss_last", "norm_median", "norm_p95")


def side_by_side(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """The lines, each with `COLUMNS`; None where something is not known."""
    lines = []
    for run, report in reports.items():
        told = report.as_dict()
        first = next((one.code for one in report.findings if one.severity != "note"), "none")
        for row in told["optimizers"]:
            rates = [one["clip_rate"] for one in told["clippers"] if one["optimizer"] == row["optimizer"]]
            known = [rate for rate in rates if rate is not None]
            values = [row[key] for key in _NUMBERS]
            cells = [run, row["name"], first, *values, max(known, default=None), row["update_ratio"]]
            lines.append(dict(zip(COLUMNS, cells, strict=True)))
    return lines


def as_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Columns under each other."""
    table = [COLUMNS, *(tuple(_cell(line[key]) for key in COLUMNS) for line in lines)]
    widths = [max(len(row[place]) for row in table) for place in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def as_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [tuple(_cell(line[key]).replace("|", "\\|") for key in COLUMNS) for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
