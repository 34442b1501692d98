"""What is kept of one optimizer's run for its report: the loss, rows of scalars, rows of layers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import ListOf, OrNone, check_saved, entry, restored
from lightning_calib.steps.counts import StepCounts
from lightning_calib.steps.kept_rows import KeptRows, room
from lightning_calib.steps.layer_rows import COLUMNS, LARGEST, LayerWindow
from lightning_calib.steps.loss_history import LossHistory, LossSums
from lightning_calib.steps.step_record import GuardEvent

SCALAR_ROWS = 1024  # kept at most
_INCIDENTS = 200  # kept at most: the first ones, which say where a trouble began


class Left(NamedTuple):
    """Of `StepCounts`, as they were at the last row: what was left of the norm, and on how many steps; 0-d."""

    left: Tensor
    known: Tensor

    @staticmethod
    def of(steps: StepCounts) -> "Left":
        """As they are now."""
        return Left(steps.left, steps.known)


class RunHistory(NamedTuple):
    """A value: every change makes a new one.

    Attributes:
        names: The T parameters.
        losses: Of whole steps.
        window: Of the tensors, since the last row.
        scalars: Rows of scalars.
        layers: Rows of layers, each of shape (T, 5).
        left: At the last row.
        val_loss: The last that is known; nan without any.
        rates: The learning rate of each parameter group when the run began; None of one without.
        incidents: What guards have found first: step, tensor (empty for the whole gradient), kind.
    """

    names: tuple[str, ...]
    losses: LossHistory
    window: LayerWindow
    scalars: KeptRows
    layers: KeptRows
    left: Left
    val_loss: float
    rates: tuple[float | None, ...] = ()
    incidents: tuple[tuple[int, str, str], ...] = ()

    @staticmethod
    def empty(plan: Plan) -> "RunHistory":
        """Nothing seen."""
        losses, counts = LossHistory(LossSums.empty(plan.device)), StepCounts.empty(plan)
        return RunHistory(plan.names, losses, LayerWindow(), KeptRows(), KeptRows(), Left.of(counts), torch.nan)

    def share(self, steps: StepCounts) -> Tensor:
        """The mean share of the norm that was left on the steps since the last row, 0-d; nan without any."""
        known = steps.known - self.left.known
        return torch.where(known > 0, (steps.left - self.left.left) / known, torch.nan)

    def with_incident(self, found: GuardEvent) -> "RunHistory":
        """Take in a bad step, unless there are many already."""
        return self._replace(incidents=(*self.incidents, (found.step, found.layer, found.kind))[:_INCIDENTS])

    def after(
        self, step: int, scalars: Tensor, layers: Tensor, largest: Tensor, steps: StepCounts, val_loss: float
    ) -> "RunHistory":
        """A row is written: it is kept, and what is counted since the last one starts again.

        Args:
            step: Its x.
            scalars: Shape (C,), on the host.
            layers: Shape (T, 5), on the host.
            largest: Which of the scalars are the largest since the last row, bool.
            steps: The counts as the row told them.
            val_loss: The last that is known.
        """
        return self._replace(
            losses=self.losses.new_window(),
            window=self.window.new_window(),
            scalars=self.scalars.add(step, scalars, SCALAR_ROWS, largest),
            layers=self.layers.add(step, layers, room(layers.numel()), LARGEST),
            left=Left.of(steps),
            val_loss=val_loss,
        )

    def of(self, plan: Plan) -> "RunHistory":
        """The same of another plan's parameters, by name; what is not known of them is nan."""
        if plan.names == self.names:
            return self
        place = {name: i for i, name in enumerate(self.names)}
        places = [place.get(name, -1) for name in plan.names]
        window = self.window.compared()
        since, given = (tuple(i >= 0 and bool(flags) and flags[i] for i in places) for flags in window[2:])
        peak = None if window.peak is None else _chosen(window.peak, places, 0.0).to(plan.device)
        return self._replace(
            names=plan.names,
            window=LayerWindow((), peak, since if window.since else (), given),
            layers=self.layers.changed(lambda row: _chosen(row, places, torch.nan)),
        )

    def saved(self, columns: Sequence[str], val_loss: float) -> dict[str, Any]:
        """For the checkpoint; ``columns`` are the names of the scalars."""
        return {
            "names": list(self.names),
            "columns": list(columns),
            "losses": self.losses.saved(),
            "window": self.window.saved(),
            "scalars": self.scalars.saved(),
            "layers": self.layers.saved(),
            "left": {key: one.detach().cpu().clone() for key, one in self.left._asdict().items()},
            "val_loss": val_loss,
            "rates": list(self.rates),
            "incidents": [list(one) for one in self.incidents],
        }

    @staticmethod
    def restored(saved: dict[str, Any], plan: Plan, columns: Sequence[str], key: str) -> "RunHistory":
        """What was saved, of this plan's parameters or of others.

        Raises:
            DamagedStateError: If something does not fit.
        """
        names, known = entry(saved, "names", key), entry(saved, "columns", key)
        check_saved(names, ListOf(""), f"{key}.names")
        check_saved(known, ListOf(""), f"{key}.columns")
        val_loss = entry(saved, "val_loss", key)
        check_saved(val_loss, torch.nan, f"{key}.val_loss")
        check_saved(entry(saved, "rates", key), ListOf(OrNone(torch.nan)), f"{key}.rates")
        incidents = saved.get("incidents", [])  # which earlier versions did not save
        check_saved(incidents, ListOf([0, "", ""], _INCIDENTS), f"{key}.incidents")
        scalars = KeptRows.restored(entry(saved, "scalars", key), (len(known),), f"{key}.scalars")
        places = [known.index(name) if name in known else -1 for name in columns]
        found = RunHistory(
            names=tuple(names),
            losses=LossHistory.restored(entry(saved, "losses", key), plan.device, f"{key}.losses"),
            window=LayerWindow.restored(entry(saved, "window", key), len(names), f"{key}.window"),
            scalars=scalars if known == list(columns) else scalars.changed(lambda row: _chosen(row, places, torch.nan)),
            layers=KeptRows.restored(entry(saved, "layers", key), (len(names), len(COLUMNS)), f"{key}.layers"),
            left=restored(entry(saved, "left", key), Left.of(StepCounts.empty(plan)), f"{key}.left"),
            val_loss=val_loss,
            rates=tuple(saved["rates"]),
            incidents=tuple((step, layer, kind) for step, layer, kind in incidents),
        )
        peak = found.window.peak
        placed = found._replace(window=found.window._replace(peak=None if peak is None else peak.to(plan.device)))
        return placed.of(plan)


def _chosen(values: Tensor, places: Sequence[int], fill: float) -> Tensor:
    """Entries of the first axis; ``fill`` where the place is below 0."""
    index = torch.tensor([max(0, place) for place in places], dtype=torch.int64, device=values.device)
    absent = torch.tensor([place < 0 for place in places], dtype=torch.bool, device=values.device)
    if not len(values):
        return values.new_full((len(places), *values.shape[1:]), fill)
    return torch.where(absent.view(-1, *[1] * (values.ndim - 1)), fill, values[index])
