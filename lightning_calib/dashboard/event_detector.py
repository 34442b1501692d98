"""From the rows of a run to its events."""

from collections.abc import Sequence
from copy import copy
from math import exp, isfinite, nan
from typing import Any

from torch import Tensor

from lightning_calib.dashboard.layer_baseline import DEAD_ROWS, LayerBaseline, aligned
from lightning_calib.dashboard.records import Logged
from lightning_calib.functional.saved_state import ListOf, OrNone, check_saved
from lightning_calib.report import events
from lightning_calib.report.detect import WINDOW, Counter, Jumps, Spikes, pack, unpack
from lightning_calib.report.events import Event, NoPause, Pause
from lightning_calib.tensorboard.contract import ABSENT, ABSENT_GLOBALS, EVENT_KINDS, GLOBAL_NAMES, STATISTICS

_PEAK = list(STATISTICS).index("peak")


class EventDetector:
    """What one optimizer's rows were like, and what of it is worth telling.

    Args:
        names: The parameters.
    """

    row: int
    step: int
    baseline: LayerBaseline
    spikes: Spikes
    lr: Jumps
    lr_effective: Jumps
    nonfinite: Counter
    skipped: Counter

    def __init__(self, names: Sequence[str]) -> None:
        self.names: list[str] = list(names)
        self.row, self.step = 0, 0
        self.baseline = LayerBaseline.empty(len(self.names))
        self.spikes, self.lr, self.lr_effective = Spikes(), Jumps(), Jumps()
        self.nonfinite, self.skipped = Counter(), Counter()
        self.pauses: dict[str, NoPause | Pause] = {
            kind: NoPause() if kind == "rewind" else Pause() for kind in EVENT_KINDS
        }

    def after(self, logged: Logged) -> "tuple[list[Event], EventDetector]":
        """The events of a row, and the detector that remembers it, too; this one stays as it is."""
        following = copy(self)
        for key in _DETECTORS:
            setattr(following, key, copy(getattr(self, key)))
        following.pauses = {kind: copy(pause) for kind, pause in self.pauses.items()}
        return following._take(logged), following

    def _take(self, logged: Logged) -> list[Event]:
        pairs = zip(GLOBAL_NAMES, logged.totals.tolist(), strict=True)
        totals = {name: value for name, value in pairs if value != ABSENT_GLOBALS[name]}
        peak = logged.layers[:, _PEAK].float()
        found = [
            *self._nonfinite(logged, totals, peak),
            *self._skipped(logged, totals),
            *self._spike(logged, totals, peak),
            *[listed for event in _of_guards(logged, "rewind") for listed in self._admit(event)],
            *self._rate(logged, totals),
        ]
        if bool((peak != ABSENT).any()):  # else it was not this optimizer's turn
            self.baseline = self.baseline.add(peak)
            found += self._dead(logged)
        self.row, self.step = self.row + 1, logged.step
        return sorted(found, key=lambda event: event.step)

    def _admit(self, event: Event, badness: float = 0.0) -> list[Event]:
        pause = self.pauses[event.kind]
        if not pause.admits(self.row, badness):
            return []
        return [event._replace(text=event.text + pause.rest())]

    def _nonfinite(self, logged: Logged, totals: dict[str, float], peak: Tensor) -> list[Event]:
        more = self.nonfinite.more(totals.get("nonfinite_total", 0.0))
        known = _of_guards(logged, "nonfinite")
        found = [listed for event in known for listed in self._admit(event)]
        if more > len(known):
            bad = (~peak.isfinite()).nonzero().flatten().tolist()
            layer = self.names[bad[-1]] if bad else None
            count = more - len(known)
            found += self._admit(events.nonfinite(logged.step, self.step, count, len(bad), len(self.names), layer))
        return found

    def _skipped(self, logged: Logged, totals: dict[str, float]) -> list[Event]:
        more = self.skipped.more(totals.get("skipped_total", 0.0))
        return self._admit(events.skip(logged.step, self.step, more, totals.get("loss_scale"))) if more else []

    def _spike(self, logged: Logged, totals: dict[str, float], peak: Tensor) -> list[Event]:
        norm = totals.get("grad_norm_max", 0.0)
        times, known = self.spikes.times(norm), _of_guards(logged, "spike")
        if known:
            return [listed for event in known for listed in self._admit(event, badness=norm)]
        if not times:
            return []
        rises = self.baseline.rises(peak)
        most = int(rises.argmax()) if rises.numel() else -1
        rise = exp(min(float(rises[most]), 700.0)) if rises.numel() and isfinite(float(rises[most])) else 0.0
        layer = self.names[most] if rise > 0 else None
        return self._admit(events.spike(logged.step, self.step, norm, times, layer, rise), badness=norm)

    def _rate(self, logged: Logged, totals: dict[str, float]) -> list[Event]:
        jumps = {"lr": self.lr, "lr_effective": self.lr_effective}
        moved = {name: jump.from_to(totals[name]) for name, jump in jumps.items() if name in totals}
        for name, pair in moved.items():
            if pair is not None:
                return self._admit(events.rate(logged.step, self.step, *pair, effective=name != "lr"))
        return []

    def _dead(self, logged: Logged) -> list[Event]:
        self.baseline, never, lately = self.baseline.dead(logged.idle)
        named = ((never, True), (lately, False))
        groups = [([self.names[i] for i in rows], kind) for rows, kind in named if rows]
        return [events.dead(logged.step, DEAD_ROWS, layers, never=kind) for layers, kind in groups]

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "row": self.row,
            "step": self.step,
            "usual": {key: value.clone() for key, value in self.baseline._asdict().items()},
            "pauses": {kind: pack(pause) for kind, pause in self.pauses.items()},
            **{key: pack(getattr(self, key)) for key in _DETECTORS},
        }

    def restore(self, saved: Any, names: Sequence[str], key: str = "happenings") -> None:
        """Take up what was saved of the rows ``names``.

        Raises:
            DamagedStateError: If something does not fit.
        """
        if isinstance(saved, dict) and isinstance(pauses := saved.get("pauses"), dict):  # earlier versions: no rewinds
            saved = {**saved, "pauses": {"rewind": pack(NoPause()), **pauses}}
        check_saved(saved, {**EventDetector(names).saved(), **_REMEMBERED}, key)
        self.row, self.step = saved["row"], saved["step"]
        fresh = {key: aligned(value, names, self.names, 0) for key, value in saved["usual"].items()}
        self.baseline = LayerBaseline(**fresh)
        for kind, pause in self.pauses.items():
            unpack(pause, saved["pauses"][kind])
        for key in _DETECTORS:
            unpack(getattr(self, key), saved[key])


def _of_guards(logged: Logged, kind: str) -> list[Event]:
    """What guards have found of a kind since the last row, each at its own step and in the console's words."""
    return [Event(one.step, kind, one.text, one.layer or None) for one in logged.incidents if one.kind == kind]


_DETECTORS = ("spikes", "lr", "lr_effective", "nonfinite", "skipped")
_JUMPS = {"last": OrNone(nan), "change": OrNone(nan)}
_REMEMBERED = {"spikes": {"logs": ListOf(0.0, WINDOW)}, "lr": _JUMPS, "lr_effective": _JUMPS}
