"""What a tag's metadata say, checked: an event file may come from anywhere."""

import json
from dataclasses import dataclass, field
from typing import Any

from lightning_calib.tensorboard.contract import EVENTS, FACTS, GLOBALS, HISTOGRAMS, LAYERS, SHADOWS, VERSION
from lightning_calib.tensorboard.refused import Refused, require, shown

TEXTS = (EVENTS, FACTS)  # kinds of records that are texts
KINDS = (LAYERS, GLOBALS, HISTOGRAMS, SHADOWS, *TEXTS)
FOLDS = ("l2", "max")
MOST_METADATA = 2**26  # bytes; a name of 40 characters takes about 100
MOST_NUMBERS = 2**24  # numbers in one record, 64 MiB


@dataclass(frozen=True)
class About:
    """The metadata of a tag; which lists are empty depends on the kind.

    Attributes:
        kind: One of `KINDS`.
        optimizer: Its index, from 0.
        optimizer_name: Its class.
        rows: Names of the parameters (layers) or of the shadows, or paths of the modules (hist).
        owners: Path of the module that owns each row.
        dims: Number of dimensions of each row's tensor.
        estimated: Whether weight and update norms of the row are estimates.
        stats: Columns of a layers record, and the fold of each.
        names: Entries of a globals record.
        sides: First axis of a hist record.
        columns: Last axis of a hist record, or of a shadows record.
        policies: Of each shadow, as a constructor's call.
        scopes: What makes a segment of each shadow.
        low: Exponent of the first histogram column.
    """

    kind: str
    optimizer: int
    optimizer_name: str
    rows: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    dims: list[int] = field(default_factory=list)
    estimated: list[bool] = field(default_factory=list)
    stats: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    sides: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    low: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one record; () for texts."""
        axes = {
            LAYERS: (self.rows, self.stats),
            GLOBALS: (self.names,),
            HISTOGRAMS: (self.sides, self.rows, self.columns),
            SHADOWS: (self.rows, self.columns),
            EVENTS: (),
            FACTS: (),
        }
        return tuple(len(axis) for axis in axes[self.kind])

    @property
    def numbers(self) -> int:
        """How many numbers a record holds."""
        product = 1
        for size in self.shape:
            product *= size
        return product


def parse(content: bytes) -> About:
    """Metadata from their JSON.

    Args:
        content: As it stands in the event file.

    Raises:
        Refused: With the key, the rule and the value.
    """
    found = _loaded(content)
    if found.get("version") != VERSION:
        got = shown(found.get("version"))
        raise Refused(
            f"`version` must be {VERSION}, got {got}. Start TensorBoard with the lightning-calib that wrote it"
        )
    require(found.get("kind") in KINDS, "kind", f"one of {', '.join(KINDS)}", found.get("kind"))
    about = About(
        kind=found["kind"],
        optimizer=_whole(found, "optimizer", 0, 999),
        optimizer_name=_all(found, "optimizer_name", str),
        **_READERS[found["kind"]](found),
    )
    require(about.numbers <= MOST_NUMBERS, "shape", f"at most {MOST_NUMBERS} numbers in a record", about.shape)
    return about


def _loaded(content: bytes) -> dict[str, Any]:
    require(len(content) <= MOST_METADATA, "metadata", f"at most {MOST_METADATA} bytes", len(content))
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused("`metadata` must be JSON, and are not") from None
    require(isinstance(found, dict), "metadata", "a JSON object", found)
    return dict(found)


def _layers(found: dict[str, Any]) -> dict[str, Any]:
    rows = _names(found, "rows")
    stats = _all(found, "stats", list)
    entries = [entry if isinstance(entry, dict) else {} for entry in stats]
    folds = {str(entry.get("name")): str(entry.get("fold")) for entry in entries}
    right = all(isinstance(entry.get("name"), str) and entry.get("fold") in FOLDS for entry in entries)
    require(right and 0 < len(folds) == len(stats), "stats", f"distinct names, each with a fold of {FOLDS}", stats)
    more = {"owners": str, "dims": int, "estimated": bool}
    return {"rows": rows, "stats": folds, **{key: _each(found, key, kind, len(rows)) for key, kind in more.items()}}


def _globals(found: dict[str, Any]) -> dict[str, Any]:
    return {"names": _names(found, "names")}


def _histograms(found: dict[str, Any]) -> dict[str, Any]:
    named = {key: _names(found, key) for key in ("rows", "sides", "columns")}
    require(
        named["columns"][:3] == ["zero", "nonfinite", "top"], "columns", "zero, nonfinite, top, ...", found["columns"]
    )
    return {**named, "low": _whole(found, "low", -2000, 2000)}


def _shadows(found: dict[str, Any]) -> dict[str, Any]:
    rows, columns = _names(found, "rows"), _names(found, "columns")
    return {
        "rows": rows,
        "columns": columns,
        **{key: _each(found, key, str, len(rows)) for key in ("policies", "scopes")},
    }


def _text(found: dict[str, Any]) -> dict[str, Any]:
    return {}


_NUMBERS = {LAYERS: _layers, GLOBALS: _globals, HISTOGRAMS: _histograms, SHADOWS: _shadows}
_READERS = {**_NUMBERS, **dict.fromkeys(TEXTS, _text)}


def _all(found: dict[str, Any], key: str, kind: type) -> Any:
    require(type(found.get(key)) is kind, key, f"a {kind.__name__}", found.get(key))
    return found[key]


def _whole(found: dict[str, Any], key: str, least: int, most: int) -> int:
    value = found.get(key)
    require(type(value) is int and least <= value <= most, key, f"a whole number from {least} to {most}", value)
    return int(found[key])


def _each(found: dict[str, Any], key: str, kind: type, size: int) -> list[Any]:
    values = _all(found, key, list)
    right = len(values) == size and all(type(value) is kind for value in values)
    require(right, key, f"a list of {size} {kind.__name__}, one for each row", values)
    return list(values)


def _names(found: dict[str, Any], key: str) -> list[str]:
    values = _all(found, key, list)
    right = all(type(value) is str for value in values) and 0 < len(values) == len(set(values))
    require(right, key, "a list of distinct names, at least one", values)
    return list(values)
