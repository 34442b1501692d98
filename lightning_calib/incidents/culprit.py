"""Where a bad gradient came from: which micro-batch, which rank, and whether the data are finite."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.finiteness import Bad
from lightning_calib.incidents.batch_values import bad_input
from lightning_calib.incidents.micro_batches import MicroBatch, MicroBatches


class Culprit(NamedTuple):
    """What is known about it.

    Attributes:
        lost: Whether a loss was not finite, on whichever rank.
        text: A part of a sentence; empty if there is no choice.
        evidence: The micro-batches of this process that are worth keeping.
        loss: As it was given to the backward pass: of the first rank whose loss was bad, where one was; None if no loss
            was seen.
        data: What of the batch is not finite, on whichever rank; empty if nothing is.
        looked: Whether all micro-batches could be looked into: only the one at hand can be where none are kept.
    """

    lost: bool
    text: str
    evidence: list[MicroBatch]
    loss: float | None
    data: str
    looked: bool


def culprit(trainer: Any, window: MicroBatches) -> Culprit:
    """Find the micro-batches and the ranks whose loss was not finite.

    Every rank comes here on the same steps, because the gradient is the same on all of them after the reduction; so the
    one collective, on whether "my loss was not finite", cannot hang. Nothing may be decided by a rank alone before it.
    """
    suspects = window.suspects
    if trainer.world_size > 1:
        return _over_ranks(trainer, window, suspects)
    data, looked = bad_input([one.batch for one in window.micros]).text, _looked(window)
    if len(window.micros) < 2:
        return Culprit(bool(suspects), "", window.micros, window.loss(), data, looked)
    if not suspects:
        return Culprit(False, "the loss of every micro-batch was finite", window.micros, window.loss(), data, looked)
    named = ("micro-batch " if len(suspects) == 1 else "micro-batches ") + ", ".join(str(one.index) for one in suspects)
    span = f"batches {window.micros[0].index} to {window.index}"
    return Culprit(True, f"the loss was not finite in {named} of {span}", suspects, window.loss(), data, looked)


def _looked(window: MicroBatches) -> bool:
    return all(one.batch is not None for one in window.micros)


def neighbours(
    order: Mapping[str, int], names: Sequence[str], gradients: Sequence[Tensor | None], bad: Sequence[Bad]
) -> tuple[str, str]:
    """The nearest tensors with a finite gradient before the first and after the last bad one, in module order."""
    ruined = {one.name for one in bad}
    given = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    given.sort(key=lambda name: order.get(name, -1))
    places = [i for i, name in enumerate(given) if name in ruined]
    before, after = given[: places[0]], given[places[-1] + 1 :]
    return before[-1] if before else "", after[0] if after else ""


def _over_ranks(trainer: Any, window: MicroBatches, suspects: list[MicroBatch]) -> Culprit:
    """Each rank tells its loss, that of a bad micro-batch if it has one, and how much of its data is not finite."""
    input_ = bad_input([one.batch for one in window.micros])
    own = float(suspects[0].losses[-1]) if suspects else window.loss()
    mine = [float(bool(suspects)), float(own is not None), nan if own is None else own, input_.nan, input_.inf]
    gathered = trainer.strategy.all_gather(torch.tensor(mine, dtype=torch.float32, device=trainer.strategy.root_device))
    ranks: list[list[float]] = gathered.reshape(-1, len(mine)).tolist()
    data = [
        f"the batch of rank {rank}: {int(nans):,} NaN and {int(infs):,} Inf"
        for rank, (_, _, _, nans, infs) in enumerate(ranks)
        if nans or infs
    ]
    bad = [rank for rank, (lost, *_) in enumerate(ranks) if lost]
    told = ranks[bad[0]][2] if bad else own
    text = f"the loss was not finite on rank {', '.join(map(str, bad))} of {trainer.world_size}"
    if not bad:
        text = "the loss was finite on every rank, so the rank cannot be told"
    return Culprit(bool(bad), text, suspects if bad else window.micros, told, data[0] if data else "", _looked(window))
