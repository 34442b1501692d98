"""Folders that users name: the runs in them, or what is wrong and which folder they may have meant."""

import os
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from lightning_calib.tensorboard.event_files import MARK, RunFiles, find_runs, has_records
from lightning_calib.tensorboard.lists import natural

_SHOWN = 5  # runs that are named in a message
_LOOKED_AT = 1000  # folders in which a nearest one is looked for
_LIKE = 0.6  # `SequenceMatcher.ratio` of two paths that are alike, as in `difflib.get_close_matches`


def runs_in(logdir: Path) -> list[RunFiles]:
    """The runs at and below a folder that have anything of ours, in natural order.

    Raises:
        FileNotFoundError: If there is no such folder, or no such run; the message names the nearest folder with one.
    """
    if not logdir.is_dir():
        what = "a file" if logdir.exists() else "no such folder"
        raise FileNotFoundError(f"`logdir` must be a folder with event files, got {logdir}: {what}. {_nearest(logdir)}")
    found = find_runs(logdir)
    if not found:
        raise FileNotFoundError(
            f"`logdir` must be a folder with event files, got {logdir}: there are none in it. {_nearest(logdir)}"
        )
    ours = [run for run in found if has_records(run)]
    if not ours:
        raise FileNotFoundError(
            f"`logdir` must be a folder with records of lightning-calib, got {logdir}: its event files have none. "
            "Train with `Trainer(callbacks=[GradientMonitor()], logger=TensorBoardLogger(...))`; a run that is shorter "
            f"than `log_every_n_steps` has no row yet. {_nearest(logdir)}"
        )
    return sorted(ours, key=lambda run: natural(run.name))


def one_run(logdir: Path) -> RunFiles:
    """The only run of a folder.

    Raises:
        FileNotFoundError: As `runs_in`.
        ValueError: If there are several.
    """
    found = runs_in(logdir)
    if len(found) > 1:
        raise ValueError(
            f"`logdir` must be the folder of one run, got {logdir} with {len(found)}: {_listed(found)}. "
            f"Name one of them, such as {found[-1].folder}."
        )
    return found[0]


def _nearest(logdir: Path) -> str:
    """A sentence that names the run whose path is most like the one asked for, if there is one nearby."""
    above = next((place for place in logdir.absolute().parents if place.is_dir()), None)
    if above is None or above == Path(above.anchor):
        return "Name the folder that the TensorBoardLogger writes to."
    wanted = str(logdir.absolute())
    folders = [place for place, _, names in islice(os.walk(above), _LOOKED_AT) if any(MARK in name for name in names)]
    likeness = {place: SequenceMatcher(None, wanted, place).ratio() for place in folders}
    near = sorted((place for place in folders if likeness[place] >= _LIKE), key=lambda place: -likeness[place])
    run = next((place for place in near if any(map(has_records, find_runs(Path(place))))), None)
    return f"Did you mean {run}?" if run is not None else "Name the folder that the TensorBoardLogger writes to."


def _listed(found: list[RunFiles]) -> str:
    names = [run.name for run in found[:_SHOWN]]
    more = len(found) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
