"""The records of one optimizer: what of a logged row goes into the event file, and what is remembered of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import isfinite, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.saved_state import DamagedStateError, ListOf, OrNone, check_saved, entry
from lightning_calib.report.events import Event
from lightning_calib.tensorboard.contract import (
    EVENTS,
    GLOBAL_NAMES,
    GLOBALS,
    HISTOGRAM_COLUMNS,
    HISTOGRAMS,
    LAYERS,
    LOW_EXPONENT,
    SIDES,
    STATISTICS,
)
from lightning_calib.tensorboard.decimate import Pool, room, stride
from lightning_calib.tensorboard.happenings import Happenings
from lightning_calib.tensorboard.writer import Record

HISTOGRAM_EVERY = 10  # logged rows
_HISTOGRAMS = 100  # at least so many are written before they become rarer
_LATEST = ("lr", "lr_effective", "loss_scale", "norm_p10", "norm_p50", "norm_p90", "clip_threshold")
LATEST = torch.tensor([name in _LATEST for name in GLOBAL_NAMES])  # globals of which a pool keeps the last value


@dataclass(frozen=True)
class Rows:
    """What the numbers of a record are of.

    Attributes:
        optimizer: Its index.
        kind: Its class.
        suffix: Of the tags.
        names: The parameters.
        owners: For each the module that owns it.
        dims: For each its number of dimensions.
        estimated: For each whether the norms of weight and update are estimates.
    """

    optimizer: int
    kind: str
    suffix: str
    names: tuple[str, ...]
    owners: tuple[str, ...]
    dims: tuple[int, ...]
    estimated: tuple[bool, ...]

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The modules that own parameters, each once."""
        return tuple(dict.fromkeys(self.owners))

    @cached_property
    def module_of(self) -> tuple[int, ...]:
        """The position of each parameter's module among them."""
        place = {name: i for i, name in enumerate(self.modules)}
        return tuple(place[name] for name in self.owners)

    def record(self, kind: str, value: Tensor | str) -> Record:
        """One value of a tag; the tag carries a digest of the rows, so that other rows have another tag."""
        about: dict[str, Any] = {"kind": kind, "optimizer": self.optimizer, "optimizer_name": self.kind}
        digest = ""
        if kind == LAYERS:
            stats = [{"name": name, "fold": fold} for name, fold in STATISTICS.items()]
            about |= {"rows": self.names, "owners": self.owners, "dims": self.dims}
            about |= {"estimated": self.estimated, "stats": stats}
            digest = _digest(self.names)
        elif kind == GLOBALS:
            about |= {"names": GLOBAL_NAMES}
        elif kind == HISTOGRAMS:
            about |= {"rows": self.modules, "sides": SIDES, "columns": HISTOGRAM_COLUMNS, "low": LOW_EXPONENT}
            digest = _digest(self.modules)
        return Record(f"calib/{kind}{digest}{self.suffix}", about, value)


def _plain(event: Event) -> dict[str, Any]:
    """JSON has no infinity."""
    known = event.value is not None and isfinite(event.value)
    return event._replace(value=event.value if known else None)._asdict()


def _digest(names: Sequence[str]) -> str:
    return "." + sha256(json.dumps(names).encode()).hexdigest()[:8]


class Logged(NamedTuple):
    """A logged row, on the host.

    Attributes:
        step: Its x.
        layers: Shape (T, 5), see ``STATISTICS``.
        totals: Shape (15,), see ``GLOBAL_NAMES``.
        histograms: Shape (2, M, 67), see ``HISTOGRAM_COLUMNS``; None where none was taken.
        idle: Shape (T,), bool: tensors that are meant to have no gradient.
        incidents: Steps whose gradient was not finite, of which more is known: step, tensor, sentence.
    """

    step: int
    layers: Tensor
    totals: Tensor
    histograms: Tensor | None
    idle: Tensor
    incidents: tuple[tuple[int, str, str], ...] = ()


class Stream:
    """Turns rows into records. Everything that a later record depends on is in `saved`."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.layers, self.totals = Pool(), Pool()
        self.happenings = Happenings(rows.names)
        self.waiting: list[Event] = []

    @property
    def histogram_due(self) -> bool:
        """Whether the next row is one of those that have histograms: the first and every tenth; rarer in long runs."""
        turn, rest = divmod(self.layers.rows, HISTOGRAM_EVERY)
        size = len(self.rows.modules) * len(SIDES) * len(HISTOGRAM_COLUMNS) * 4
        return rest == 0 and turn % stride(turn, min(_HISTOGRAMS, room(size))) == 0

    def take(self, row: Logged) -> list[Record]:
        """The records of a row: none where it goes into one that is not full yet."""
        self.waiting += self.happenings.of(row)
        first = room(row.layers.numel() * 4)
        found = []
        self.layers, full = self.layers.add(row.step, row.layers, first)
        if full.values is not None:
            found.append(self.rows.record(LAYERS, full.values))
        self.totals, full = self.totals.add(row.step, row.totals, first, LATEST)
        if full.values is not None:
            found.append(self.rows.record(GLOBALS, full.values))
        if row.histograms is not None:
            found.append(self.rows.record(HISTOGRAMS, row.histograms))
        return found + self.events()

    def events(self) -> list[Record]:
        """A record of what has happened since the last one, if anything has."""
        told, self.waiting = self.waiting, []
        return [self.rows.record(EVENTS, json.dumps([_plain(event) for event in told]))] if told else []

    def unfinished(self) -> tuple[list[Record], int]:
        """What the pools hold, and the step it is of: at the end of a run, and when the rows change. They keep it."""
        pools = {LAYERS: self.layers.values, GLOBALS: self.totals.values}
        found = [self.rows.record(kind, values) for kind, values in pools.items() if values is not None]
        return found, self.layers.step

    def saved(self) -> dict[str, Any]:
        """For the checkpoint: builtins and CPU tensors."""
        return {
            "names": list(self.rows.names),
            "layers": self.layers.saved(),
            "totals": self.totals.saved(),
            "happenings": self.happenings.saved(),
            "waiting": [list(event) for event in self.waiting],
        }

    def restore(self, saved: dict[str, Any], key: str = "stream") -> None:
        """Take up what was saved; what is of other rows is left out, but for what is known by name.

        Raises:
            DamagedStateError: If something does not fit.
        """
        names, waiting = entry(saved, "names", key), entry(saved, "waiting", key)
        check_saved(names, ListOf(""), f"{key}.names")
        check_saved(waiting, ListOf([0, "", "", OrNone(""), OrNone(nan)]), f"{key}.waiting")
        self.layers = Pool.restored(entry(saved, "layers", key), (len(names), len(STATISTICS)), f"{key}.layers")
        self.totals = Pool.restored(entry(saved, "totals", key), (len(GLOBAL_NAMES),), f"{key}.totals")
        self.happenings.restore(entry(saved, "happenings", key), names, f"{key}.happenings")
        if not self.layers.rows == self.totals.rows == self.happenings.row:
            raise DamagedStateError(
                f"`{key}.layers.rows`, `{key}.totals.rows` and `{key}.happenings.row` are not the same"
            )
        if names != list(self.rows.names):
            self.layers, self.totals = self.layers._replace(values=None), self.totals._replace(values=None)
        self.waiting = [Event(*one) for one in waiting]
