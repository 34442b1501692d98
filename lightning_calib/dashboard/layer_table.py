"""What the dashboard keeps of one optimizer on the device between two rows, and brings together for a row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.dashboard.layer_baseline import aligned
from lightning_calib.dashboard.record_stream import RecordStream
from lightning_calib.dashboard.records import Rows
from lightning_calib.functional.exponent_counts import exponent_counts
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import DamagedStateError, ListOf, OrNone, check_saved, entry
from lightning_calib.report.events import Event
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.step_record import GuardEvent, StepRecord
from lightning_calib.steps.weight_update import strides
from lightning_calib.tensorboard.contract import (
    ABSENT,
    ABSENT_EXPONENT,
    GUARDED_KINDS,
    HIGH_EXPONENT,
    LOW_EXPONENT,
    STATISTICS,
)

_INCIDENTS = 20
BEFORE, AFTER, PEAK, WEIGHT, UPDATE = map(list(STATISTICS).index, ("before", "after", "peak", "weight", "update"))


def rows_of(view: GradientView) -> Rows:
    """What a record of this optimizer's plan is of."""
    plan = view.plan
    pairs = list(zip(plan.tensors, plan.whole_shapes, strict=True))
    filled = [tensor for tensor, shape in pairs if shape.numel()]
    sampled = iter(stride > 1 for stride in strides(filled))
    return Rows(
        optimizer=view.index,
        kind=type(view.optimizer).__name__,
        suffix=view.suffix,
        names=plan.names,
        owners=plan.layers,
        dims=tuple(map(len, plan.whole_shapes)),
        estimated=tuple(next(sampled) if shape.numel() else False for _, shape in pairs),
    )


class Masks(NamedTuple):
    """What the host knows of a row without looking at a number: which tensors had a gradient, lists of T bools.

    Attributes:
        before: When the logged step began; empty where it had none.
        since: At any time since the last row.
        after: When the optimizer used it; empty where that cannot be known.
    """

    before: list[bool]
    since: list[bool]
    after: list[bool]


class TabMemory(NamedTuple):
    """What the tab remembers of one optimizer between two rows; a value.

    Attributes:
        stream: What its records remember.
        peak: The largest norm of each tensor since the last row, shape (T,); None without a step.
        since: Which tensors had a gradient since the last row.
        incidents: What guards have found since the last row, at most the last 20.
    """

    stream: RecordStream
    peak: Tensor | None = None
    since: tuple[bool, ...] = ()
    incidents: tuple[GuardEvent, ...] = ()

    def add(self, norms: Tensor, given: Sequence[bool]) -> "TabMemory":
        """Take in a step: the tensors' norms, and which of them had a gradient."""
        peak = norms if self.peak is None else torch.maximum(self.peak, norms)
        since = tuple(given)
        if self.since and given is not self.since:
            since = tuple(a or b for a, b in zip(self.since, given, strict=True))
        return self._replace(peak=peak, since=since)

    def add_incident(self, incident: GuardEvent) -> "TabMemory":
        """Take in a bad step of which more is known."""
        return self._replace(incidents=(*self.incidents, incident)[-_INCIDENTS:])

    def told(self) -> RecordStream:
        """With what guards have found since the last row, when no other row will come."""
        stream = self.stream
        for one in self.incidents:
            stream = stream.with_event(Event(one.step, one.kind, one.text, one.layer or None))
        return stream

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        peak = None if self.peak is None else self.peak.detach().cpu().clone()
        incidents = [list(one) for one in self.incidents]
        return {**self.stream.saved(), "peak": peak, "since": list(self.since), "incidents": incidents}

    @staticmethod
    def restored(rows: Rows, plan: Plan, saved: dict[str, Any], key: str) -> "TabMemory":
        """What was saved, of these rows or of others.

        Raises:
            DamagedStateError: If something does not fit.
        """
        stream, names = RecordStream.restored(rows, saved, key), saved["names"]
        peak, since, incidents = (entry(saved, name, key) for name in ("peak", "since", "incidents"))
        if isinstance(incidents, list):  # earlier versions did not save the kind
            incidents = [[*one, "nonfinite"] if isinstance(one, list) and len(one) == 3 else one for one in incidents]
        check_saved(incidents, ListOf([0, "", "", ""]), f"{key}.incidents")
        if strange := [kind for *_, kind in incidents if kind not in GUARDED_KINDS]:
            raise DamagedStateError(f"`{key}.incidents` must be of {', '.join(GUARDED_KINDS)}, got {strange[0]!r}")
        check_saved(peak, OrNone(torch.full((len(names),), torch.nan)), f"{key}.peak")
        check_saved(since, [] if peak is None else [False] * len(names), f"{key}.since")
        found = TabMemory(stream, incidents=tuple(GuardEvent(*one) for one in incidents))
        if peak is None:
            return found
        known = aligned(torch.tensor(since, dtype=torch.bool), names, rows.names, False)
        peak = aligned(peak, names, rows.names, 0.0).to(plan.device, plan.dtype)
        return found._replace(peak=peak, since=tuple(known.tolist()))


class LayerTable:
    """The numbers of every tensor in the step that is logged, on the device."""

    view: GradientView
    rows: Rows

    def __init__(self, view: GradientView, rows: Rows) -> None:
        self.view, self.rows = view, rows
        self.filled: list[bool] = [shape.numel() > 0 for shape in view.plan.whole_shapes]
        self.empty: Tensor = ~torch.tensor(self.filled, dtype=torch.bool)
        self.forget()

    def forget(self) -> None:
        """A logged step begins, or its row was written."""
        self.before: Tensor | None = None
        self.given_before: list[bool] = []
        self.given_after: list[bool] = []
        self.counts_before: Tensor | None = None
        self.counts_after: Tensor | None = None

    def given(self) -> list[bool]:
        """Which tensors have a gradient, and elements."""
        return [given and filled for given, filled in zip(self.view.given(), self.filled, strict=True)]

    def see_logged(self, *, histograms: bool) -> None:
        """The step that is logged, before anybody acts."""
        self.forget()
        self.before, self.given_before = self.view.reading().tensors, self.given()
        self.counts_before = self._counts(self.given_before) if histograms else None

    def see_used(self) -> None:
        """The same, as the optimizer uses it."""
        self.given_after = self.given()
        if self.counts_before is not None:
            self.counts_after = self._counts(self.given_after)

    def _counts(self, given: list[bool]) -> Tensor:
        """Shape (M, 67), see ``HISTOGRAM_COLUMNS``."""
        view, owners, factor = self.view, self.rows.module_of, None
        if view.scale is not None or view.window_scale != 1.0:
            factor = torch.full((), view.window_scale, device=view.plan.device)
            factor = factor if view.scale is None else factor / view.scale.to(factor.device)
        found = exponent_counts(view.plan, view.gradients, owners, LOW_EXPONENT, HIGH_EXPONENT, factor)
        found = found.clamp(min=ABSENT_EXPONENT)
        owning = {owner for owner, one in zip(owners, given, strict=True) if one}
        for module in range(len(self.rows.modules)):
            if module not in owning:
                found[module] = ABSENT
        return found

    def masks(self, record: StepRecord, tab: TabMemory) -> Masks:
        """Which of the numbers mean something."""
        given_after = (self.given_after or self.given_before) if record.used is not None else []
        since = list(tab.since) or [False] * len(self.filled)
        return Masks(self.given_before if record.turn else [], since, given_after)

    def numbers(self, record: StepRecord, tab: TabMemory) -> Tensor:
        """The layers, shape (T, 5), on the device; zero where a number means nothing."""
        plan = self.view.plan
        nothing = torch.zeros(len(plan.tensors), dtype=plan.wide, device=plan.device)
        columns = [nothing] * len(STATISTICS)
        for column, norms in ((BEFORE, self.before), (PEAK, tab.peak)):
            columns[column] = nothing if norms is None else norms.to(nothing)
        if record.used is not None:
            columns[AFTER] = record.used.tensors.to(nothing)
        if record.update is not None:
            columns[WEIGHT], columns[UPDATE] = record.update.spread(self.filled, nothing)
        return torch.stack(columns, dim=1)

    def histograms(self) -> Tensor | None:
        """Shape (2, M, 67); absent throughout on the side that cannot be known."""
        if self.counts_before is None:
            return None
        after = torch.full_like(self.counts_before, ABSENT) if self.counts_after is None else self.counts_after
        return torch.stack([self.counts_before, after])


def layers_of(found: Tensor, masks: Masks, empty: Tensor, *, taken: bool) -> Tensor:
    """Put in place what is absent, also where a tensor is ``empty``: float32, shape (T, 5), on the host."""
    absent = torch.zeros(found.shape, dtype=torch.bool)
    for column, given in ((BEFORE, masks.before), (PEAK, masks.since), (AFTER, masks.after)):
        absent[:, column] = ~torch.tensor(given) if given else True
    absent[:, UPDATE] = absent[:, AFTER] if masks.after else absent[:, BEFORE]
    absent[:, WEIGHT] = empty
    if not taken:
        absent[:, [AFTER, WEIGHT, UPDATE]] = True
    return torch.where(absent, ABSENT, found).float()
