"""An incident in one line, its causes ranked by the evidence, and the error that ends a hopeless run."""

from collections.abc import Sequence
from math import isnan
from typing import Any, NamedTuple

PAGE = "docs/my-loss-is-nan.md"
_FAR = 0.1  # a step that moves the weights by so much of their norm: a hundred times what is usual
_HIGH = 10.0  # times the usual norm: what ends in Inf has grown before


class NonFiniteGradientError(RuntimeError):
    """Too many gradients were not finite; the message holds the last incidents and what they point to.

    Raised by ``NonFiniteGuard``: at once with ``action="raise"``, else after ``max_consecutive`` steps in a row, or
    ``max_total`` in all.

    Args:
        text: The message.
        steps: As below.

    Attributes:
        steps: First and last step of every stretch of steps with incidents, at most the last 1,000 stretches.

    Example:
        >>> from lightning_calib import NonFiniteGradientError
        >>> NonFiniteGradientError("too many", [(7, 9), (12, 12)]).steps
        ((7, 9), (12, 12))
    """

    def __init__(self, text: str, steps: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(text)
        self.steps: tuple[tuple[int, int], ...] = tuple(steps)


class Incident(NamedTuple):
    """What was found on a step whose gradient is not finite.

    Attributes:
        bad: How many tensors are affected.
        tensors: Of how many.
        deepest: The name of the last of them in module order.
        counts: Its counts of NaN and Inf.
        around: The nearest finite tensors before the first and after the last bad one, in module order; empty: none.
        infinite: Whether any element is Inf.
        lost: Whether a loss was not finite, on whichever rank.
        rate: The learning rate of the first group; None if it has none.
        origin: The micro-batches or ranks whose loss was not finite, as a sentence's part; empty if there is no choice.
        data: What of the batch is not finite; empty if nothing is.
        looked: Whether all of the data could be looked into.
        precision: As Lightning writes it.
        where: Step, epoch and batch.
        loss: Unscaled and undivided: of the last micro-batch, or of the rank whose loss was bad; None if not seen.
        scale: The GradScaler's scale, if there is one.
        ruined: Whether weights are not finite already.
        broken: What else is not finite already: weights, BatchNorm statistics, other buffers.
        norm: The last finite norm; None without one.
        times: By what factor it exceeds the usual one; None where that is not known.
        moved: How far a step moved the weights, as a share of their norm; None where it was not measured.
        since: How many steps ago that was.
        traced: What a re-run has shown; empty without one.
        named: Whether that names the operation.
    """

    bad: int
    tensors: int
    deepest: str
    counts: str
    around: tuple[str, str]
    infinite: bool
    lost: bool
    rate: float | None
    origin: str
    data: str
    looked: bool
    precision: str
    where: str = ""
    loss: float | None = None
    scale: float | None = None
    ruined: bool = False
    broken: str = ""
    norm: float | None = None
    times: float | None = None
    moved: float | None = None
    since: int = 0
    traced: str = ""
    named: bool = False


def describe(incident: Incident, outcome: str) -> str:
    """One line: what, where, how bad, what came before, what else is broken, and what is done about it."""
    loss = "not seen" if incident.loss is None else f"{incident.loss:.6g}"
    rate = "" if incident.rate is None else f", learning rate {incident.rate:g}"
    scale = "" if incident.scale is None else f", loss scale {incident.scale:g}"
    parts = [
        f"{incident.where}: the gradient is not finite in {incident.bad} of {incident.tensors} tensors, "
        f"deepest listed {incident.deepest} {incident.counts}",
        _around(*incident.around),
        f"loss {loss}{rate}{scale}",
        _before(incident),
        incident.origin,
        incident.data,
        incident.broken or "weights and buffers are finite",
        incident.traced,
        outcome,
    ]
    return "; ".join(part for part in parts if part) + "."


def _around(before: str, after: str) -> str:
    named = [f"{before} before them"] * bool(before) + [f"{after} after them"] * bool(after)
    return f"finite in module order: {' and '.join(named)}" if named else ""


def _before(incident: Incident) -> str:
    if incident.norm is None:
        return "no finite norm is known from before"
    times = "" if incident.times is None else f", {incident.times:.3g} times its usual"
    moved = ""
    if incident.moved is not None:
        which = "the last step" if incident.since == 1 else f"a step {incident.since} steps ago, the last one measured,"
        moved = f", {which} moved the weights by {incident.moved:.2g} of their norm"
    return f"the last finite norm was {incident.norm:.3g}{times}{moved}"


def causes(incident: Incident) -> list[str]:
    """What the evidence points to, what is best supported first; never empty."""
    high = incident.times is not None and incident.times >= _HIGH
    far = incident.moved is not None and incident.moved >= _FAR
    fp16 = incident.precision in ("16-mixed", "16-true")
    found = [
        (incident.ruined, "an earlier step, which ruined the weights: resume from a checkpoint from before it"),
        (bool(incident.data), f"the data ({incident.data}): repair or drop these samples"),
        (incident.named and not (high or far), "the operation that the re-run names"),
        (high or far, f"the learning rate, or training that explodes ({_grown(incident)}): lower the rate, or clip"),
        (incident.lost and fp16, "a value above 65504 in the forward pass, which fp16 cannot hold: use bf16-mixed"),
        (not incident.lost and incident.loss is not None, _backward(incident)),
        (incident.lost, _forward(incident, high=high or far)),
    ]
    return [text for holds, text in found if holds] or ["the backward pass: its loss was not seen"]


def _grown(incident: Incident) -> str:
    high = incident.times is not None and incident.times >= _HIGH
    norm = f"a norm of {incident.norm:.3g}, {incident.times:.3g} times its usual" if high else ""
    far = incident.moved is not None and incident.moved >= _FAR
    moved = f"a step that moved the weights by {incident.moved:.2g} of their norm" if far else ""
    return " and ".join(part for part in (norm, moved) if part)


def _backward(incident: Incident) -> str:
    kind = (
        "a division, a root, a norm or a logarithm at 0" if not incident.infinite else "a slope that is infinite at 0"
    )
    if incident.bad == incident.tensors:
        place = "of the loss or of the last layer"
    elif incident.bad == 1:
        place = f"of the layer of {incident.deepest}"
    else:
        place = f"at or just after {incident.deepest}"
    return f"arithmetic in the backward pass {place}, since the loss was finite: {kind}"


def _forward(incident: Incident, *, high: bool) -> str:
    calm = ""
    if not high and not incident.data and incident.times is not None:
        calm = f", since the norm was usual before it{' and the data are finite' if incident.looked else ''}"
    return f"arithmetic in the forward pass on this batch{calm}: a division or a logarithm at 0, an overflow"


def ranked(incident: Incident) -> str:
    """The causes in a sentence or two."""
    first, *others = causes(incident)
    return f"Most likely: {first}." + (f" Else: {others[0]}." if others else "")


def outcome(action: str, micros: int, log: Any, *, ends: bool, seen: bool) -> str:
    """What is done about it, and how many there were.

    Args:
        action: The guard's.
        micros: How many micro-batches the step was made of.
        log: Has the counts ``row`` and ``total``.
        ends: Whether the run ends here.
        seen: Whether a GradScaler skips the step.
    """
    window = f" (a window of {micros} micro-batches)" if micros > 1 else ""
    if ends:
        done = "the run ends here"
    elif action == "skip":
        done = f"the step{window} is skipped"
    else:
        done = f"the GradScaler skips the step{window}" if seen else "the step goes on as it is"
    return f"{done}, {log.row} in a row, {log.total} in all"


def was_dropped(text: str) -> bool:
    """Whether a sentence with what `outcome` says tells of a step that was not taken."""
    return " is skipped, " in text or "the GradScaler skips the step" in text


def lost_loss(where: str, loss: float, rank: int) -> str:
    """A loss that is not finite while the gradient is: nothing needs to be dropped."""
    here = f" on rank {rank}" if rank else ""
    large = "" if isnan(loss) else "it is too large for its type, as in a training that explodes, or "
    return (
        f"{where}: the loss is {loss:g}{here}, and the gradient is finite: {large}what is not finite in it has no "
        "gradient (a detached term, a constant, a masked value). The step is taken, because its update is finite, too. "
        "Mend that term: EarlyStopping, ReduceLROnPlateau, a learning-rate rule or SpikeGuard cannot use such a loss. "
        f"This is told once in a fit. See {PAGE}."
    )


def told(incident: Incident, done: str, *, first: bool) -> tuple[str, str]:
    """The facts of an incident, and the same with what they point to; the first one has a link to the page."""
    facts = describe(incident, done)
    return facts, f"{facts} {ranked(incident)}" + (f" See {PAGE}." if first else "")


def hopeless(
    limit: str, incidents: Sequence[str], incident: Incident, steps: Sequence[Sequence[int]], total: int
) -> NonFiniteGradientError:
    """The error that gives up.

    Args:
        limit: Why.
        incidents: The last sentences.
        incident: The last of them.
        steps: First and last step of every stretch of steps with incidents.
        total: How many incidents there were.
    """
    stretches = [f"{first}" if first == last else f"{first} to {last}" for first, last in steps]
    told = "\n".join(f"  - {text}" for text in incidents)
    text = f"{limit} Bad steps ({total:,} in all): {', '.join(stretches)}. The last incidents:\n{told}\n"
    return NonFiniteGradientError(f"{text}{ranked(incident)} See {PAGE}.", [(one[0], one[-1]) for one in steps])
