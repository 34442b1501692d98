"""What the guard remembers about one optimizer: incidents, the norms before, and how often a GradScaler skips."""

from math import isfinite
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from lightning_calib.functional.saved_state import ListOf, check_saved
from lightning_calib.steps.saved_state import Losses

RECENT = 200  # steps over which a GradScaler's skips are judged
_TOLD = 5  # sentences kept for the error
_NORMS = 64  # finite norms that say what is usual
_FEWEST = 5  # without so many of them nothing is usual
_RANGES = 1000  # of steps with incidents
_LATER: dict[str, Any] = {"norms": [], "steps": [], "moved_at": -1, "moved": 0.0}  # not saved by earlier versions
SICK = 0.05  # share of them that is no longer normal; start-up calibration is not counted
_TROUBLE = (
    "the GradScaler does not find a scale that works: {}. Use precision='bf16-mixed', or a larger epsilon where the "
    "model divides; if the loss itself grows, a lower learning rate."
)


class Before(NamedTuple):
    """What came before an incident.

    Attributes:
        norm: The last norm that was finite; None without one.
        times: By what factor it exceeds the usual one, the median of those before; None where too few are known.
        moved: How far a step moved the weights, as a share of their norm; None where that was not measured.
        since: How many steps ago it was; 1 for the last.
    """

    norm: float | None
    times: float | None
    moved: float | None
    since: int


class IncidentLog:
    """Counts, the last sentences and the last finite norms.

    Norms and the last update are 0-d tensors that are brought to the host on an incident, or for a checkpoint.
    """

    row: int
    total: int
    settled: bool
    sick: bool
    judged: bool
    moved_at: int

    def __init__(self) -> None:
        self.row, self.total = 0, 0
        self.last: list[str] = []
        self.overflows: list[int] = []  # 0 or 1 for each of the last steps since the first one that was finite
        self.settled = False
        self.sick = False
        self.judged = False  # the step at hand was found bad already
        self.norms: list[float | Tensor] = []  # the last finite ones
        self.steps: list[list[int]] = []  # first and last of every stretch of steps with incidents
        self.moved_at = -1  # the step whose update was measured last
        self.moved: float | Tensor = 0.0

    def see_moved(self, step: int, ratio: Tensor | None) -> None:
        """How far a step moved the weights, as a share of their norm, where that is measured."""
        if ratio is not None:
            self.moved_at, self.moved = step, ratio

    def before(self, step: int) -> Before:
        """What is known of the steps before this one; waits for the device."""
        norms, moved = self._finite_norms(), float(self.moved)
        usual = median(norms[:-1]) if len(norms) > _FEWEST else 0.0
        return Before(
            norm=norms[-1] if norms else None,
            times=norms[-1] / usual if usual > 0 else None,
            moved=moved if self.moved_at >= 0 and isfinite(moved) else None,
            since=step - self.moved_at,
        )

    def close(self, norm: Tensor | None) -> None:
        """The end of a step: healthy, if nobody has found it bad."""
        if not self.judged:
            self.row, self.settled = 0, True
            if norm is not None:
                self.norms = [*self.norms[1 - _NORMS :], norm]
            self._step(0)
        self.judged = False

    def overflow(self) -> None:
        """A step that the GradScaler skips as part of its work."""
        if self.settled:
            self._step(1)

    def _step(self, overflowed: int) -> None:
        self.overflows = [*self.overflows[1 - RECENT :], overflowed]

    def incident(self, step: int) -> None:
        """A step with a bad gradient."""
        self.row, self.total = self.row + 1, self.total + 1
        if self.steps and self.steps[-1][1] <= step <= self.steps[-1][1] + 1:
            self.steps[-1][1] = step
        else:
            self.steps = [*self.steps[1 - _RANGES :], [step, step]]

    @property
    def loud(self) -> bool:
        """Whether the incident at hand is reported: the 1st, 2nd, 4th, 8th, ..."""
        return self.total & (self.total - 1) == 0

    def remember(self, text: str) -> None:
        """Keep the last five sentences, for the error."""
        self.last = [*self.last[1 - _TOLD :], text]

    def beyond(self, max_consecutive: int, max_total: int | None) -> str:
        """Which limit is exceeded, as a sentence; empty if none is."""
        if self.row > max_consecutive:
            return f"{self.row} gradients in a row were not finite, more than max_consecutive={max_consecutive}."
        if max_total is not None and self.total > max_total:
            return f"{self.total} gradients were not finite, more than max_total={max_total}."
        return ""

    def falls_sick(self, scale: float) -> str:
        """That the GradScaler is in trouble, and what to do, once; empty while it is not."""
        share = sum(self.overflows) / RECENT
        full = len(self.overflows) == RECENT
        reason = ""
        if scale < 1:
            reason = f"its scale has fallen to {scale:g}"
        elif full and share > SICK:
            reason = f"it skipped {100 * share:.3g} % of the last {RECENT} steps"
        news = reason if not self.sick else ""
        self.sick = bool(reason)
        return news and _TROUBLE.format(news)

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        moved = float(self.moved)
        usable = {"moved": moved} if isfinite(moved) else {"moved": 0.0, "moved_at": -1}
        steps = [list(one) for one in self.steps]
        return {**vars(self), "norms": self._finite_norms(), "steps": steps, **usable}

    def _finite_norms(self) -> list[float]:
        """A norm may overflow where every element is finite."""
        return [norm for one in self.norms if isfinite(norm := float(one))]

    def restore(self, saved: dict[str, Any], key: str, losses: Losses) -> bool:
        """Take up saved counts."""
        with losses.of("the incidents so far"):
            saved = {**_LATER, **saved} if _LATER.keys().isdisjoint(saved) else saved
            lists: dict[str, Any] = {"last": ListOf("", _TOLD), "overflows": ListOf(0, RECENT)}
            lists |= {"norms": ListOf(0.0, _NORMS), "steps": ListOf([0, 0], _RANGES)}
            check_saved(saved, {**vars(self), **lists}, key)
            vars(self).update(saved, judged=False, steps=[list(one) for one in saved["steps"]])
        return True
