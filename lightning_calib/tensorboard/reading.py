"""Records out of TensorBoard's data provider, whichever of its two loaders stands behind it."""

import logging
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tensorboard.data.provider import RunTagFilter

from lightning_calib.tensorboard.about import TEXTS, About, parse
from lightning_calib.tensorboard.contract import EVENTS, PLUGIN
from lightning_calib.tensorboard.refused import Refused, require, shown
from lightning_calib.tensorboard.unexpanded import Form, form_of_array, form_of_proto, screened

log: logging.Logger = logging.getLogger("lightning_calib")

# Bytes asked for in one read. The data server's answer may have 256 MiB; records carry some more than their numbers.
MOST_BYTES = 192 * 2**20
TEXT_BYTES = 4096  # that a record of events is taken to have
MOST_PROBLEMS = 10  # told of one run
MOST_STEP = 2**53  # the largest whole number that a browser counts to


class Series(NamedTuple):
    """One tag of a run; `last_step` as the loader knows it."""

    run: str
    tag: str
    about: About
    last_step: int


class Records(NamedTuple):
    """The records of one tag in the order of their steps.

    Attributes:
        about: The tag's metadata.
        steps: (N,) int64, ascending; for events a step may appear more than once.
        walls: (N,) float64, when each was written, in seconds since 1970.
        values: N arrays of the shape that `about` says; for events N texts.
        thinned: Whether records were left out because all of them do not fit in one read.
    """

    about: About
    steps: NDArray[np.int64]
    walls: NDArray[np.float64]
    values: list[Any]
    thinned: bool


class Run(NamedTuple):
    """The tags of a run that can be read, and for each of the others why not."""

    series: list[Series]
    problems: list[str]


class Reader:
    """Reads for one request.

    Args:
        provider: TensorBoard's data provider.
        context: TensorBoard's request context.
        experiment: The experiment's id, empty in local use.
    """

    def __init__(self, provider: Any, context: Any, experiment: str) -> None:
        self._provider = provider
        self._where = {"ctx": context, "experiment_id": experiment, "plugin_name": PLUGIN}

    def runs(self) -> dict[str, Run]:
        """All runs that have data of ours, in no particular order."""
        listed = self._provider.list_tensors(**self._where)
        return {run: _checked(run, tags) for run, tags in listed.items()}

    def started(self) -> dict[str, float]:
        """When each run began, in seconds since 1970; without those of which it is not known."""
        listed = self._provider.list_runs(ctx=self._where["ctx"], experiment_id=self._where["experiment_id"])
        return {run.run_name: float(run.start_time) for run in listed if run.start_time and isfinite(run.start_time)}

    def run(self, name: str) -> Run:
        """One run.

        Raises:
            Refused: If there is none of that name.
        """
        listed = self._provider.list_tensors(**self._where, run_tag_filter=RunTagFilter(runs=[name]))
        if name not in listed:
            raise Refused(f"`run` must be a run with records of lightning-calib, got {shown(name)}", 404)
        return _checked(name, listed[name])

    def records(self, chosen: Sequence[Series]) -> list[Records | Refused]:
        """Every record of some tags of one run, checked; in one question, since each costs up to 50 ms.

        Returns:
            For each tag its records, or the reason if one of them is not what the metadata promise.

        Raises:
            Refused: If nothing can be read.
        """
        if not chosen:
            return []
        run, tags = chosen[0].run, [series.tag for series in chosen]
        most = max(1, MOST_BYTES // sum(_bytes(series.about) for series in chosen))
        only = RunTagFilter(runs=[run], tags=tags)
        screen = _Screen(chosen)
        provider = screened(self._provider, screen.admit) or self._provider
        try:
            found = provider.read_tensors(**self._where, run_tag_filter=only, downsample=most).get(run, {})
        except Exception as problem:  # foreign code over foreign bytes: a record that cannot be decoded, a lost server
            log.warning("Cannot read %s of run %r: %s: %s", tags, run, type(problem).__name__, problem)
            raise Refused(f"{shown(tags)} of run {shown(run)} cannot be read") from None
        for series in chosen:  # once more: another provider than TensorBoard's own two has expanded without asking
            data = found.get(series.tag, [])
            screen.check(series.tag, [datum.step for datum in data], [form_of_array(datum.numpy) for datum in data])
        return [screen.refused.get(one.tag) or in_order(one, found.get(one.tag, []), most) for one in chosen]


class _Screen:
    """Compares records with what the metadata of their tags promise; `refused` holds the reason for each bad tag."""

    def __init__(self, chosen: Sequence[Series]) -> None:
        self._series = {series.tag: series for series in chosen}
        self.refused: dict[str, Refused] = {}

    def admit(self, tag: str, steps: Sequence[int], records: Sequence[Any]) -> bool:
        """Whether all records of a tag may be expanded."""
        self.check(tag, steps, map(form_of_proto, records))
        return tag not in self.refused

    def check(self, tag: str, steps: Sequence[int], forms: Iterable[Form]) -> None:
        """Remember the first record that is wrong."""
        try:
            for step, form in zip(steps, forms, strict=True):
                check(self._series[tag], step, form)
        except Refused as refusal:
            self.refused[tag] = refusal


def _bytes(about: About) -> int:
    return TEXT_BYTES if about.kind in TEXTS else 4 * about.numbers


def _checked(run: str, tags: Any) -> Run:
    series, problems = [], []
    for tag, listed in tags.items():
        try:
            series.append(Series(run, tag, parse(listed.plugin_content), int(listed.max_step or 0)))
        except Refused as refusal:
            problems.append(f"{shown(tag)}: {refusal}")
    more = len(problems) - MOST_PROBLEMS
    return Run(series, [*problems[:MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])


def check(series: Series, step: int, form: Form) -> None:
    """Refuse a record that is not what the metadata of its tag promise."""
    where = f"{series.tag} of run {shown(series.run)}"
    require(0 <= step <= MOST_STEP, f"step in {where}", f"from 0 to {MOST_STEP}", step)
    at, about = f"{where} at step {step}", series.about
    if about.kind in TEXTS:
        right = form.kind == "text" and form.held == 1 and all(size == 1 for size in form.shape)
        require(right, at, "one text", tuple(form))
        return
    require(form[:2] == ("float32", about.shape), at, f"float32 of shape {about.shape}", form[:2])
    require(form.held == 4 * about.numbers, at, f"{4 * about.numbers} bytes of numbers", form.held)


def in_order(series: Series, data: list[Any], most: int) -> Records:
    """Without records that a resumed run has overwritten, should the loader have left them."""
    steps = np.array([datum.step for datum in data], np.int64)
    walls = np.nan_to_num(np.array([datum.wall_time for datum in data], np.float64), posinf=0.0, neginf=0.0)
    keep = np.ones(len(data), bool)
    if len(data) > 1:
        later = np.minimum.accumulate(steps[::-1])[::-1][1:]
        keep[:-1] = steps[:-1] <= later if series.about.kind == EVENTS else steps[:-1] < later
    values = [data[i].numpy for i in np.flatnonzero(keep)]
    return Records(series.about, steps[keep], walls[keep], values, thinned=len(data) >= most)
