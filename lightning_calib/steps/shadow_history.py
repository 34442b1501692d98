"""What is remembered of an optimizer's shadows: counts on the device, and rows on the host."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import DamagedStateError, entry, restored
from lightning_calib.steps.kept_rows import KeptRows
from lightning_calib.steps.saved_state import to_host
from lightning_calib.steps.shadows import FACTOR, KEPT, LOWEST
from lightning_calib.steps.step_record import StepRecord

COLUMNS = ("clip_rate", "mean_factor", "lowest_factor", "threshold", "kept", "agreement", "clip_fraction", "steps")
ROWS = 512  # kept at most
_LATEST = torch.zeros(len(COLUMNS), dtype=torch.bool)


class ShadowCounts(NamedTuple):
    """Counts of S shadows; tensors have shape (S,) where nothing else is said.

    Attributes:
        window_steps: Since the last row: steps with a gradient.
        window_fired: Since the last row: steps on which each would have reduced the gradient.
        steps: Since the shadows began, as all below: steps with a gradient.
        fired: Steps on which each would have reduced the gradient.
        known: Steps of which a finite norm above zero is known, and so a factor.
        factor: Sum over the known steps of the mean coefficient of the segments.
        kept: Sum over the known steps of the share of the norm that would have been left.
        lowest: The lowest coefficient on a known step; inf before the first.
        compared: 0-d: steps on which it is known whether anybody really reduced the gradient.
        agreed: Those on which the shadow would have, and somebody did, or neither.
    """

    window_steps: int
    window_fired: Tensor
    steps: int
    fired: Tensor
    known: Tensor
    factor: Tensor
    kept: Tensor
    lowest: Tensor
    compared: Tensor
    agreed: Tensor

    @staticmethod
    def empty(count: int, plan: Plan) -> "ShadowCounts":
        """Nothing counted."""
        none = torch.zeros(count, dtype=torch.int64, device=plan.device)
        total = torch.zeros(count, dtype=plan.wide, device=plan.device)
        return ShadowCounts(0, none, 0, none, none, total, total, total + torch.inf, none.new_zeros(()), none)

    def add(self, *records: StepRecord) -> "ShadowCounts":
        """Count steps with a gradient: many at once are, to the bit, one after the other.

        A step that a guard has dropped counts as one on which nobody would have reduced the gradient.
        """
        records = tuple(one for one in records if one.shadows is not None or not one.live)
        counts = self._replace(window_steps=self.window_steps + len(records), steps=self.steps + len(records))
        judged = [one for one in records if one.shadows is not None and one.live]
        if not judged:
            return counts
        found = torch.stack([one.shadows for one in judged if one.shadows is not None])
        norms = torch.stack([one.norm_before for one in judged if one.norm_before is not None])
        fired = found[:, :, LOWEST] < 1
        known = ((norms > 0) & norms.isfinite()).unsqueeze(1) & found.isfinite().all(2)
        wide = found.to(self.kept.dtype)
        count = fired.sum(0)
        # One after the other: a sum in another order has other bits, and a run that resumes must have the same.
        sums = torch.where(known.unsqueeze(2), wide[:, :, [FACTOR, KEPT]], 0)
        factor, kept = sum(sums.unbind(), torch.stack([self.factor, self.kept], 1)).unbind(1)
        return counts._replace(
            window_fired=self.window_fired + count,
            fired=self.fired + count,
            known=self.known + known.sum(0),
            factor=factor,
            kept=kept,
            lowest=torch.minimum(self.lowest, torch.where(known, wide[:, :, LOWEST], torch.inf).amin(0)),
        )._compared(judged, fired)

    def _compared(self, records: Sequence[StepRecord], fired: Tensor) -> "ShadowCounts":
        """Compare with what really reduced the gradient, where all who may have done so are known."""
        places = [i for i, one in enumerate(records) if one.kept is not None and one.reductions]
        if not places:
            return self
        really = torch.stack([torch.as_tensor(records[i].reduced) for i in places])
        agreed = (fired[places] == really.unsqueeze(1)).sum(0)
        return self._replace(compared=self.compared + len(places), agreed=self.agreed + agreed)

    def new_window(self) -> "ShadowCounts":
        """A row is written."""
        return self._replace(window_steps=0, window_fired=torch.zeros_like(self.window_fired))

    def table(self, thresholds: Tensor) -> Tensor:
        """`COLUMNS` of each shadow, shape (S, 8), on the device; nan where nothing is known."""
        steps = torch.full_like(self.kept, self.steps)
        return torch.stack(
            [
                _share(self.fired, steps),
                _share(self.factor, self.known),
                torch.where(self.known > 0, self.lowest, torch.nan),
                thresholds.to(self.kept),
                _share(self.kept, self.known),
                _share(self.agreed, self.compared),
                _share(self.window_fired, torch.full_like(self.kept, self.window_steps)),
                steps,
            ],
            dim=1,
        )


class ShadowHistory(NamedTuple):
    """A value: every change makes a new one.

    Attributes:
        names: Of the shadows, S.
        counts: Since the shadows began.
        rows: Rows of `COLUMNS`, each of shape (S, 8).
    """

    names: tuple[str, ...]
    counts: ShadowCounts
    rows: KeptRows = KeptRows()

    @staticmethod
    def empty(names: tuple[str, ...], plan: Plan) -> "ShadowHistory":
        """Nothing seen."""
        return ShadowHistory(names, ShadowCounts.empty(len(names), plan))

    def add(self, *records: StepRecord) -> "ShadowHistory":
        """Count steps with a gradient."""
        return self._replace(counts=self.counts.add(*records))

    def after(self, step: int, table: Tensor) -> "ShadowHistory":
        """A row is written, with this table on the host."""
        return self._replace(counts=self.counts.new_window(), rows=self.rows.add(step, table, ROWS, _LATEST))

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"names": list(self.names), "counts": to_host(self.counts._asdict()), "rows": self.rows.saved()}

    @staticmethod
    def restored(saved: dict[str, Any], names: tuple[str, ...], plan: Plan, key: str) -> "ShadowHistory":
        """What was saved of the same shadows.

        Raises:
            DamagedStateError: If something does not fit.
        """
        counts = restored(entry(saved, "counts", key), ShadowCounts.empty(len(names), plan), f"{key}.counts")
        if not counts.window_steps <= counts.steps or bool((counts.fired > counts.steps).any()):
            raise DamagedStateError(f"`{key}.counts` contradicts itself: more steps that fired than steps")
        rows = KeptRows.restored(entry(saved, "rows", key), (len(names), len(COLUMNS)), f"{key}.rows")
        return ShadowHistory(names, counts, rows)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """The share, nan of nothing."""
    return torch.where(whole > 0, part / whole.clamp(min=1), torch.nan)
