"""What the dashboard keeps of one optimizer on the device between two rows, and brings together for a row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.dashboard.layer_baseline import aligned
from lightning_calib.dashboard.records import Rows
from lightning_calib.functional.exponent_counts import magnitudes
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import ListOf, OrNone, check_saved, entry
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.step_hooks import After
from lightning_calib.steps.weight_update import Moved, strides
from lightning_calib.tensorboard.contract import ABSENT, ABSENT_EXPONENT, HIGH_EXPONENT, LOW_EXPONENT, STATISTICS

BEFORE, AFTER, PEAK, WEIGHT, UPDATE = map(list(STATISTICS).index, ("before", "after", "peak", "weight", "update"))


def rows_of(ledger: Ledger) -> Rows:
    """What a record of this optimizer's plan is of."""
    plan = ledger.plan
    filled = [tensor for tensor in plan.tensors if tensor.numel()]
    sampled = iter(stride > 1 for stride in strides(filled))
    return Rows(
        optimizer=ledger.index,
        kind=type(ledger.optimizer).__name__,
        suffix=ledger.suffix,
        names=plan.names,
        owners=plan.layers,
        dims=tuple(tensor.ndim for tensor in plan.tensors),
        estimated=tuple(next(sampled) if tensor.numel() else False for tensor in plan.tensors),
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


class Witness:
    """The largest norms since the last row, and what was seen of the step that is logged."""

    def __init__(self, ledger: Ledger, rows: Rows) -> None:
        self.ledger, self.rows = ledger, rows
        self.filled = [tensor.numel() > 0 for tensor in ledger.plan.tensors]
        self.clear()

    def clear(self) -> None:
        """A row was written."""
        self.peak: Tensor | None = None
        self.since: list[bool] = []
        self.forget()

    def forget(self) -> None:
        """A logged step begins, or its row was written."""
        self.before: Tensor | None = None
        self.given_before: list[bool] = []
        self.given_after: list[bool] = []
        self.counts_before: Tensor | None = None
        self.counts_after: Tensor | None = None

    def see(self) -> None:
        """Every step: keep the largest of each tensor's norm, out of the reading that is there anyway."""
        norms = self.ledger.reading().tensors
        self.peak = norms if self.peak is None else torch.maximum(self.peak, norms)
        if not self.since:
            self.since = self._given()
        elif not all(self.since):
            self.since = [a or b for a, b in zip(self.since, self._given(), strict=True)]

    def _given(self) -> list[bool]:
        pairs = zip(self.ledger.gradients, self.filled, strict=True)
        return [gradient is not None and filled for gradient, filled in pairs]

    def see_logged(self, *, histograms: bool) -> None:
        """The step that is logged, before anybody acts."""
        self.forget()
        self.before, self.given_before = self.ledger.reading().tensors, self._given()
        self.counts_before = self._counts(self.given_before) if histograms else None

    def see_used(self) -> None:
        """The same, as the optimizer uses it."""
        self.given_after = self._given()
        if self.counts_before is not None:
            self.counts_after = self._counts(self.given_after)

    def _counts(self, given: list[bool]) -> Tensor:
        """Shape (M, 67), see ``HISTOGRAM_COLUMNS``."""
        ledger, owners = self.ledger, self.rows.module_of
        factor = None
        if ledger.scale is not None or ledger.completion != 1.0:
            factor = torch.full((), ledger.completion, device=ledger.plan.device)
            factor = factor if ledger.scale is None else factor / ledger.scale.to(factor.device)
        found = magnitudes(ledger.plan, ledger.gradients, owners, LOW_EXPONENT, HIGH_EXPONENT, factor)
        found = found.clamp(min=ABSENT_EXPONENT)
        owning = {owner for owner, one in zip(owners, given, strict=True) if one}
        for module in range(len(self.rows.modules)):
            if module not in owning:
                found[module] = ABSENT
        return found

    def numbers(self, after: After) -> tuple[Tensor, Masks]:
        """The layers, shape (T, 5), on the device, and which of them mean something; the rest of them is zero."""
        plan = self.ledger.plan
        nothing = torch.zeros(len(plan.tensors), dtype=plan.wide, device=plan.device)
        columns = [nothing] * len(STATISTICS)
        for column, norms in ((BEFORE, self.before), (PEAK, self.peak)):
            columns[column] = nothing if norms is None else norms.to(nothing)
        given_after: list[bool] = []
        if after.reading is not None:
            columns[AFTER] = after.reading.tensors.to(nothing)
            given_after = self.given_after or self.given_before
        if after.update is not None:
            columns[WEIGHT], columns[UPDATE] = self._spread(nothing, after.update)
        since = self.since or [False] * len(plan.tensors)
        return torch.stack(columns, dim=1), Masks(self.given_before, since, given_after)

    def _spread(self, nothing: Tensor, moved: Moved) -> tuple[Tensor, Tensor]:
        """A tensor without elements has no place among the samples."""
        if all(self.filled):
            return moved.weights.to(nothing), moved.updates.to(nothing)
        places = torch.tensor([i for i, filled in enumerate(self.filled) if filled], device=nothing.device)
        weights, updates = (nothing.index_copy(0, places, one.to(nothing)) for one in (moved.weights, moved.updates))
        return weights, updates

    def histograms(self) -> Tensor | None:
        """Shape (2, M, 67); absent throughout on the side that cannot be known."""
        if self.counts_before is None:
            return None
        after = torch.full_like(self.counts_before, ABSENT) if self.counts_after is None else self.counts_after
        return torch.stack([self.counts_before, after])

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        peak = None if self.peak is None else self.peak.detach().cpu().clone()
        incidents = [list(one) for one in self.ledger.incidents]
        return {"peak": peak, "since": list(self.since), "incidents": incidents}

    def restore(self, saved: dict[str, Any], names: Sequence[str], key: str) -> None:
        """Take up what was saved of the rows ``names``.

        Raises:
            DamagedStateError: If something does not fit.
        """
        peak, since, incidents = (entry(saved, name, key) for name in ("peak", "since", "incidents"))
        check_saved(incidents, ListOf([0, "", ""]), f"{key}.incidents")
        check_saved(peak, OrNone(torch.full((len(names),), torch.nan)), f"{key}.peak")
        check_saved(since, [] if peak is None else [False] * len(names), f"{key}.since")
        self.ledger.incidents.extend(tuple(one) for one in incidents if tuple(one) not in self.ledger.incidents)
        if peak is not None:
            plan = self.ledger.plan
            self.peak = aligned(peak, names, self.rows.names, 0.0).to(plan.device, plan.dtype)
            self.since = aligned(torch.tensor(since, dtype=torch.bool), names, self.rows.names, False).tolist()


def layers_of(found: Tensor, masks: Masks, plan: Plan, *, taken: bool) -> Tensor:
    """Put in place what is absent: float32, shape (T, 5), on the host."""
    absent = torch.zeros(found.shape, dtype=torch.bool)
    for column, given in ((BEFORE, masks.before), (PEAK, masks.since), (AFTER, masks.after)):
        absent[:, column] = ~torch.tensor(given) if given else True
    absent[:, UPDATE] = absent[:, AFTER] if masks.after else absent[:, BEFORE]
    absent[:, WEIGHT] = torch.tensor([tensor.numel() == 0 for tensor in plan.tensors])
    if not taken:
        absent[:, [AFTER, WEIGHT, UPDATE]] = True
    return torch.where(absent, ABSENT, found).float()
