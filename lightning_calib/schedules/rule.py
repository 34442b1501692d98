"""What a learning-rate rule sees of one optimizer step, and what it has to answer."""

from abc import abstractmethod
from math import inf
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from lightning_calib.functional.checks import message
from lightning_calib.functional.judge import Method, State


class Measurement(NamedTuple):
    """What a learning-rate rule sees of one step of an optimizer with G param groups; all tensors on one device.

    Attributes:
        norms: Shape (G,): the 2-norm of each group's gradient, unscaled, before any clipping. float64 where a gradient
            is, else float32.
        observed: Shape (G,), bool: finite and above zero. Only such groups may enter a rule's state.
        loss: Shape (), in the unit and the dtype of the loss: unscaled, undivided, the mean over ranks; None unless
            the rule ``needs_loss``.
        distances: Shape (G,), in the unit of the weights, of the dtype of ``norms``: how far each group's weights are
            from where they started; None unless the rule ``needs_distance``.
        start_norms: Shape (G,): the norm of each group's weights where they started; None likewise.

    Example:
        >>> import torch
        >>> from lightning_calib import InverseNorm, Measurement
        >>> norms, rule = torch.tensor([4.0]), InverseNorm()
        >>> factors, state = rule(Measurement(norms, norms > 0), rule.init(norms))
        >>> factors
        tensor([0.2500])
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
    """From a measurement to factors on the learning rates: the base of every rule, and of your own.

    A subclass holds hyper-parameters that never change, best as a frozen dataclass; what it remembers is a value that
    it is given and gives back. ``init(norms)`` returns the first state, a NamedTuple of tensors on the device of
    ``norms``, made from its shape, device and dtype alone. ``rule(measurement, state)`` returns the factors, shape
    (G,), of the dtype and on the device of ``measurement.norms``, finite and at least 0, and the next state, with the
    same fields, shapes and dtypes. It writes into neither argument and keeps nothing in itself. A group that is not
    observed gets the factor 1 and leaves the state as it is.

    Attributes:
        needs_loss: Whether the measurement must have the loss.
        needs_distance: Whether it must have the distances.
        meant_for: What the rule is meant to control; None: whatever learning rate the user has chosen. With another
            rate ``LearningRateControl`` warns at the start of training.

    Raises:
        TypeError: When a rule is first used with an optimizer: if it returns something else than it must.
        ValueError: Likewise, if a shape, a dtype, a device or a number is another, if it writes into its arguments, or
            if its state takes more than 64 MB.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import NamedTuple
        >>> import torch
        >>> from lightning_calib import LearningRateRule, Measurement
        >>> class Largest(NamedTuple):
        ...     norms: torch.Tensor
        >>> @dataclass(frozen=True)
        ... class OverLargest(LearningRateRule):
        ...     def init(self, norms: torch.Tensor) -> Largest:
        ...         return Largest(torch.zeros_like(norms))
        ...     def __call__(self, measurement: Measurement, state: Largest) -> tuple[torch.Tensor, Largest]:
        ...         norms, observed, *_ = measurement
        ...         largest = torch.where(observed, torch.maximum(norms, state.norms), state.norms)
        ...         return torch.where(observed, norms / largest, 1.0), Largest(largest)
        >>> rule, state = OverLargest(), OverLargest().init(torch.zeros(1))
        >>> for norm in (4.0, 1.0):
        ...     factors, state = rule(Measurement(torch.tensor([norm]), torch.tensor([True])), state)
        >>> factors
        tensor([0.2500])
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
