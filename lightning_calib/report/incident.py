"""An incident in one line, and the error that ends a hopeless run."""

from collections.abc import Sequence
from typing import NamedTuple

_CAUSES = {
    "32-true": "a learning rate that is too high, a division or a logarithm near zero, or bad input data",
    "64-true": "a division or a logarithm near zero, or bad input data",
    "bf16-mixed": "a learning rate that is too high, a division or a logarithm near zero, or bad input data; bf16 has "
    "the range of float32, so that overflow is rare",
    "bf16-true": "a learning rate that is too high, an epsilon below bf16's precision (an Adam eps of 1e-8 is fine, a "
    "variance + 1e-8 is not), or bad input data",
    "16-mixed": "a loss or an activation above 65504, a mask of -1e9 (use -1e4), or bad input data; bf16-mixed "
    "has no such limit",
    "16-true": "an activation or a gradient above 65504, an Adam eps of 1e-8 (zero in fp16), or bad input data; "
    "bf16-true has no such limit",
}


class NonFiniteGradientError(RuntimeError):
    """Too many gradients were not finite; the message holds the last incidents and the usual causes."""


class Incident(NamedTuple):
    """What was found on a step whose gradient is not finite.

    Attributes:
        where: Step, epoch and batch.
        bad: How many tensors are affected.
        tensors: Of how many.
        deepest: The last of them in module order, with its counts.
        loss: The loss of the last micro-batch, unscaled and undivided; None if it was not seen.
        rate: The learning rate of the first group; None if it has none.
        scale: The GradScaler's scale, if there is one.
        broken: What else is not finite already: weights, BatchNorm statistics, other buffers.
        origin: The micro-batches or ranks whose loss was not finite, as a sentence's part; empty if there is no choice.
    """

    where: str
    bad: int
    tensors: int
    deepest: str
    loss: float | None
    rate: float | None
    scale: float | None
    broken: str
    origin: str


def describe(incident: Incident, outcome: str) -> str:
    """One line: what, where, how bad, what else is broken, and what is done about it."""
    loss = "not seen" if incident.loss is None else f"{incident.loss:.6g}"
    rate = "" if incident.rate is None else f", learning rate {incident.rate:g}"
    scale = "" if incident.scale is None else f", loss scale {incident.scale:g}"
    parts = [
        f"{incident.where}: the gradient is not finite in {incident.bad} of {incident.tensors} tensors, "
        f"deepest listed {incident.deepest}",
        f"loss {loss}{rate}{scale}",
        incident.origin,
        incident.broken or "weights and buffers are finite",
        outcome,
    ]
    return "; ".join(part for part in parts if part) + "."


def hopeless(limit: str, incidents: Sequence[str], precision: str) -> str:
    """The text of the error that gives up."""
    told = "\n".join(f"  - {text}" for text in incidents)
    causes = _CAUSES.get(precision, _CAUSES["32-true"])
    return f"{limit} The last incidents:\n{told}\nUsual causes with precision {precision}: {causes}."
