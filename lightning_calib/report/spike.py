"""A spike in one line, and the error that ends a run in which nothing helps."""

from collections.abc import Sequence

PAGE = "docs/training-spikes.md"


class SpikeError(RuntimeError):
    """Spikes of the gradient norm or of the loss that neither skipping nor rewinding has ended.

    Raised by ``SpikeGuard`` at the end of its ladder; the message names the last checkpoint.

    Example:
        >>> from lightning_calib import SpikeError
        >>> issubclass(SpikeError, RuntimeError)
        True
    """


Signal = tuple[str, float, float]  # a name, its value in this step, its running level


def describe(where: str, signals: Sequence[Signal], rate: float | None, outcome: str, count: int) -> str:
    """One line: where, what, how far, what is done, and how many there were."""
    far = [
        f"the {name} is {value:.4g}, {value / level:.3g} times its level of {level:.3g}"
        for name, value, level in signals
    ]
    rate_told = "" if rate is None else f"learning rate {rate:g}"
    counted = "the first spike" if count == 1 else f"{count} spikes so far"
    return "; ".join(part for part in (f"{where}: {' and '.join(far)}", rate_told, outcome, counted) if part) + "."


def done(action: str, skips: int, max_skips: int, back: int) -> str:
    """What is done about it, by the name of the action."""
    return {
        "SKIP": f"the step is skipped, {skips} of at most {max_skips}",
        "REWIND": f"the weights of {back} steps ago are put back on trial",
        "TAKE_BACK": "older weights see the same, so the data are to blame: the newer ones are put back, and the step "
        "is dropped",
        "ACCEPT": "it stays, and is the level from here on",
        "STOP": "the run ends here",
    }[action]


def stands(step: int, undone: int) -> str:
    """That a rewind has helped."""
    return f"step {step}: the rewind helps and stands; {undone} steps are undone."


def hopeless(text: str, skips: int, rewinds: int, tried: int, checkpoint: str, precision: str) -> str:
    """The text of the error that ends the run: what was tried, where the last checkpoint is, what to look at."""
    found = (
        f"The last checkpoint is {checkpoint!r}: resume from it with `Trainer.fit(..., ckpt_path={checkpoint!r})`"
        if checkpoint
        else "There is no checkpoint to go back to: add a `ModelCheckpoint(every_n_train_steps=...)`"
    )
    more = f", and {tried} more that did not help" if tried else ""
    low = ", an overflow in half precision" if "16" in precision else ""
    return (
        f"Spikes go on after {skips} skipped steps and {rewinds} rewinds{more}. The last one: {text} {found}. "
        f"Look first at the learning rate and its schedule (a rate that is too high spikes again after each rewind)"
        f"{low}, then at the batches from here on (a file of other or broken data). If the new level is what you want, "
        f'leave "stop" out of `ladder`, and it is learnt. {PAGE} has more.'
    )
