"""One optimizer step as a value: what was measured, what was done to the gradient, and what the optimizer used."""

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.norms import Reading
from lightning_calib.steps.weight_update import WeightUpdate


class Phase(Enum):
    """Where an optimizer's step stands."""

    RESTING = "no step since the last batch ended"
    JUDGED = "our callbacks have seen the gradient; torch has not ended its step"
    TAKEN = "torch took the step with a gradient"
    NOT_TAKEN = "torch's step found no gradient"


class StepRates(NamedTuple):
    """The learning rate of the first param group in one step, and the GradScaler's scale.

    Attributes:
        lr: As the scheduler left it; None where the optimizer has none.
        lr_effective: Times the group's ``d``, where it has one, and times the factors of LearningRateControl.
        loss_scale: None without a GradScaler.
    """

    lr: float | Tensor | None
    lr_effective: float | Tensor | None
    loss_scale: float | None = None

    def scaled(self, factor: float | Tensor) -> "StepRates":
        """With another factor on the effective rate."""
        return self._replace(lr_effective=None if self.lr_effective is None else self.lr_effective * factor)


class Fired(NamedTuple):
    """Whether one callback reduced the gradient.

    Attributes:
        key: The callback's ``state_key``.
        reduced: 0-d bool; in a dry run, whether it would have.
        acted: False in a dry run.
    """

    key: str
    reduced: Tensor
    acted: bool = True


class Kept(NamedTuple):
    """What is left of the gradient's norm when everybody has acted.

    Attributes:
        norm: 0-d.
        by_trainer: 0-d bool: whether the Trainer, or the module in its place, took of it; None where it does not clip.
    """

    norm: Tensor
    by_trainer: Tensor | None


class Overflow(NamedTuple):
    """What the guard knows about a gradient that is not finite.

    Attributes:
        incident: False where a GradScaler meets it as a part of its work.
        skipped_in_kernel: Whether a fused optimizer skips the step on the device, by itself.
    """

    incident: bool
    skipped_in_kernel: bool


class GuardEvent(NamedTuple):
    """What a guard has found on a step, and what it has done about it: for the tab and the report.

    Attributes:
        step: The x of the charts.
        layer: The deepest listed tensor that was not finite; empty where it is about the whole gradient.
        text: As the console has it.
        kind: ``"nonfinite"``, ``"spike"`` or ``"rewind"``.
    """

    step: int
    layer: str
    text: str
    kind: str = "nonfinite"


class StepRecord(NamedTuple):
    """One step of one optimizer; changed by `_replace` only.

    Attributes:
        phase: Where the step stands.
        live: There is a gradient, it is of this step, and nobody has dropped it.
        logged: A row is due in this batch.
        window_scale: What makes the gradient that of a whole window of micro-batches: above 1 in a short one.
        rates: Of logged steps.
        norm_before: 2-norm as the first of our callbacks saw it, 0-d; None on a step without a gradient.
        norm_left: 2-norm as the last of ours left it, 0-d; None where nobody needs to know.
        fired: What each clipping callback did.
        kept: What everybody left, where it can be computed.
        shadows: What policies would have done that are judged and never applied, shape (S, 3), see `Shadow.judge`.
        overflow: What the guard found, on a step that it found to be bad.
        spike: Whether it was dropped because its norm or its loss was a spike: no history of norms takes it in.
        rewound: How many earlier steps a rewind has undone; known on the first step that is taken after it.
        incident: What a guard has found.
        fatal: What ends the run, when the incident has been kept.
        used: The norms that the optimizer used, of logged steps; None where they cannot be known.
        norm_used: Their total, 0-d.
        update: How far the step moved the weights, of logged steps.
    """

    phase: Phase = Phase.RESTING
    live: bool = False
    logged: bool = False
    window_scale: float = 1.0
    rates: StepRates | None = None
    norm_before: Tensor | None = None
    norm_left: Tensor | None = None
    fired: tuple[Fired, ...] = ()
    kept: Kept | None = None
    shadows: Tensor | None = None
    overflow: Overflow | None = None
    spike: bool = False
    rewound: int = 0
    incident: GuardEvent | None = None
    fatal: Exception | None = None
    used: Reading | None = None
    norm_used: Tensor | None = None
    update: WeightUpdate | None = None

    @property
    def reductions(self) -> list[Tensor]:
        """Of everybody who is known to clip, whether they reduced the gradient: 0-d bools."""
        found = [one.reduced for one in self.fired if one.acted] if self.live else []
        if self.kept is not None and self.kept.by_trainer is not None:
            found.append(self.kept.by_trainer)
        return found

    @property
    def reduced(self) -> bool | Tensor:
        """Whether anybody reduced the gradient, 0-d; False where nobody is known to clip."""
        found = self.reductions
        return torch.stack(found).any() if found else False

    @property
    def turn(self) -> bool:
        """Whether it was this optimizer's turn in the batch at hand."""
        return self.phase is not Phase.RESTING

    @property
    def skipped(self) -> bool:
        """Whether the step, now that it is over, was not taken."""
        return self.phase in (Phase.JUDGED, Phase.NOT_TAKEN)

    def rest(self) -> "StepRecord":
        """The batch has ended: the row, if one was due, is written."""
        return self._replace(phase=Phase.RESTING, used=None, norm_used=None, update=None)
