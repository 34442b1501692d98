"""Where a bad gradient came from: which micro-batch, which rank."""

from typing import Any, NamedTuple

import torch

from lightning_calib.incidents.micro_batches import MicroBatch, MicroBatches


class Culprit(NamedTuple):
    """What is known about it.

    Attributes:
        lost: Whether a loss was not finite, on whichever rank.
        text: A part of a sentence; empty if there is no choice.
        evidence: The micro-batches of this process that are worth keeping.
    """

    lost: bool
    text: str
    evidence: list[MicroBatch]


def culprit(trainer: Any, window: MicroBatches) -> Culprit:
    """Find the micro-batches and the ranks whose loss was not finite.

    Every rank comes here on the same steps, because the gradient is the same on all of them after the reduction; so the
    one collective, on whether "my loss was not finite", cannot hang. Nothing may be decided by a rank alone before it.
    """
    suspects = window.suspects
    if trainer.world_size > 1:
        ranks = _flagged_ranks(trainer, bool(suspects))
        if not ranks:
            return Culprit(False, "the loss was finite on every rank, so the rank cannot be told", window.micros)
        named = ", ".join(map(str, ranks))
        return Culprit(True, f"the loss was not finite on rank {named} of {trainer.world_size}", suspects)
    if len(window.micros) < 2:
        return Culprit(bool(suspects), "", window.micros)
    if not suspects:
        return Culprit(False, "the loss of every micro-batch was finite", window.micros)
    named = ("micro-batch " if len(suspects) == 1 else "micro-batches ") + ", ".join(str(one.index) for one in suspects)
    span = f"batches {window.micros[0].index} to {window.index}"
    return Culprit(True, f"the loss was not finite in {named} of {span}", suspects)


def _flagged_ranks(trainer: Any, lost: bool) -> list[int]:
    flag = torch.tensor(float(lost), device=trainer.strategy.root_device)
    flags = trainer.strategy.all_gather(flag)
    return [rank for rank, one in enumerate(flags.reshape(-1).tolist()) if one]
