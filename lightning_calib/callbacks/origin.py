"""Where a bad gradient came from: which micro-batch, which rank; and the files that keep the evidence."""

from pathlib import Path

import torch

from lightning_calib.callbacks.session import Session
from lightning_calib.callbacks.window import MicroBatch, plain

_MOST_FILES = 10


def origin(session: Session, window: list[MicroBatch], lost: bool) -> tuple[str, list[MicroBatch]]:
    """A part of a sentence, and the micro-batches of this process that are evidence.

    Every rank comes here on the same steps, because the gradient is the same on all of them after the reduction; so the
    one collective, on whether "my loss was not finite", cannot hang.
    """
    suspects = [micro for micro in window if micro.bad]
    ranks = _flagged_ranks(session, lost)
    if ranks is not None:
        if not ranks:
            return "the loss was finite on every rank, so which one brought it cannot be told", window
        text = f"the loss was not finite on rank {', '.join(map(str, ranks))} of {session.trainer.world_size}"
        return text, suspects
    if len(window) < 2:
        return "", window
    if not suspects:
        return "the loss of every micro-batch was finite", window
    named = ", ".join(str(micro.index) for micro in suspects)
    return (
        f"the loss was not finite in micro-batch {named} of batches {window[0].index} to {window[-1].index}",
        suspects,
    )


def _flagged_ranks(session: Session, lost: bool) -> list[int] | None:
    """The ranks whose loss was not finite; None in a run of one process."""
    trainer = session.trainer
    if trainer.world_size < 2:
        return None
    flag = torch.tensor(float(lost), device=trainer.strategy.root_device)
    flags = trainer.strategy.all_gather(flag)
    return [rank for rank, one in enumerate(flags.reshape(-1).tolist()) if one]


class BatchKeeper:
    """Writes one file per incident, at most ten; a full disk never fails the run."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.written = 0

    def save(self, told: str, micros: list[MicroBatch], rank: int, step: int) -> str:
        """Write the micro-batches; returns what to say about it."""
        if self.folder is None or not micros or self.written >= _MOST_FILES:
            return ""
        path = self.folder / f"step{step:08d}-rank{rank}.pt"
        content = {
            "version": 1,
            "incident": told,
            "step": step,
            "rank": rank,
            "batches": [{"batch_idx": one.index, "batch": plain(one.batch), "rng": one.rng} for one in micros],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
        except Exception as error:
            return f"The batch could not be saved to {path} ({error})."
        self.written += 1
        return f"Batch saved to {path}."
