"""Event files on the disk: which folders are runs, and what of ours their files hold, up to the last whole record."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.types_pb2 import DT_FLOAT

from lightning_calib.tensorboard.contract import PLUGIN
from lightning_calib.tensorboard.event_records import records
from lightning_calib.tensorboard.lists import natural

MARK = "tfevents"  # in the name of every event file
_FRAME = 16  # bytes around a record: its length, and two checksums
_TAGS = "calib/"


class RunFiles(NamedTuple):
    """A folder with event files.

    Attributes:
        name: The folder, relative to where the search began; "." for that folder itself.
        folder: The folder.
        files: Its event files in the order in which they were opened: their names have a second, and then a number.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)


class Found(NamedTuple):
    """One value of one tag, as it was written.

    Attributes:
        step: Its x.
        wall_time: When it was written, in seconds since 1970.
        file: The position of its file among those of the run.
        value: A ``TensorProto`` for a record of ours, a number for a scalar.
    """

    step: int
    wall_time: float
    file: int
    value: Any


class Loaded(NamedTuple):
    """What the files of a run hold of ours, by tag and in the order of writing.

    Attributes:
        content: The metadata of each tag of records, from its first value.
        records: Values of those tags.
        scalars: Values of the scalars' tags.
        problems: Files that could not be read to their end, each with the reason.
    """

    content: dict[str, bytes]
    records: dict[str, list[Found]]
    scalars: dict[str, list[Found]]
    problems: list[str]


def find_runs(logdir: Path) -> list[RunFiles]:
    """Every folder with event files at and below a folder, in no particular order; links are not followed."""
    found = []
    for place, folders, names in os.walk(logdir):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if files := _in_order(Path(place), names):
            found.append(RunFiles(Path(place).relative_to(logdir).as_posix(), Path(place), files))
    return found


def files_of(folder: Path) -> tuple[Path, ...]:
    """The event files in one folder, in the order in which they were opened; none if there is no such folder."""
    return _in_order(folder, os.listdir(folder)) if folder.is_dir() else ()


def _in_order(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(folder / name for name in sorted(names, key=natural) if MARK in name)


def has_records(run: RunFiles) -> bool:
    """Whether the name of a tag of ours is anywhere in the files; it may be that of a chart without a row."""
    return any(_mentions(path, b"calib/") for path in run.files)


def _mentions(path: Path, word: bytes) -> bool:
    try:
        with path.open("rb") as file:
            end = b""
            while block := file.read(2**20):
                if word in end + block:
                    return True
                end = block[-len(word) :]
    except OSError:  # `load` says why
        return True
    return False


def load(run: RunFiles, progress: Callable[[int], None] = lambda size: None) -> Loaded:
    """Read the files of a run.

    A file that ends within a record, as one does that is being written, is read up to there; so is one that is damaged.

    Args:
        run: Its files.
        progress: Is told how many bytes have been read since the last time.
    """
    loaded = Loaded({}, {}, {}, [])
    for index, path in enumerate(run.files):
        read, last = 0, None
        try:
            for record in records(path):
                read += len(record) + _FRAME
                progress(len(record) + _FRAME)
                if _TAGS.encode() in record or PLUGIN.encode() in record:
                    last = _take(loaded, Event.FromString(record), index)
        except Exception as trouble:  # foreign code over foreign bytes
            loaded.problems.append(f"{path.name} cannot be read{_until(last)}: {type(trouble).__name__}: {trouble}")
            continue
        if read < (size := path.stat().st_size):
            loaded.problems.append(
                f"{path.name} ends within a record or is damaged{_until(last)}: {size - read:,} of its {size:,} bytes "
                "are left out. Read it again if the run still writes it."
            )
    return loaded


def _until(step: int | None) -> str:
    return "" if step is None else f" after step {step}"


def _take(loaded: Loaded, event: Any, file: int) -> int:
    for value in event.summary.value:
        plugin, tag = value.metadata.plugin_data, value.tag
        if plugin.plugin_name == PLUGIN and plugin.content:
            loaded.content.setdefault(tag, plugin.content)
        if tag in loaded.content:
            kept, found = loaded.records, value.tensor
        elif _TAGS in tag and (number := _number(value)) is not None:
            kept, found = loaded.scalars, number
        else:
            continue
        kept.setdefault(tag, []).append(Found(event.step, event.wall_time, file, found))
    return int(event.step)


def _number(value: Any) -> float | None:
    """A scalar of either style; None for anything else."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.HasField("tensor") and value.tensor.dtype == DT_FLOAT and len(value.tensor.float_val) == 1:
        return float(value.tensor.float_val[0])
    return None


def standing(found: Iterable[Found], begins: dict[int, int]) -> list[Found]:
    """The values that a resumed run has not written again.

    Args:
        found: Of one tag, in the order of writing.
        begins: The first step of each file of the run.
    """
    kept: list[Found] = []
    for one in found:
        while kept and kept[-1].step >= one.step:
            kept.pop()
        kept.append(one)
    return [one for one in kept if all(one.step < step for file, step in begins.items() if file > one.file)]
