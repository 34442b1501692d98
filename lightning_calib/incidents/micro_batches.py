"""The micro-batches since the last optimizer step: their losses, and, where asked, the batches themselves."""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_MOST = 64  # micro-batches kept while a manual loop does not step


@dataclass
class MicroBatch:
    """One micro-batch; ``batch`` is None once nobody keeps it; its losses stay on the device until somebody asks."""

    index: int
    batch: Any = None
    rng: dict[str, Any] | None = None
    losses: list[Tensor] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Whether one of its losses was not finite."""
        return any(not bool(loss.isfinite().all()) for loss in self.losses)


class MicroBatches:
    """What went into the gradient of the step that comes next.

    Args:
        keep: Whether all batches of a window, and the random states before each, are kept alive: otherwise only the
            one at hand.
    """

    keep: bool
    closed: bool
    stepped: bool

    def __init__(self, *, keep: bool) -> None:
        self.keep, self.closed, self.stepped = keep, True, False
        self.micros: list[MicroBatch] = []

    def add(self, index: int, batch: Any) -> bool:
        """Take up a micro-batch; True if it is the first of a new window."""
        opened = self.closed
        if opened:
            self.micros, self.closed, self.stepped = [], False, False
        self.let_go()
        self.micros.append(MicroBatch(index, batch, rng_state() if self.keep else None))
        del self.micros[:-_MOST]
        return opened

    def let_go(self) -> None:
        """Unless batches are kept: the one at hand is over, and the training loop lets go of it as well."""
        if self.micros and not self.keep:
            self.micros[-1].batch = None

    @property
    def index(self) -> int:
        """Of the micro-batch at hand."""
        return self.micros[-1].index if self.micros else -1

    @property
    def suspects(self) -> list[MicroBatch]:
        """The micro-batches whose loss was not finite."""
        return [micro for micro in self.micros if micro.bad]

    def loss(self) -> float | None:
        """The loss of the micro-batch at hand, as it was given to the backward pass; None if there was none."""
        losses = self.micros[-1].losses if self.micros else []
        return float(losses[-1]) if losses else None


def rng_state() -> dict[str, Any]:
    """The random generators' states, as builtins and tensors."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any] | None) -> None:
    """Put the random generators where they were, if that was kept."""
    if state is None:
        return
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
