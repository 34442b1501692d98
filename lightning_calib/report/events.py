"""Events: what happened to a run at which step, in plain words, listed seldom enough to be read."""

from typing import NamedTuple

_OFTEN = 20  # events of a kind that are listed freely; then the pause between two doubles with each 20 more
_PAUSE = 5  # rows


class Event(NamedTuple):
    """One line of the list of events.

    Attributes:
        step: When it happened, as exactly as is known.
        kind: "nonfinite", "skip", "spike", "rewind", "dead", "rate" or "summary".
        text: What happened, with numbers, and what to do.
        layer: The parameter, or the module, that it is about; None for the whole gradient.
        value: The number that it is about; None without one, and of what a guard has found at its very step.
    """

    step: int
    kind: str
    text: str
    layer: str | None = None
    value: float | None = None


class Pause:
    """How often events of one kind are listed: after one, some rows pass, unless the next is twice as bad."""

    _first = _PAUSE  # rows
    told: int
    hidden: int
    row: int
    worst: float

    def __init__(self) -> None:
        self.told, self.hidden = 0, 0
        self.row = -(10**9)  # of the last one that was listed
        self.worst = 0.0  # of the kind's own measure of how bad it is

    def admits(self, row: int, badness: float = 0.0) -> bool:
        """Whether to tell what happened at this row; if not, it is counted."""
        doubled = min(self.told // _OFTEN, 60)
        pause = (self._first or min(doubled, 1)) * 2**doubled
        if row - self.row < pause and badness <= 2 * self.worst:
            self.hidden += 1
            return False
        self.told, self.row, self.worst = self.told + 1, row, badness
        return True

    def rest(self) -> str:
        """How many were kept quiet since the last one that was listed; they are forgotten."""
        count, self.hidden = self.hidden, 0
        return f" {count:,} more of the kind since the last one listed." if count else ""


class NoPause(Pause):
    """Of a kind of which each event belongs to the one before: none passes at first, then the same way."""

    _first = 0


def nonfinite(step: int, since: int, count: int, bad: int, tensors: int, layer: str | None) -> Event:
    """Gradients that were not finite in rows of which no step is known exactly."""
    where = f"{bad:,} of {tensors:,} tensors, deepest listed {layer}" if layer else "a tensor that is not known"
    text = (
        f"{_steps(count)} {_when(since, step)} had a gradient that was inf or nan, in {where}. "
        'NonFiniteGuard("skip") drops such steps and names the batch; look for a learning rate that is too high, a '
        "division or a logarithm near zero, or bad data."
    )
    return Event(step, "nonfinite", text, layer, float(count))


def skip(step: int, since: int, count: int, scale: float | None) -> Event:
    """Steps that the optimizer did not take."""
    text = f"{_steps(count)} {_when(since, step)} {'was' if count == 1 else 'were'} not taken. "
    if scale is None:
        text += "Weights and optimizer state are as before; many of them mean that something is wrong with the data."
    elif scale < 1:
        text += f"The loss scale has fallen to {scale:g}: the loss itself overflows. Use precision='bf16-mixed'."
    else:
        text += f"The loss scale is {scale:g}; a handful at the start is normal while the GradScaler looks for it."
    return Event(step, "skip", text, None, float(count))


def spike(step: int, since: int, norm: float, times: float, layer: str | None, rise: float) -> Event:
    """A norm far above the usual one."""
    named = f" {layer} rose most, to {rise:.3g} times its usual norm." if layer else ""
    text = (
        f"The gradient norm reached {norm:.3g} {_when(since, step)}, {times:.3g} times the usual.{named} "
        "One such batch is noise, and ZClip() or AutoClip() take it; if the loss does not come back, lower the "
        "learning rate."
    )
    return Event(step, "spike", text, layer, norm)


def dead(step: int, rows: int, layers: list[str], *, never: bool) -> Event:
    """Tensors whose gradient has been missing or exactly zero for long."""
    more = f" and {len(layers) - 1:,} more ({', '.join(layers[1:4])}{', ...' if len(layers) > 4 else ''})"
    named = layers[0] + (more if len(layers) > 1 else "")
    if never:
        text = f"{named} never got a gradient, in {rows:,} logged rows: the loss does not depend on it. "
        text += "Freeze it, leave it out of the optimizer, or look why `forward` does not use it."
    else:
        text = f"The gradient of {named} has been missing or exactly zero in the last {rows:,} logged rows. "
        text += "Look for dead activations (ReLU), a mask that hides it, or a `detach`."
    return Event(step, "dead", text, layers[0], float(len(layers)))


def rate(step: int, since: int, old: float, new: float, *, effective: bool) -> Event:
    """A learning rate that jumped."""
    way = "fell" if new < old else "rose"
    times = max(old, new) / max(min(old, new), 1e-300)
    what = "effective learning rate (times LearningRateControl's factor)" if effective else "learning rate"
    by = f", {times:.3g} times" if times < 1e6 else ""
    text = f"The {what} {way} from {old:.3g} to {new:.3g}{by}, {_when(since, step)}."
    text += "" if effective else " If no scheduler was meant to do that, look at its interval and its milestones."
    return Event(step, "rate", text, None, new)


def _when(since: int, step: int) -> str:
    """The row before was ``since``; what happened lies behind it."""
    return f"at step {step}" if step - since <= 1 else f"between steps {since} and {step}"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"
