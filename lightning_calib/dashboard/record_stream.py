"""The records of one optimizer: what of a logged row goes into the event file, and what is remembered of it."""

import json
from copy import copy
from math import isfinite, nan
from typing import Any

import torch

from lightning_calib.dashboard.decimation import Pool, room, stride
from lightning_calib.dashboard.event_detector import EventDetector
from lightning_calib.dashboard.event_file import Record
from lightning_calib.dashboard.records import Logged, Rows
from lightning_calib.functional.saved_state import DamagedStateError, ListOf, OrNone, check_saved, entry, tensor_fits
from lightning_calib.report.events import Event
from lightning_calib.tensorboard.contract import (
    ABSENT_GLOBALS,
    EVENTS,
    GLOBAL_NAMES,
    GLOBALS,
    HISTOGRAM_COLUMNS,
    HISTOGRAMS,
    LAYERS,
    SCALARS,
    SHADOW_COLUMNS,
    SHADOWS,
    SIDES,
    STATISTICS,
)

HISTOGRAM_EVERY = 10  # logged rows
_HISTOGRAMS = 100  # at least so many are written before they become rarer
_FIRST_NAMES = 15  # of globals, in states of the first edition
LATEST = torch.tensor([scalar.latest for scalar in SCALARS])  # globals of which a pool keeps the last value


def _plain(event: Event) -> dict[str, Any]:
    """JSON has no infinity."""
    known = event.value is not None and isfinite(event.value)
    return event._replace(value=event.value if known else None)._asdict()


class RecordStream:
    """Turns rows into records. Everything that a later record depends on is in `saved`.

    A value for its users: `after` and `flushed` give another stream, and leave this one as it is.
    """

    layers: Pool
    totals: Pool
    shadows: Pool

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.layers, self.totals, self.shadows = Pool(), Pool(), Pool()
        self.detector: EventDetector = EventDetector(rows.names)
        self.waiting: tuple[Event, ...] = ()

    @property
    def histogram_due(self) -> bool:
        """Whether the next row is one of those that have histograms: the first and every tenth; rarer in long runs."""
        turn, rest = divmod(self.layers.rows, HISTOGRAM_EVERY)
        size = len(self.rows.modules) * len(SIDES) * len(HISTOGRAM_COLUMNS) * 4
        return rest == 0 and turn % stride(turn, min(_HISTOGRAMS, room(size))) == 0

    def after(self, row: Logged) -> "tuple[list[Record], RecordStream]":
        """The records of a row, none where it goes into one that is not full yet; and the stream that goes on."""
        following, found, first = copy(self), [], room(row.layers.numel() * 4)
        events, following.detector = self.detector.after(row)
        following.waiting = (*self.waiting, *events)
        following.layers, full = self.layers.add(row.step, row.layers, first)
        if full.values is not None:
            found.append(self.rows.record(LAYERS, full.values))
        following.totals, full = self.totals.add(row.step, row.totals, first, LATEST)
        if full.values is not None:
            found.append(self.rows.record(GLOBALS, full.values))
        if row.shadows is not None:
            last = torch.ones_like(row.shadows, dtype=torch.bool)
            following.shadows, full = self.shadows.add(row.step, row.shadows, first, last)
            if full.values is not None:
                found.append(self.rows.record(SHADOWS, full.values))
        if row.histograms is not None:
            found.append(self.rows.record(HISTOGRAMS, row.histograms))
        events_record, following = following.flushed()
        return found + events_record, following

    def with_event(self, event: Event) -> "RecordStream":
        """It goes with the next record of events, if none with its text waits already."""
        following = copy(self)
        if event.text not in [one.text for one in self.waiting]:
            following.waiting = (*self.waiting, event)
        return following

    def flushed(self) -> "tuple[list[Record], RecordStream]":
        """A record of what has happened since the last one, if anything has; and the stream that goes on."""
        following, events = copy(self), self.waiting
        following.waiting = ()
        record = json.dumps([_plain(event) for event in events])
        return [self.rows.record(EVENTS, record)] if events else [], following

    def unfinished(self) -> tuple[list[Record], int]:
        """What the pools hold, and the step it is of: at the end of a run, and when the rows change. They keep it."""
        pools = {LAYERS: self.layers.values, GLOBALS: self.totals.values, SHADOWS: self.shadows.values}
        found = [self.rows.record(kind, values) for kind, values in pools.items() if values is not None]
        return found, self.layers.step

    def saved(self) -> dict[str, Any]:
        """For the checkpoint: builtins and CPU tensors."""
        shadows = self.rows.shadows.names
        return {
            "names": list(self.rows.names),
            "layers": self.layers.saved(),
            "totals": self.totals.saved(),
            "happenings": self.detector.saved(),
            "waiting": [list(event) for event in self.waiting],
            **({"shadows": {**self.shadows.saved(), "names": list(shadows)}} if shadows else {}),
        }

    @staticmethod
    def restored(rows: Rows, saved: dict[str, Any], key: str = "stream") -> "RecordStream":
        """What was saved; what is of other rows is left out, but for what is known by name.

        Raises:
            DamagedStateError: If something does not fit.
        """
        found = RecordStream(rows)
        names, waiting = entry(saved, "names", key), entry(saved, "waiting", key)
        check_saved(names, ListOf(""), f"{key}.names")
        check_saved(waiting, ListOf([0, "", "", OrNone(""), OrNone(nan)]), f"{key}.waiting")
        found.layers = Pool.restored(entry(saved, "layers", key), (len(names), len(STATISTICS)), f"{key}.layers")
        found.totals = Pool.restored(_completed(entry(saved, "totals", key)), (len(GLOBAL_NAMES),), f"{key}.totals")
        found.detector.restore(entry(saved, "happenings", key), names, f"{key}.happenings")
        if not found.layers.rows == found.totals.rows == found.detector.row:
            raise DamagedStateError(
                f"`{key}.layers.rows`, `{key}.totals.rows` and `{key}.happenings.row` are not the same"
            )
        if rows.shadows.names and "shadows" in saved:
            found.shadows = _of_shadows(saved["shadows"], rows.shadows.names, f"{key}.shadows")
        if names != list(found.rows.names):
            found.layers, found.totals = found.layers._replace(values=None), found.totals._replace(values=None)
        found.waiting = tuple(Event(*one) for one in waiting)
        return found


def _of_shadows(saved: Any, names: tuple[str, ...], key: str) -> Pool:
    """What was saved of the same shadows; nothing of others."""
    known = entry(saved, "names", key)
    check_saved(known, ListOf(""), f"{key}.names")
    pool = Pool.restored(
        {name: one for name, one in saved.items() if name != "names"}, (len(known), len(SHADOW_COLUMNS)), key
    )
    return pool if known == list(names) else Pool()


def _completed(totals: Any) -> Any:
    """With the names that have come since it was saved."""
    values = totals.get("values") if isinstance(totals, dict) else None
    for known in range(_FIRST_NAMES, len(ABSENT_GLOBALS)):
        if values is not None and tensor_fits(values, torch.zeros(known)):
            return {**totals, "values": torch.cat([values, torch.tensor([*ABSENT_GLOBALS.values()][known:])])}
    return totals
