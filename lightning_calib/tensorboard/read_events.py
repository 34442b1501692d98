"""From event files to rows: one story of every optimizer, whatever was resumed, overwritten or renamed."""

import re
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tensorboard.util.tensor_util import make_ndarray

from lightning_calib.report.layer_rows import LayerRows
from lightning_calib.report.run import Floats
from lightning_calib.report.shadow_rows import ShadowRows
from lightning_calib.report.wording import quoted
from lightning_calib.tensorboard.about import parse
from lightning_calib.tensorboard.contract import (
    ABSENT,
    ABSENT_GLOBALS,
    EVENTS,
    FACTS,
    GLOBALS,
    HISTOGRAMS,
    LAYERS,
    SHADOW_COLUMNS,
    SHADOWS,
)
from lightning_calib.tensorboard.event_files import Found, Loaded, RunFiles, load, standing
from lightning_calib.tensorboard.event_rows import EventRows, OptimizerRows
from lightning_calib.tensorboard.facts_record import FactsRecord, parse_facts
from lightning_calib.tensorboard.find_runs import one_run
from lightning_calib.tensorboard.lists import parse_events
from lightning_calib.tensorboard.merge import Table, current, union
from lightning_calib.tensorboard.reading import Records, Series, check, in_order
from lightning_calib.tensorboard.refused import Refused, shown
from lightning_calib.tensorboard.unexpanded import form_of_proto

_TAG = re.compile(r"(?:^|-)calib/(?P<name>.+?)(?:/(?P<optimizer>[0-9]{1,3}))?$")  # a logger's prefix ends in "-"
_NONE_FINITE = "grad_norm_max"  # the largest finite norm: nan where there is none


def read_events(logdir: str | PathLike[str]) -> EventRows:
    """Every number that a run has logged with this package, as arrays, from its event files alone.

    It needs neither torch nor Lightning nor TensorBoard's server. Steps that a resumed run has written again count
    once. Histograms are not read.

    Args:
        logdir: The folder of one run, such as ``"lightning_logs/version_0"``, or one above it.

    Returns:
        `EventRows`: of each optimizer ``scalars`` by name, ``layers`` with the names of the parameters, ``facts`` and
        ``shadows``; of the run ``events`` in words, and ``problems`` with what could not be read. ``to_pandas()``
        makes one table.

    Raises:
        FileNotFoundError: If there is no such folder, or no run with records of ours in it.
        TypeError: If it is no path.
        ValueError: If the folder has several runs.

    Example:
        >>> from lightning_calib import read_events
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> with SummaryWriter("logs") as writer:
        ...     writer.add_scalar("calib/grad_norm_before", 1.5, 9)
        >>> read_events("logs").optimizers[0].scalars["grad_norm_before"]
        array([1.5])
    """
    if not isinstance(logdir, str | PathLike) or not isinstance(fspath(logdir), str):
        raise TypeError(f'`logdir` must be a path, got {quoted(logdir)}. Use for instance "lightning_logs/version_0".')
    return read_run(one_run(Path(logdir)))


class _Datum(NamedTuple):
    """As TensorBoard's data provider would give it."""

    step: int
    wall_time: float
    numpy: Any


def read_run(run: RunFiles, progress: Callable[[int], None] = lambda size: None) -> EventRows:
    """The rows of one run; without optimizers where it has none of ours.

    Args:
        run: Its files.
        progress: Is told how many bytes have been read since the last time.
    """
    loaded = load(run, progress)
    series, problems = _series(run.name, loaded)
    tags = _scalar_tags(loaded)
    indices = sorted({one.about.optimizer for one in series} | set(tags))
    found, events = list[OptimizerRows](), list[dict[str, Any]]()
    for index in indices:
        mine = [one for one in series if one.about.optimizer == index]
        records = _records(mine, loaded, problems)
        try:
            rows = _optimizer(index, mine, records, tags.get(index, {}), problems)
        except Refused as refusal:  # a table that would not fit
            problems.append(str(refusal))
            continue
        told = _events(records, problems)
        found += [rows._replace(events=tuple(told))] if len(rows.step) or rows.layers is not None else []
        events += told
    events.sort(key=lambda event: int(event["step"]))
    return EventRows(run.name, tuple(found), tuple(events), tuple(problems), run.folder)


def _events(records: Sequence[Records], problems: list[str]) -> list[dict[str, Any]]:
    """In the order of their steps."""
    found = list[dict[str, Any]]()
    for text in (value for one in records if one.about.kind == EVENTS for value in one.values):
        try:
            found += parse_events(text.item())
        except Refused as refusal:
            problems.append(str(refusal))
    return sorted(found, key=lambda event: int(event["step"]))


def _series(run: str, loaded: Loaded) -> tuple[list[Series], list[str]]:
    series, problems = [], list(loaded.problems)
    for tag, content in loaded.content.items():
        try:
            series.append(Series(run, tag, parse(content), loaded.records[tag][-1].step))
        except Refused as refusal:
            problems.append(f"{shown(tag)}: {refusal}")
    return series, problems


def _records(series: Sequence[Series], loaded: Loaded, problems: list[str]) -> list[Records]:
    """The standing records of one optimizer, of every kind but histograms."""
    kinds: dict[str, list[Records]] = {}
    for one in series:
        if one.about.kind == HISTOGRAMS:
            continue
        try:
            found = loaded.records[one.tag]
            for each in found:
                check(one, each.step, form_of_proto(each.value))
            data = [_Datum(each.step, each.wall_time, make_ndarray(each.value)) for each in found]
            kinds.setdefault(one.about.kind, []).append(in_order(one, data, len(data) + 1))
        except Refused as refusal:
            problems.append(str(refusal))
    clock = kinds.get(GLOBALS, [])
    return [one for kind, found in kinds.items() for one in current(found, [] if kind == GLOBALS else clock)]


def _scalar_tags(loaded: Loaded) -> dict[int, dict[str, list[Found]]]:
    """By optimizer and name, without what a resumed run has written again."""
    begins: dict[int, int] = {}
    for found in loaded.scalars.values():
        for one in found:
            begins[one.file] = min(one.step, begins.get(one.file, one.step))
    tags: dict[int, dict[str, list[Found]]] = {}
    for tag, found in loaded.scalars.items():
        if (parts := _TAG.search(tag)) is not None and parts["name"] != "":
            tags.setdefault(int(parts["optimizer"] or 0), {})[parts["name"]] = standing(found, begins)
    return tags


def _optimizer(
    index: int, series: list[Series], records: list[Records], tags: dict[str, list[Found]], problems: list[str]
) -> OptimizerRows:
    step, scalars = _scalars([one for one in records if one.about.kind == GLOBALS], tags)
    name = max(series, key=lambda one: one.last_step).about.optimizer_name if series else ""
    layers = _layers([one for one in records if one.about.kind == LAYERS])
    facts = _facts([one for one in records if one.about.kind == FACTS], problems)
    shadows = _shadows([one for one in records if one.about.kind == SHADOWS])
    return OptimizerRows(index, name, step, scalars, layers, facts, shadows=shadows)


def _scalars(records: list[Records], tags: dict[str, list[Found]]) -> tuple[NDArray[np.int64], dict[str, Floats]]:
    """From the records what has no tag; what has one from there: of long runs the records have not every row."""
    parts = [Table(one.about.names, one.steps, one.walls, np.stack(one.values)) for one in records]
    table = union(parts, absent=ABSENT_GLOBALS)
    logged = {name: {one.step: float(one.value) for one in found} for name, found in tags.items()}
    steps = np.unique(np.concatenate([table.steps, *(np.array([*row], np.int64) for row in logged.values())]))
    scalars = {}
    for place, name in enumerate(table.labels):
        column, values = np.full(len(steps), np.nan), table.values[:, place].astype(np.float64)
        column[np.searchsorted(steps, table.steps)] = _marked(values, name, ABSENT_GLOBALS.get(name, ABSENT))
        scalars[name] = column
    for name, row in logged.items():
        at = np.searchsorted(steps, np.array([*row], np.int64))
        column = scalars.setdefault(name, np.full(len(steps), np.nan))
        column[at] = _marked(np.array([*row.values()], np.float64), name, None)
    return steps.astype(np.int64), scalars


def _layers(records: list[Records]) -> LayerRows | None:
    if not records:
        return None
    stats = list(dict.fromkeys(stat for one in reversed(records) for stat in one.about.stats))
    known: dict[str, tuple[Any, ...]] = {}
    for one in records:
        about = one.about
        known |= dict(zip(about.rows, zip(about.owners, about.dims, about.estimated, strict=True), strict=True))
    values, table = {}, None
    for stat in stats:
        having = [one for one in records if stat in one.about.stats]
        parts = []
        for one in records:
            place = list(one.about.stats).index(stat) if one in having else None
            column = [value[:, place] if place is not None else np.full(len(value), ABSENT) for value in one.values]
            parts.append(Table(one.about.rows, one.steps, one.walls, np.stack(column).astype(np.float32)))
        table = union(parts)
        values[stat] = _marked(table.values.astype(np.float64), stat, ABSENT)
    assert table is not None  # noqa: S101  # every record has a statistic: `about` has checked it
    owners, dims, estimated = zip(*(known[name] for name in table.labels), strict=True)
    return LayerRows(tuple(table.labels), owners, dims, estimated, table.steps, values)


def _shadows(records: list[Records]) -> ShadowRows | None:
    """Those of the newest records: with other shadows, a resumed run begins anew."""
    if not records:
        return None
    about, table = records[-1].about, np.stack(records[-1].values).astype(np.float64)
    marked = np.where(np.isfinite(table) & (table >= 0), table, np.nan)
    values = {name: marked[:, :, i] for i, name in enumerate(about.columns)}
    known = {name: values.get(name, np.full(table.shape[:2], np.nan)) for name in SHADOW_COLUMNS}
    return ShadowRows(tuple(about.rows), tuple(about.policies), tuple(about.scopes), records[-1].steps, known)


def _facts(records: list[Records], problems: list[str]) -> FactsRecord | None:
    """The last; a run that was resumed writes them again."""
    try:
        return parse_facts(records[-1].values[-1].item()) if records else None
    except Refused as refusal:
        problems.append(str(refusal))
        return None


def _marked(values: Floats, name: str, absent: float | None) -> Floats:
    """Put nan where there is no number, inf where it was not finite."""
    marked: Floats = np.where(np.isfinite(values), values, np.nan if name == _NONE_FINITE else np.inf)
    return marked if absent is None else np.where(values == absent, np.nan, marked)
