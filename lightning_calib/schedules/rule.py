"""What a learning-rate rule sees of one optimizer step, and what it has to answer."""

from abc import abstractmethod
from math import inf
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from lightning_calib.functional.checks import message
from lightning_calib.functional.judge import Method, State


class Measurement(NamedTuple):
    """One step of an optimizer with G param groups; all tensors on one device, of one floating dtype.

    Attributes:
        norms: Shape (G,): the 2-norm of each group's gradient, unscaled, before any clipping.
        observed: Shape (G,), bool: finite and above zero. Only such groups may enter a rule's state.
        loss: Shape (): unscaled, undivided, the mean over ranks; None unless the rule ``needs_loss``.
        distances: Shape (G,): how far each group's weights are from where they started; None unless the rule
            ``needs_distance``.
        start_norms: Shape (G,): the norm of each group's weights where they started; None likewise.
    """

    norms: Tensor
    observed: Tensor
    loss: Tensor | None = None
    distances: Tensor | None = None
    start_norms: Tensor | None = None


class Setting(NamedTuple):
    """What a rule is meant to control, where its factor is more than a correction of a learning rate that fits.

    Attributes:
        optimizer: As a sentence names it: "plain SGD".
        rate: The learning rate, before any schedule.
        max_factor: The cap of ``LearningRateControl`` under which the rule does what it was published to do.
    """

    optimizer: str
    rate: float
    max_factor: float = inf


class LearningRateRule(Method):
    """From a measurement to factors on the learning rates. A frozen dataclass; its state is a value.

    A group that is not observed gets the factor 1 and leaves the state as it is.

    Attributes:
        needs_loss: Whether the measurement must have the loss.
        needs_distance: Whether it must have the distances.
        meant_for: What the rule is meant to control; None: whatever learning rate the user has chosen. With another
            rate ``LearningRateControl`` warns at the start of training.
    """

    needs_loss: ClassVar[bool] = False
    needs_distance: ClassVar[bool] = False
    meant_for: ClassVar[Setting | None] = None

    @abstractmethod
    def __call__(self, measurement: Measurement, state: Any) -> tuple[Tensor, State]:
        """Return the factors, shape (G,), and the next state; neither argument is changed."""

    def refuses(self, optimizer_class_name: str, momentum: float = 0.0) -> str | None:
        """Why this rule must not drive an optimizer of that class, with that momentum; None if it may."""
        return None


def required(name: str, value: Tensor | None) -> Tensor:
    """A part of the measurement that the rule has declared it needs.

    Raises:
        ValueError: If it is missing.
    """
    if value is None:
        raise ValueError(message(name, "a tensor for this rule", value, "Measure it, as the rule's class declares."))
    return value
