"""What the guard remembers about one optimizer: incidents in a row and in all, and how often a GradScaler skips."""

from typing import Any

from lightning_calib.functional.saved_state import ListOf, check_saved
from lightning_calib.steps.saved_state import Losses

RECENT = 200  # steps over which a GradScaler's skips are judged
_TOLD = 5  # sentences kept for the error
SICK = 0.05  # share of them that is no longer normal; start-up calibration is not counted


class IncidentLog:
    """Counts and the last sentences; everything is the host's."""

    def __init__(self) -> None:
        self.row, self.total = 0, 0
        self.last: list[str] = []
        self.overflows: list[int] = []  # 0 or 1 for each of the last steps since the first one that was finite
        self.settled = False
        self.sick = False
        self.judged = False  # the step at hand was found bad already

    def close(self) -> None:
        """The end of a step: healthy, if nobody has found it bad."""
        if not self.judged:
            self.row, self.settled = 0, True
            self._step(0)
        self.judged = False

    def overflow(self) -> None:
        """A step that the GradScaler skips as part of its work."""
        if self.settled:
            self._step(1)

    def _step(self, overflowed: int) -> None:
        self.overflows = [*self.overflows[1 - RECENT :], overflowed]

    def incident(self) -> None:
        """A step with a bad gradient."""
        self.row, self.total = self.row + 1, self.total + 1

    @property
    def loud(self) -> bool:
        """Whether the incident at hand is reported: the first ten, then the 16th, 32nd, ..."""
        return self.total <= 10 or self.total & (self.total - 1) == 0

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
        """Why the GradScaler is in trouble, once; empty while it is not."""
        share = sum(self.overflows) / RECENT
        full = len(self.overflows) == RECENT
        reason = ""
        if scale < 1:
            reason = f"its scale has fallen to {scale:g}"
        elif full and share > SICK:
            reason = f"it skipped {100 * share:.3g} % of the last {RECENT} steps"
        news = reason if not self.sick else ""
        self.sick = bool(reason)
        return news

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return dict(vars(self))

    def restore(self, saved: dict[str, Any], key: str, losses: Losses) -> bool:
        """Take up saved counts."""
        with losses.of("the incidents so far"):
            check_saved(saved, {**vars(self), "last": ListOf("", _TOLD), "overflows": ListOf(0, RECENT)}, key)
            vars(self).update(saved, judged=False)
        return True
