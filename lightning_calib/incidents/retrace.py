"""After an incident: run the kept batches once more, and say where values stopped being finite."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_calib.incidents.micro_batches import MicroBatch, MicroBatches, set_rng_state
from lightning_calib.incidents.trace import Traced, trace

_BYTES = 1000  # of a text that goes to the other ranks


class Rerun(Protocol):
    """A training step that can be run once more."""

    trainer: Any
    module: Any

    def again(self) -> AbstractContextManager[None]:
        """Looks to the module like a training step; afterwards everything is put back."""

    def step(self, batch: Any, index: int) -> Any:
        """What the module makes of a batch."""


class Retrace:
    """The re-run of a window's micro-batches.

    Args:
        rerun: How a batch is run again.
        sharded: Whether parameters are spread over processes: then a backward pass of one's own would write gradients.
    """

    def __init__(self, rerun: Rerun, *, sharded: bool) -> None:
        self._rerun, self._sharded = rerun, sharded
        self._trainer, self._module = rerun.trainer, rerun.module

    def __call__(self, window: MicroBatches, scale: float) -> Traced:
        """Every rank must come here: all run all of their micro-batches again, or none does.

        Args:
            window: The micro-batches of the step.
            scale: What their losses were multiplied with.
        """
        if self._sharded:
            return Traced("not traced, because the parameters are sharded over processes")
        if self._trainer.world_size > 1:
            return self._over_ranks(window.micros, scale)
        found = Traced("not traced, because no batch was kept")
        for micro in window.suspects or window.micros:
            found = self._run(micro, scale)
            if found.found:
                break
        return found

    def _run(self, micro: MicroBatch, scale: float) -> Traced:
        module: nn.Module = self._module
        try:
            with self._rerun.again():
                set_rng_state(micro.rng)
                return trace(lambda: self._rerun.step(micro.batch, micro.index), module, micro.batch, scale)
        except Exception as trouble:
            return Traced(f"the batch could not be run again to find the operation ({' '.join(repr(trouble).split())})")

    def _over_ranks(self, micros: Sequence[MicroBatch], scale: float) -> Traced:
        """Modules may talk to the other ranks in their forward pass: so every rank does the same, found or not."""
        counts = self._gathered([len(micros)])
        if len({one for (one,) in counts}) > 1 or not micros:
            return Traced("not traced, because the ranks have kept different numbers of batches")
        each = [self._run(micro, scale) for micro in micros]
        own = next((one for one in each if one.found), each[0])
        told = self._gathered([int(own.found), *own.text.encode()[:_BYTES].ljust(_BYTES)])
        rank = next((i for i, (found, *_) in enumerate(told) if found), 0)
        text = bytes(told[rank][1:]).decode(errors="ignore").strip()
        return Traced(f"on rank {rank} {text}", True) if told[rank][0] else Traced(text)

    def _gathered(self, numbers: Sequence[int]) -> list[list[int]]:
        """Of every rank, in their order."""
        strategy = self._trainer.strategy
        found: Tensor = strategy.all_gather(torch.tensor(numbers, device=strategy.root_device))
        rows: list[list[int]] = found.reshape(-1, len(numbers)).tolist()
        return rows
