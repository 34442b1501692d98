"""The numbers of every tensor of one optimizer in a logged step, and its largest norm since the last one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.saved_state import OrNone, check_saved, entry
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.step_record import StepRecord

COLUMNS = ("before", "after", "peak", "weight", "update")
LARGEST = torch.tensor([name == "peak" for name in COLUMNS])
_WAITING = 64  # steps whose norms wait to be compared


class LayerWindow(NamedTuple):
    """What is known of T tensors since the last row; a value.

    Attributes:
        waiting: Norms of the steps that wait to be compared, each of shape (T,).
        peak: The largest of the others; None without any.
        since: Which tensors had a gradient since the last row; empty without a step.
        given: Which of them ever had one.
    """

    waiting: tuple[Tensor, ...] = ()
    peak: Tensor | None = None
    since: tuple[bool, ...] = ()
    given: tuple[bool, ...] = ()

    def add(self, norms: Tensor, had: Callable[[], Sequence[bool]]) -> "LayerWindow":
        """Take in a step: the tensors' norms, and how to find out which of them had a gradient."""
        since, given = self.since, self.given
        if not (since and all(since)):  # else nothing can be added
            now = tuple(had())
            since = tuple(map(max, since, now)) if since else now
            given = tuple(map(max, given, since)) if given else since
        found = LayerWindow((*self.waiting, norms), self.peak, since, given)
        return found if len(found.waiting) < _WAITING else found.compared()

    def compared(self) -> "LayerWindow":
        """With nothing that waits; the same numbers, whenever it is asked for."""
        if not self.waiting:
            return self
        known = () if self.peak is None else (self.peak,)
        return self._replace(waiting=(), peak=torch.stack([*known, *self.waiting]).amax(dim=0))

    def new_window(self) -> "LayerWindow":
        """A row is written."""
        return LayerWindow(given=self.given)

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        peak = self.compared().peak
        return {
            "peak": None if peak is None else peak.detach().cpu().clone(),
            "since": list(self.since),
            "given": list(self.given),
        }

    @staticmethod
    def restored(saved: Any, tensors: int, key: str) -> "LayerWindow":
        """What was saved, of so many tensors.

        Raises:
            DamagedStateError: If something does not fit.
        """
        empty = {name: _is_empty(entry(saved, name, key)) for name in ("since", "given")}
        flags = {name: [] if none else [False] * tensors for name, none in empty.items()}
        peak = None if empty["since"] else torch.full((tensors,), torch.nan)
        check_saved(saved, {"peak": OrNone(peak), **flags}, key)
        largest = None if saved["peak"] is None else saved["peak"].clone()
        return LayerWindow((), largest, tuple(saved["since"]), tuple(saved["given"]))


class LoggedLayers:
    """One optimizer's tensors in the step that is logged."""

    def __init__(self, view: GradientView) -> None:
        self.view = view
        self.filled: list[bool] = [shape.numel() > 0 for shape in view.plan.whole_shapes]
        self.forget()

    def forget(self) -> None:
        """A logged step begins, or its row is written."""
        self.before: Tensor | None = None
        self.given_before: tuple[bool, ...] = ()
        self.given_after: tuple[bool, ...] = ()

    def see(self) -> None:
        """Before anybody acts."""
        self.before, self.given_before = self.view.reading().tensors, self._given()

    def see_used(self) -> None:
        """The same, as the optimizer uses it."""
        self.given_after = self._given()

    def _given(self) -> tuple[bool, ...]:
        return tuple(self.view.given())

    def numbers(self, record: StepRecord, peak: Tensor | None) -> Tensor:
        """Shape (T, 5), on the device, see ``COLUMNS``; zero where a number means nothing."""
        plan = self.view.plan
        nothing = torch.zeros(len(plan.tensors), dtype=plan.wide, device=plan.device)
        used = None if record.used is None else record.used.tensors
        norms = [nothing if one is None else one.to(nothing) for one in (self.before, used, peak)]
        moved = (nothing, nothing) if record.update is None else record.update.spread(self.filled, nothing)
        return torch.stack([*norms, *moved], dim=1)

    def known(self, record: StepRecord, since: Sequence[bool], *, taken: bool) -> Tensor:
        """Which of the numbers mean something: bool, shape (T, 5), on the host; no number is looked at."""
        none = torch.zeros(len(self.filled), dtype=torch.bool)
        filled = torch.tensor(self.filled, dtype=torch.bool)
        had, ever = (torch.tensor(one, dtype=torch.bool) if one else none for one in (self.given_before, since))
        before = had if record.turn else none
        used = torch.tensor(self.given_after, dtype=torch.bool) if self.given_after else had
        after = used if taken and record.used is not None else none
        weight = filled if taken else none
        update = used & filled if taken else none
        return torch.stack([before & filled, after & filled, ever & filled, weight, update], dim=1)


def _is_empty(saved: Any) -> bool:
    return isinstance(saved, list) and not saved
