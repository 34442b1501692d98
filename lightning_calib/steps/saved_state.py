"""Between live state and what a checkpoint holds: builtins and CPU tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from lightning_calib.functional.judge import State
from lightning_calib.functional.saved_state import (
    DamagedStateError,
    check_keys,
    check_kind,
    check_saved,
    entry,
    restored,
)
from lightning_calib.functional.segments import Segments

_HEAD = {"version": 1, "kind": "", "segments": ""}


def to_host(state: dict[str, Any]) -> dict[str, Any]:
    """The same with every tensor copied to the CPU."""
    return {key: value.detach().cpu().clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def pack(kind: str, segments: Segments, state: State) -> dict[str, Any]:
    """A method's state as a checkpoint holds it, with what it must be of to be taken up again."""
    return {"version": 1, "kind": kind, "segments": segments.digest, "state": to_host(state._asdict())}


def unpack(saved: Any, kind: str, segments: Segments, now: State, key: str, *more: str) -> State | None:
    """A state like ``now`` from what was packed; None if it is of another kind or of other segments.

    Raises:
        DamagedStateError: If something does not fit; ``more`` names what else was packed with it.
    """
    for name, like in _HEAD.items():
        check_saved(entry(saved, name, key), like, f"{key}.{name}")
    if (saved["version"], saved["kind"], saved["segments"]) != (1, kind, segments.digest):
        return None
    check_keys(saved, (*_HEAD, "state", *more), key)
    return restored(saved["state"], now, f"{key}.state")


def of_optimizer(state: dict[str, Any], section: str, index: int) -> dict[str, Any] | None:
    """What a section of a callback's saved state has of an optimizer; None where it need not have anything.

    Raises:
        DamagedStateError: If it is no dictionary, or missing although another section knows the optimizer.
    """
    place, optional = str(index), section in ("dashboard", "report", "shadows")
    known = any(isinstance(one := state.get(name), dict) and place in one for name in ("optimizers", "tally"))
    if state.get(section) is None and (optional or not known):
        return None
    found = entry(state, section, "state")
    if isinstance(found, dict) and place not in found and not known:
        return None
    mine: dict[str, Any] = entry(found, place, section)
    check_kind(mine, dict, f"{section}.{place}")
    return mine


class Losses:
    """What of a callback's saved state could not be taken up; said in one line."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """A damaged value found inside costs ``what``, and not the run."""
        try:
            yield
        except DamagedStateError as damage:
            self.found.append(f"{damage} (lost: {what})")

    def sentence(self, label: str) -> str:
        """What was found since the last time, as one sentence; empty if nothing was."""
        found, self.found = list(dict.fromkeys(self.found)), []
        damage = "; ".join(found)
        return (
            damage and f"{label}: its saved state is damaged: {damage}. What is lost starts afresh, the rest is kept."
        )


class MethodMemory(Protocol):
    """What a callback's own method remembers of one optimizer."""

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""

    def restore(self, saved: dict[str, Any], key: str, losses: Losses) -> bool:
        """Take up what was saved; False if it is of other parameters or of another method."""
