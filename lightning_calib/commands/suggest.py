"""``lightning-calib suggest``: which clip value, from event files."""

import json
from argparse import Namespace
from typing import Any

from lightning_calib.commands.runs import reports_of

SCHEMA = 1  # of what `--format json` prints


def suggest(asked: Namespace) -> tuple[str, int]:
    """The text and the exit code."""
    found = reports_of(asked.logdir)
    if asked.format == "json":
        runs = [
            {"run": name, "problems": [*told], "suggestion": one.as_dict()["suggestion"]}
            for name, (one, told) in found.items()
        ]
        return json.dumps({"schema": SCHEMA, "runs": runs}, indent=2, allow_nan=False), 0
    markdown = asked.format == "markdown"
    parts = []
    for name, (one, _) in found.items():
        lines = [_line(name, each, several=len(one.suggestion) > 1, markdown=markdown) for each in one.suggestion]
        parts.append("\n".join(lines))
    return "\n".join(parts), 0


def _line(run: str, one: Any, *, several: bool, markdown: bool) -> str:
    """One optimizer's answer behind the name of its run."""
    name = f"{run}, optimizer {one.optimizer}" if several else run
    return f"- **{name}**: {one}" if markdown else f"{name}: {one}"
