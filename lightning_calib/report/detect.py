"""What is unusual about a run's scalars: spikes against a running median, jumps of the learning rate."""

from math import exp, inf, isfinite, log
from statistics import median
from typing import Any

WINDOW = 40  # rows that say what is usual
_ROWS = 8  # without so many of them nothing is unusual
_TIMES = 4.0  # a spike is at least so many times the usual norm ...
_SPREADS = 6.0  # ... and so many robust standard deviations of the log norm above its median
_JUMP = 2.0


class Spikes:
    """Norms against the running median of their logarithms, the spread being the median deviation from it."""

    def __init__(self) -> None:
        self.logs: list[float] = []

    def times(self, norm: float) -> float:
        """By what factor ``norm`` exceeds the usual one, if it is a spike; else 0. It is remembered in any case."""
        if not (isfinite(norm) and norm > 0):
            return 0.0
        found = log(norm)
        usual, spread = self._usual()
        self.logs = [*self.logs[1 - WINDOW :], found]
        high = usual + max(log(_TIMES), _SPREADS * 1.4826 * spread)
        return exp(min(found - usual, 700.0)) if found > high else 0.0

    def _usual(self) -> tuple[float, float]:
        if len(self.logs) < _ROWS:
            return inf, 0.0
        usual = median(self.logs)
        return usual, median(abs(one - usual) for one in self.logs)


class Jumps:
    """A learning rate that changes by more than 2 times between two rows, and in another way than before.

    A warm-up and the end of a decay change by large factors, but by differences like the one before.
    """

    def __init__(self) -> None:
        self.last: float | None = None
        self.change: float | None = None

    def from_to(self, now: float) -> tuple[float, float] | None:
        """The rates before and after a jump; None without one."""
        last, change, self.last = self.last, self.change, now
        if last is None:
            return None
        self.change = abs(now - last)
        far = max(now, last) > _JUMP * min(now, last)
        return (last, now) if far and change is not None and self.change > 4 * change else None


class Counter:
    """A count since the start of the run: how much was added."""

    total: int

    def __init__(self) -> None:
        self.total = 0

    def more(self, total: float) -> int:
        """Since the last row."""
        before, self.total = self.total, int(total)
        return max(0, self.total - before)


def pack(detector: object) -> dict[str, Any]:
    """A detector's memory, for the checkpoint."""
    return _copy(vars(detector))


def unpack(detector: object, saved: dict[str, Any]) -> None:
    """The same back again; that it is of the same kind has been checked."""
    vars(detector).update(_copy(saved))


def _copy(found: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in found.items()}
