"""From the rows of event files to what a report reads. What a file does not know stays unknown."""

import re
from collections.abc import Mapping

import numpy as np

from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.incident import was_dropped
from lightning_calib.report.layer_rows import LayerRows
from lightning_calib.report.run import Clipper, Counts, Facts, Floats, How, Layers, Run, Scalars
from lightning_calib.report.shadow_rows import ShadowRows
from lightning_calib.tensorboard.contract import GUARDED_KINDS
from lightning_calib.tensorboard.even_rows import groups
from lightning_calib.tensorboard.event_rows import EventRows, OptimizerRows
from lightning_calib.tensorboard.facts_record import FactsRecord, LayerFacts

MOST_ROWS, MOST_LAYER_ROWS = 2000, 512
_COUNTS = ("nonfinite_total", "skipped_total", "rewound", "spikes")
_SOMEBODY = "A clip whose name the file does not have"
_NAMED = re.compile(r".*\((?P<name>[^()]*)\)")  # how a callback with a name is called


def runs_of(events: EventRows) -> list[Run]:
    """The numbers of every optimizer, from a run's event files."""
    return [_run(one, len(events.optimizers)) for one in events.optimizers]


def _run(rows: OptimizerRows, optimizers: int) -> Run:
    told = rows.facts or FactsRecord(
        Facts(rows.name, rows.optimizer, optimizers=optimizers), LayerFacts(), _clippers_seen(rows.scalars)
    )
    scalars, counts = _scalars(rows), _counts(rows, told.facts)
    layers = None if rows.layers is None else _layers(rows.layers, told.layers)
    clippers = tuple(_with_rate(one, told.clippers, rows.scalars) for one in told.clippers)
    known = [one for one in rows.events if one["kind"] in GUARDED_KINDS and one["value"] is None]
    bad = tuple(BadStep(int(one["step"]), one["kind"], one["layer"]) for one in known)
    shadows = None if rows.shadows is None else _even(rows.shadows)
    return Run(told.facts, counts, scalars, layers, clippers, bad_steps=bad, shadows=shadows)


def _even(rows: ShadowRows) -> ShadowRows:
    """At most some hundred rows, as a fit keeps them."""
    into = groups(rows.step, np.ones(len(rows.step), bool), MOST_LAYER_ROWS)
    values = {name: into.joined(found, name) for name, found in rows.values.items()}
    return rows._replace(step=into.steps(rows.step), values=values)


def _scalars(rows: OptimizerRows) -> Scalars:
    unknown = np.full(len(rows.step), np.nan)
    records = rows.scalars.get("loss", rows.scalars.get("norm_p50", unknown))  # what stands in records alone
    into = groups(rows.step, ~np.isnan(records), MOST_ROWS)
    columns = {}
    for name in Scalars._fields[1:]:
        named = next((one for one in rows.scalars if one.partition(".")[0] == name), name)
        values = rows.scalars.get(name, unknown)
        if np.isnan(values).all():
            values = rows.scalars.get(named, unknown)
        columns[name] = into.joined(values, name)
    return Scalars(step=into.steps(rows.step), **columns)


def _counts(rows: OptimizerRows, facts: Facts) -> Counts:
    """From the x of the rows, which is the number of batches before; one step for each batch."""
    if not len(rows.step):
        return Counts()
    first, last = int(rows.step[0]), int(rows.step[-1])
    gap = int(np.median(np.diff(rows.step))) if len(rows.step) > 1 else first + 1
    earlier = 2 * (first + 1) > 3 * gap  # the first row is at the end of the first window
    steps = last - first + gap if earlier else last + 1
    nonfinite, skipped, rewound, spikes = (_last(rows.scalars, name) for name in _COUNTS)
    told = [one for one in rows.events if one["kind"] == "nonfinite" and one["value"] is None and one["step"] > last]
    if told:  # by a guard, after the last row
        steps += max(int(one["step"]) for one in told) - last
        nonfinite, skipped = nonfinite + len(told), skipped + sum(was_dropped(one["text"]) for one in told)
    norms = rows.scalars.get("grad_norm_before", np.zeros(0))
    usable = steps - max(nonfinite, skipped) if (np.isfinite(norms) & (norms > 0)).any() else 0
    left, known = _left(rows.scalars, steps)
    planned, per_epoch = facts.steps_planned, facts.steps_per_epoch
    return Counts(
        steps=steps,
        usable=max(0, usable),
        skipped=skipped,
        nonfinite=nonfinite,
        left=left,
        known=known,
        earlier=earlier,
        epochs=(last + 1) // per_epoch if per_epoch else 0,
        rewound=rewound,
        spikes=spikes,
        stopped="finished" if planned is not None and planned - (last + 1) < gap else "running",
    )


def _left(scalars: Mapping[str, Floats], steps: int) -> tuple[float | None, int]:
    """Mean share of the norm that was left: of every step, else of those that have a row."""
    factor = scalars.get("factor", np.zeros(0))
    if np.isfinite(factor).any():
        return float(factor[np.isfinite(factor)].mean()) or None, steps
    before, after = (scalars.get(name, np.zeros(0)) for name in ("grad_norm_before", "grad_norm_after"))
    if len(before) != len(after):
        return None, 0
    whole = np.isfinite(before) & np.isfinite(after) & (before > 0)
    return (float((after[whole] / before[whole]).mean()) or None, int(whole.sum())) if whole.any() else (None, 0)


def _last(scalars: Mapping[str, Floats], name: str) -> int:
    known = scalars.get(name, np.zeros(0))
    known = known[np.isfinite(known)]
    return max(0, int(known[-1])) if len(known) else 0


def _layers(rows: LayerRows, told: LayerFacts) -> Layers:
    shape = (len(rows.step), len(rows.names))
    into = groups(rows.step, np.ones(len(rows.step), bool), MOST_LAYER_ROWS)
    unknown = np.full(shape, np.nan)
    columns = {name: rows.values.get(name, unknown) for name in ("before", "after", "peak", "weight", "update")}
    given = np.any(~np.isnan([columns["before"], columns["peak"]]), axis=(0, 1))
    facts = dict(zip(told.names, zip(told.sizes, told.group_of, told.trainable, strict=True), strict=True))
    known = [facts.get(name, (0, 0, bool(had))) for name, had in zip(rows.names, given, strict=True)]
    sizes, group_of, trainable = zip(*known, strict=True)
    return Layers(
        names=rows.names,
        owners=rows.owners,
        dims=rows.dims,
        sizes=sizes,
        group_of=group_of,
        given=given,
        trainable=np.array(trainable, np.bool_),
        step=into.steps(rows.step),
        **{name: into.joined(values, name) for name, values in columns.items()},
    )


def _with_rate(clipper: Clipper, others: tuple[Clipper, ...], scalars: Mapping[str, Floats]) -> Clipper:
    """A callback with a name has a rate of its own; any other one only if nobody else reduces the gradient."""
    named = _NAMED.fullmatch(clipper.name)
    tag = "would_clip_fraction" if clipper.kind == "dry" else "clip_fraction"
    own = None if named is None else scalars.get(f"{tag}.{named['name']}")
    if own is None:
        alike = [one for one in others if (one.kind == "dry") == (clipper.kind == "dry")]
        own = scalars.get(tag)
        if own is None or (len(alike) > 1 and clipper.kind != "dry" and _mean(own) != 0):
            return clipper
    return clipper._replace(clip_rate=_mean(own))


def _clippers_seen(scalars: Mapping[str, Floats]) -> tuple[Clipper, ...]:
    """Of a file without facts: those that have a threshold, or a share of steps above 0."""
    found = []
    for prefix, kind in (("", "fixed"), ("would_", "dry")):
        tags = [tag for tag in scalars if tag.partition(".")[0] == f"{prefix}clip_fraction"]
        for tag in tags:
            name = tag.partition(".")[2]
            if not name and kind == "fixed" and len(tags) > 1:
                continue  # that of all of them together
            threshold = scalars.get(tag.replace("clip_fraction", "clip_threshold"), np.zeros(0))
            known = threshold[~np.isnan(threshold)]
            rate = _mean(scalars[tag])
            if not rate and not len(known):
                continue
            constant = len(known) > 0 and bool((known == known[0]).all())
            how: How = "dry" if kind == "dry" else "fixed" if constant else "adaptive"
            called = f"A clip called {name!r}" if name else _SOMEBODY
            found.append(Clipper(called, how, rate, float(known[0]) if how == "fixed" else None))
    return tuple(found)


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
