"""What the routes answer, in numbers: frames of one matrix each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_calib.tensorboard.contract import ABSENT_GLOBALS, GLOBALS, HISTOGRAMS, LAYERS
from lightning_calib.tensorboard.folding import fold, fold_histograms, members
from lightning_calib.tensorboard.frames import frame
from lightning_calib.tensorboard.merge import Table, ordered, union
from lightning_calib.tensorboard.reading import Records
from lightning_calib.tensorboard.refused import Refused, require, shown
from lightning_calib.tensorboard.selection import Selection


def totals(chosen: Selection) -> bytes:
    """One row per step, one column per name of the globals."""
    found = chosen.records(GLOBALS)
    parts = [Table(each.about.names, each.steps, each.walls, np.stack(each.values)) for each in found]
    table = union(parts, absent=ABSENT_GLOBALS)
    return frame({"names": table.labels, **_axis(table, found), "walls": table.walls.tolist()}, table.values)


def layers(chosen: Selection) -> bytes:
    """One statistic: one row per layer, one column per step."""
    stat, found = chosen.word("stat"), chosen.records(LAYERS)
    folds = _folds(found)
    if stat not in folds:
        raise Refused(f"`stat` must be one of {', '.join(folds)}, got {shown(stat)}", 404)
    table = union([_column(each, stat) for each in found])
    header = {"rows": table.labels, **_of_rows(found, table.labels), "stats": _listed(folds), "stat": stat}
    return frame({**header, "fold": folds[stat], **_axis(table, found)}, table.values.T)


def node(chosen: Selection) -> bytes:
    """Every statistic of a module or parameter: one row per statistic, one column per step."""
    path, found = chosen.word("path"), chosen.records(LAYERS)
    rows = [[each.about.rows[i] for i in members(path, each.about.rows, each.about.owners)] for each in found]
    if not any(rows):
        raise Refused(f"`path` must be a layer or module of run {shown(chosen.name)}, got {shown(path)}", 404)
    table, folds = union([_folded(each, path) for each in found]), _folds(found)
    stats = _listed({name: folds[name] for name in table.labels})
    return frame({"path": path, "rows": ordered(rows[::-1]), "stats": stats, **_axis(table, found)}, table.values.T)


def histograms(chosen: Selection) -> bytes:
    """Exponent counts of a module, summed over its rows: (steps, sides, columns)."""
    path, found = chosen.word("path"), chosen.records(HISTOGRAMS)
    under = [members(path, each.about.rows) for each in found]
    found, under = [each for each, own in zip(found, under, strict=True) if own], [own for own in under if own]
    if not found:
        raise Refused(f"`path` must be a module with histograms, got {shown(path)}", 404)
    rows = [[each.about.rows[i] for i in own] for each, own in zip(found, under, strict=True)]
    axes = [(each.about.sides, each.about.columns, each.about.low) for each in found]
    require(axes.count(axes[0]) == len(axes), "columns", "the same throughout the run", [axis[1:] for axis in axes])
    parts = []
    for each, own in zip(found, under, strict=True):
        folded = fold_histograms(np.stack([value[:, own] for value in each.values]))
        parts.append(Table([path], each.steps, each.walls, folded[:, None]))
    table = union(parts, parts[0].values.shape[2:])
    header = {"path": path, "rows": ordered(rows[::-1]), "sides": axes[0][0], "columns": axes[0][1], "low": axes[0][2]}
    return frame({**header, **_axis(table, found)}, table.values[:, 0])


def _column(records: Records, stat: str) -> Table:
    """One statistic of a tag; without rows where the tag lacks it."""
    stats = list(records.about.stats)
    if stat not in stats:
        return Table([], records.steps, records.walls, np.zeros((len(records.steps), 0), np.float32))
    values = np.stack([value[:, stats.index(stat)] for value in records.values])
    return Table(records.about.rows, records.steps, records.walls, values)


def _folded(records: Records, path: str) -> Table:
    """The statistics of a path; without any where the tag has no layer of it."""
    own = members(path, records.about.rows, records.about.owners)
    folds = records.about.stats if own else {}
    values = np.stack([value[own] for value in records.values])
    folded = [fold(values[:, :, index], how) for index, how in enumerate(folds.values())]
    table = np.stack(folded, axis=1) if folded else np.zeros((len(records.steps), 0), np.float32)
    return Table(list(folds), records.steps, records.walls, table)


def _axis(table: Table, found: Sequence[Records]) -> dict[str, Any]:
    return {"steps": table.steps.tolist(), "thinned": any(each.thinned for each in found)}


def _folds(found: Sequence[Records]) -> dict[str, str]:
    """All statistics, those of the newest tag first, and how each folds."""
    folds: dict[str, str] = {}
    for each in reversed(found):
        folds = {**each.about.stats, **folds}
    return folds


def _listed(folds: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "fold": how} for name, how in folds.items()]


def _of_rows(found: Sequence[Records], rows: Sequence[str]) -> dict[str, list[Any]]:
    """What the metadata say of each row, the newest tag that has it first."""
    known: dict[str, tuple[Any, ...]] = {}
    for each in found:
        about = each.about
        known |= dict(zip(about.rows, zip(about.owners, about.dims, about.estimated, strict=True), strict=True))
    return {key: [known[row][index] for row in rows] for index, key in enumerate(("owners", "dims", "estimated"))}
