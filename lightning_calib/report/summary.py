"""What a run's gradients were like, in at most three plain sentences, and what to change."""

from typing import Literal, NamedTuple

_ALWAYS = 0.99  # a threshold that fires on this share of the steps clips practically every one
_WHOLE = 0.98  # a mean share above this is not worth a sentence


class Clipper(NamedTuple):
    """Somebody who reduces gradients.

    Attributes:
        who: As the user calls it.
        fraction: The share of the steps with a gradient, in [0, 1], those that were skipped among them; None where it
            cannot be seen.
        how: "fixed" clips by one norm that never changes, "adaptive" clips otherwise, "normalise" also enlarges, "dry"
            only tells what it would do.
        seen: The number of steps that the share is of, where it could not be seen on all; None where it is of all.
    """

    who: str
    fraction: float | None
    how: Literal["fixed", "adaptive", "normalise", "dry"]
    seen: int | None = None


class Facts(NamedTuple):
    """One optimizer's run.

    Attributes:
        optimizer: The optimizer's class name.
        steps: Optimizer steps with a gradient, those that were skipped among them.
        usable: Those of them whose norm was finite and above zero; beyond 4,096 steps an estimate.
        lowest: The smallest 2-norm, before anything; as all norms here.
        median: The 50th percentile.
        high: The 95th percentile.
        highest: The largest.
        clippers: Who reduced the gradient how often.
        left: The mean share of the norm that was left, above 0; None where it is not known.
        known: The number of steps of that mean.
        guarded: Whether somebody looks for gradients that are not finite.
        earlier: Whether the Trainer had taken steps before of which nothing is known here: those of another fit.
        nonfinite: Steps whose gradient was inf or nan.
        skipped: Steps that were not taken.
    """

    optimizer: str
    steps: int
    usable: int
    lowest: float
    median: float
    high: float
    highest: float
    clippers: tuple[Clipper, ...]
    left: float | None
    nonfinite: int
    skipped: int
    known: int = 0
    guarded: bool = False
    earlier: bool = False


def summarise(runs: list[Facts]) -> str:
    """Three sentences: the norms, the clipping and what it amounts to, the steps that went wrong."""
    seen = [facts for facts in runs if facts.steps]
    if not seen:
        return "No optimizer step has been seen yet."
    several = len(runs) > 1
    norms = "; ".join(_named(i, facts, several) + _norms(facts) for i, facts in enumerate(runs) if facts.steps)
    clips = "; ".join(_named(i, facts, several) + _clipping(facts) for i, facts in enumerate(runs) if facts.steps)
    return f"{_sentence(norms)} {_sentence(clips)} {_trouble(runs)}"


def _named(index: int, facts: Facts, several: bool) -> str:
    return f"optimizer {index} ({facts.optimizer}): " if several else ""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _norms(facts: Facts) -> str:
    steps = _times(facts.steps, "optimizer step")
    span = f"in the {steps} of this fit" if facts.earlier else f"in {steps}"
    if facts.highest == 0:
        return f"{span} no gradient was finite and above zero"
    if facts.lowest == facts.highest:
        one = " on the one step" if facts.usable == 1 else ""
        where = "" if facts.usable == facts.steps else f"{one} where it was finite and above zero"
        return f"{span} the gradient norm was {facts.highest:.3g}{where}"
    ran = f"{span} the gradient norm ran from {facts.lowest:.3g} to {facts.highest:.3g}"
    return f"{ran} (half of them up to {facts.median:.3g}, 95 % up to {facts.high:.3g})"


def _clipping(facts: Facts) -> str:
    acting = [_one(clipper) for clipper in facts.clippers if clipper.how != "dry"]
    dry = [_one(clipper) for clipper in facts.clippers if clipper.how == "dry"]
    done = " and ".join(acting) + _meaning(facts) if acting else "nothing clipped it"
    return ", but ".join([done, " and ".join(dry)]) if dry else done


def _one(clipper: Clipper) -> str:
    if clipper.fraction is None:
        return f"whether {clipper.who} clips cannot be seen"
    steps = "steps" if clipper.seen is None else f"{_times(clipper.seen, 'step')} that {_was(clipper.seen)} seen"
    share = f"{100 * clipper.fraction:.3g} % of the {steps}"
    if clipper.how == "dry":
        return f"{clipper.who}, a dry run, would have reduced {share}"
    if clipper.how == "normalise":
        return f"{clipper.who} made it smaller on {share}, and larger or left it alone on the others"
    if clipper.fraction > 0:
        return f"{clipper.who} reduced {share}"
    if clipper.seen is not None:
        return f"{clipper.who} never fired on the {steps}"
    return f"{clipper.who} never fired" + (" and has changed nothing so far" if clipper.how == "fixed" else "")


def _always_fires(clipper: Clipper, facts: Facts) -> bool:
    """Whether it fires on practically every step on which it can: none does where the norm is zero or not finite."""
    able = 1.0 if clipper.seen is not None else facts.usable / facts.steps
    return bool(clipper.fraction) and (clipper.fraction or 0) >= _ALWAYS * able


def _meaning(facts: Facts) -> str:
    """What clipping amounts to: little for Adam where it always fires, a lower learning rate for SGD."""
    kind = facts.optimizer.lower()
    if "adam" in kind and any(one.how == "fixed" and _always_fires(one, facts) for one in facts.clippers):
        divides = f", and {facts.optimizer} divides the scale of the gradient out again"
        floor = f"unless it is so low that the eps of {facts.optimizer} drowns the gradient"
        return f"{divides}, so that the value of a threshold that always fires hardly matters, {floor}"
    all_seen = facts.known >= _ALWAYS * facts.steps
    span = "on average" if all_seen else f"on the {_times(facts.known, 'step')} that were seen"
    if "sgd" in kind and facts.left is not None and 0 < facts.left < _WHOLE:
        cut = f"{facts.left:.3g} of the configured rate ({1 / facts.left:.3g} times lower)"
        return f", which with {facts.optimizer} is a cut of the learning rate to {cut} {span}"
    if "sgd" in kind and facts.left is not None and facts.left > 1 / _WHOLE:
        return f", which with {facts.optimizer} is a learning rate {facts.left:.3g} times the configured one {span}"
    return ""


def _trouble(runs: list[Facts]) -> str:
    nonfinite, skipped = sum(facts.nonfinite for facts in runs), sum(facts.skipped for facts in runs)
    if not nonfinite and not skipped:
        return "No gradient was inf or nan, and no step was skipped."
    bad = f"{_times(nonfinite, 'step')} had a gradient that was" if nonfinite else "No gradient was"
    hint = ": NonFiniteGuard names the tensor" if nonfinite and not any(facts.guarded for facts in runs) else ""
    return f"{bad} inf or nan, and {_times(skipped, 'step')} {_was(skipped)} skipped{hint}."


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
