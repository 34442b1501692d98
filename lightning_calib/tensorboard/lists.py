"""What the routes answer, in words: the runs, and the events of one."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from lightning_calib.tensorboard.about import KINDS
from lightning_calib.tensorboard.contract import EVENTS
from lightning_calib.tensorboard.reading import MOST_STEP, Reader, Records, Run, Series
from lightning_calib.tensorboard.refused import Refused, require
from lightning_calib.tensorboard.selection import Selection


def runs(reader: Reader) -> dict[str, Any]:
    """The runs, the newest first, and what each of them has; "problems" names the tags that cannot be read.

    "started" is when a run began, in seconds since 1970; None, and last, where that is not known.
    """
    found, started = reader.runs(), reader.started()
    names = sorted(sorted(found, key=natural), key=lambda name: started.get(name, 0.0), reverse=True)
    return {"runs": [{"run": name, "started": started.get(name), **_described(found[name])} for name in names]}


def events(chosen: Selection) -> dict[str, Any]:
    """All events in the order of their own steps; "problems" says why one of another optimizer's cannot be read.

    A summary is of the whole run, whichever optimizer's records it stands among.
    """
    listed = _listed(chosen.records(EVENTS) if chosen.has(EVENTS) else [])
    problems: list[str] = []
    try:
        found, refused = chosen.elsewhere(EVENTS)
        problems += map(str, refused)
        listed += [event for event in _listed(found) if event["kind"] == "summary"]
    except Refused as refusal:
        problems.append(str(refusal))
    return {"events": sorted(listed, key=lambda event: int(event["step"])), "problems": problems}


def natural(name: str) -> list[Any]:
    """A key that sorts layer2 before layer10."""
    pieces = re.split(r"([0-9]+)", name)
    return [(len(text.lstrip("0")), text.lstrip("0"), text) if i % 2 else text for i, text in enumerate(pieces)]


def _listed(found: Sequence[Records]) -> list[dict[str, Any]]:
    return [event for each in found for value in each.values for event in parse_events(value.item())]


def _described(run: Run) -> dict[str, Any]:
    by_optimizer: dict[int, list[Series]] = {}
    for series in run.series:
        by_optimizer.setdefault(series.about.optimizer, []).append(series)
    optimizers = [_optimizer(index, by_optimizer[index]) for index in sorted(by_optimizer)]
    return {"optimizers": optimizers, "problems": run.problems}


def _optimizer(index: int, series: list[Series]) -> dict[str, Any]:
    last = max(series, key=lambda each: each.last_step)
    have = {each.about.kind for each in series}
    kinds = [kind for kind in KINDS if kind in have]
    return {"optimizer": index, "name": last.about.optimizer_name, "kinds": kinds, "last_step": last.last_step}


def parse_events(text: Any) -> list[dict[str, Any]]:
    """The events of one record.

    Raises:
        Refused: If it is not what was promised.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        raise Refused("an events record must be JSON, and is not") from None
    require(isinstance(found, list), "events", "a list of objects", found)
    return [_event(each) for each in found]


def _event(found: Any) -> dict[str, Any]:
    event = found if isinstance(found, dict) else {}
    step, layer, value = event.get("step"), event.get("layer"), event.get("value")
    right = (
        type(step) is int
        and 0 <= step <= MOST_STEP
        and all(isinstance(event.get(key), str) for key in ("kind", "text"))
        and isinstance(layer, str | None)
        and type(value) in (int, float, type(None))
        and (type(value) is not int or abs(value) <= MOST_STEP)
    )
    require(right, "event", "an object of step, kind, text, layer and value", found)
    return {"step": step, "kind": event["kind"], "text": event["text"], "layer": layer, "value": _number(value)}


def _number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity: those go as JavaScript's names for them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
