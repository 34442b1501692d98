"""What is done about spikes: skip, rewind on trial, stop; and when a trouble is over."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args

from lightning_calib.functional.checks import message
from lightning_calib.functional.saved_state import ListOf, check_saved

Rung = Literal["skip", "rewind", "stop"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
PATIENCE = 4  # spikes in a row, all skipped, before it is tried whether older weights mend them
CALM = 10  # steps without a spike that end a trouble
SETTLED = 5  # steps by which a snapshot is older than a trouble: damage shows late
_FORGIVEN = 10  # as many times the distance of snapshots without a spike give the rewinds back
_MOST = 64  # spikes kept, to see whether they are a level


def check_ladder(ladder: object) -> tuple[Rung, ...]:
    """Accept a sequence of rungs in their order; raises TypeError or ValueError otherwise."""
    remedy = 'Use ("skip", "rewind", "stop"), or leave some out.'
    rule = "some of 'skip', 'rewind', 'stop', in this order"
    if isinstance(ladder, str | bytes) or not isinstance(ladder, Sequence):
        raise TypeError(message("ladder", rule, ladder, remedy))
    if not ladder or tuple(ladder) != tuple(one for one in RUNGS if one in ladder):
        raise ValueError(message("ladder", rule, ladder, remedy))
    return tuple(ladder)


class Action(Enum):
    """What becomes of a step."""

    TAKE = "it is taken"
    SKIP = "it is skipped"
    REWIND = "an older state is put back, on trial, and the step is dropped"
    TAKE_BACK = "the older state did not help: the newer one is put back, and the step is dropped"
    ACCEPT = "the level stays, and is learnt; the step is taken"
    STOP = "the run ends"


@dataclass
class SpikeLadder:
    """Where one optimizer stands; all of it is the host's, the same on every process, and saved.

    Attributes:
        step: Steps judged.
        taken: Steps that were taken and not undone.
        spikes: Steps with a spike since the start.
        calm: Steps without one since the last.
        trouble: Whether there was one in the last steps.
        began: The first step of the trouble.
        row: Spikes in a row.
        skips: Steps skipped in the trouble, since its last rewind.
        trials: Rewinds tried in the trouble, since the last that helped.
        rewinds: Rewinds that helped.
        on_trial: Whether the next step decides about a rewind.
        undone: How many steps the rewind at hand has undone.
        slow: Steps that still have the lower learning rate.
        held: Norm and loss of the spikes of the trouble.
    """

    step: int = 0
    taken: int = 0
    spikes: int = 0
    calm: int = 0
    trouble: bool = False
    began: int = 0
    row: int = 0
    skips: int = 0
    trials: int = 0
    rewinds: int = 0
    on_trial: bool = False
    undone: int = 0
    slow: int = 0
    held: list[list[float]] = field(default_factory=list)

    def healthy(self, snapshot_every: int) -> int:
        """A step without a spike is taken; returns how many earlier ones are known to be undone by it."""
        undone = self.undone if self.on_trial else 0
        self.step, self.taken, self.calm, self.row = self.step + 1, self.taken + 1 - undone, self.calm + 1, 0
        if self.on_trial:
            self.on_trial, self.undone, self.rewinds = False, 0, self.rewinds + 1
            self.skips, self.trials = 0, 0
        if self.calm >= CALM:
            self.trouble, self.skips, self.trials, self.held = False, 0, 0, []
        if self.calm >= _FORGIVEN * snapshot_every:
            self.rewinds = 0
        return undone

    def spike(
        self,
        values: list[float],
        ladder: tuple[Rung, ...],
        max_skips: int,
        *,
        may_rewind: bool,
        level: bool,
        harmless: bool,
    ) -> Action:
        """What to do about a spike.

        Args:
            values: Norm and loss.
            ladder: The rungs.
            max_skips: The number of steps that may be skipped.
            may_rewind: Whether there is a snapshot, and a rewind left.
            level: Whether the spikes so far are all alike.
            harmless: Whether the loss is not above its mean: then the weights are not to blame.
        """
        if not self.trouble:
            self.trouble, self.began = True, self.step
        self.step, self.calm, self.row, self.spikes = self.step + 1, 0, self.row + 1, self.spikes + 1
        self.held = [*self.held[1 - _MOST :], values]
        action = self._decide(ladder, max_skips, may_rewind=may_rewind, accept=harmless or (level and self.trials > 0))
        self.skips += action is Action.SKIP
        if action is Action.ACCEPT:
            self.taken += 1
            self.trouble, self.row, self.skips, self.trials = False, 0, 0, 0
        return action

    def _decide(self, ladder: tuple[Rung, ...], max_skips: int, *, may_rewind: bool, accept: bool) -> Action:
        if self.on_trial:
            self.on_trial, self.undone, self.slow = False, 0, 0
            return Action.TAKE_BACK
        skipping = "skip" in ladder and self.skips < max_skips
        # Once early, as soon as bad data alone are unlikely; and once more before the ladder ends.
        if may_rewind and ((self.trials == 0 and self.row > PATIENCE) or (self.trials < 2 and not skipping)):
            self.trials, self.on_trial = self.trials + 1, True
            return Action.REWIND
        if skipping:
            return Action.SKIP
        # Weights from before the trouble did not help: the data are to blame, and no step of ours can change them.
        if "stop" in ladder and not accept:
            return Action.STOP
        return Action.ACCEPT

    @property
    def loud(self) -> bool:
        """Whether the spike at hand is told: the first, 2nd, 4th, 8th, ..."""
        return self.spikes & (self.spikes - 1) == 0

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**vars(self), "held": [list(pair) for pair in self.held]}

    def restore(self, saved: Any, key: str) -> None:
        """Take up saved counts."""
        check_saved(saved, {**vars(self), "held": ListOf([0.0, 0.0], _MOST)}, key)
        vars(self).update(saved)
