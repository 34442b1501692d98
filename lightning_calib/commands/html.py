"""``lightning-calib report --format html``: the panels of the tab over event files, as one file."""

from argparse import Namespace
from pathlib import Path

from lightning_calib.commands.runs import loaded
from lightning_calib.report.page import PageRun, page
from lightning_calib.report.panel_numbers import Pictured
from lightning_calib.tensorboard.event_rows import EventRows


def html(asked: Namespace) -> tuple[str, int]:
    """The page, with the newest run first, and the exit code."""
    found = sorted(loaded(asked.logdir), key=lambda one: one.started or 0.0, reverse=True)
    runs = [PageRun(one.name, one.report, _pictured(one.rows), one.rows.problems, one.started) for one in found]
    title = runs[0].name if len(runs) == 1 else ", ".join(Path(one).as_posix() for one in asked.logdir)
    return page(title, runs), 0


def _pictured(rows: EventRows) -> list[Pictured]:
    """Of each optimizer; a summary is of the whole run, whichever optimizer's records it stands among."""
    found = []
    for one in rows.optimizers:
        others = [each for other in rows.optimizers if other is not one for each in other.events]
        events = [*one.events, *(each for each in others if each["kind"] == "summary")]
        happened = sorted(events, key=lambda event: int(event["step"]))
        found.append(Pictured(one.optimizer, one.name, one.step, one.scalars, one.layers, happened))
    return found
