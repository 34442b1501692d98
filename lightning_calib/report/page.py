"""One file that holds the panels and what they show: it opens without a server and asks nobody for anything."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from lightning_calib.report.panel_answers import Told, panel_report
from lightning_calib.report.panel_numbers import Pictured, packed

_MOST = 600_000  # characters that the values of all layers take, if there are ten optimizers at most
_LEAST = 64_000  # of one optimizer
_HIGH = 900  # pixels of the frame that a page has in another
_STYLES = ("style", "panels", "heat", "details", "verdict")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_IMPORT = re.compile(r'from "\./([\w.]+)"')
_BEFORE = "Without scripts this page shows what the report says in words."
_ABOUT = (
    "One file without a server: numbers of layers are rounded to eight bits (0.4 %), and distributions are left out."
)
_WIDE = (
    " To keep the file small, a column of the layers stands for up to {width} logged rows, with the largest value of "
    "each tensor, so that no spike is lost."
)


class PageRun(NamedTuple):
    """A run on a page.

    Attributes:
        name: Of the run.
        report: What it says.
        optimizers: What the panels show.
        problems: What could not be read, in words.
        started: When it began, in seconds since 1970; None where it is not known.
    """

    name: str
    report: Told
    optimizers: Sequence[Pictured]
    problems: Sequence[str] = ()
    started: float | None = None


def page(title: str, runs: Sequence[PageRun]) -> str:
    """The page.

    Args:
        title: Of the page.
        runs: The one that is shown first before the others.
    """
    share = max(_LEAST, _MOST // max(1, sum(len(run.optimizers) for run in runs)))
    width, held = 1, []
    for run in runs:
        found = [packed(one, share) for one in run.optimizers]
        width = max([width, *(one.width for one in found)])
        report = panel_report(run.name, run.report, run.problems) if found else None
        of_run = {"run": run.name, "started": run.started, "report": report}
        held.append({**of_run, "optimizers": [one.held for one in found]})
    about = _ABOUT + (_WIDE.format(width=width) if width > 1 else "")
    words = "".join(_in_words(run, alone=len(runs) == 1) for run in runs)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(title)}</title>",
            *(f"<style>\n{_panel_file(f'{name}.css')}</style>" for name in _STYLES),
            f"<body>\n{words}<noscript>{_BEFORE}</noscript>",
            f'<script type="application/json" id="calib-held">{_data({"runs": held, "about": about})}</script>',
            f'<script type="importmap">{_data({"imports": _modules()})}</script>',
            '<script type="module">import { open } from "panels/page.js"; await open();</script>\n</html>\n',
        ]
    )


def framed(text: str) -> str:
    """A page as an element of another: what either does to its styles and its address stays with it."""
    style = f"box-sizing: border-box; width: 100%; height: {_HIGH}px; border: 1px solid #d9dde2; border-radius: 6px"
    kept_apart = 'sandbox="allow-scripts allow-downloads"'
    return f'<iframe srcdoc="{escape(text)}" {kept_apart} title="Gradients" loading="lazy" style="{style}"></iframe>'


def _in_words(run: PageRun, *, alone: bool) -> str:
    """What stands on the page until the panels are there."""
    heading = "" if alone else f"<h2>{escape(run.name)}</h2>"
    items = "".join(f"<li>{escape(one.severity)}: {escape(one.sentence)}</li>" for one in run.report.findings)
    return f"{heading}<p><b>{escape(run.report.verdict)}</b></p>" + (f"<ul>{items}</ul>\n" if items else "\n")


def _data(found: Mapping[str, Any]) -> str:
    """JSON that no text in it can end."""
    return json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _modules() -> dict[str, str]:
    """Every script by the name under which the others import it."""
    folder = files("lightning_calib") / "panels"
    scripts = {one.name: one.read_text("utf-8") for one in folder.iterdir() if one.name.endswith(".js")}
    return {f"panels/{name}": _address(_IMPORT.sub(r'from "panels/\1"', text)) for name, text in scripts.items()}


def _address(text: str) -> str:
    return f"data:text/javascript;base64,{b64encode(text.encode()).decode()}"


def _panel_file(name: str) -> str:
    return (files("lightning_calib") / "panels" / name).read_text("utf-8")
