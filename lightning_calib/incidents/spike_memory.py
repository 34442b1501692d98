"""What SpikeGuard remembers of one optimizer: what is usual, and where the ladder stands."""

from typing import Any, NamedTuple

from lightning_calib.functional.judge import Policy
from lightning_calib.functional.saved_state import check_keys, check_saved, entry
from lightning_calib.functional.segments import Segments
from lightning_calib.incidents.spike_ladder import Action, Rung, SpikeLadder
from lightning_calib.incidents.spike_signals import Spike, SpikeSignals, steady
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.saved_state import Losses


class Verdict(NamedTuple):
    """What is found of a step, and what becomes of it.

    Attributes:
        spikes: The signals that are beyond everything usual.
        action: What is done.
        undone: How many earlier steps are known to be undone, now that a rewind stands.
    """

    spikes: list[Spike]
    action: Action
    undone: int = 0


class SpikeMemory:
    """Of one optimizer; all of it is saved."""

    signals: SpikeSignals
    ladder: SpikeLadder

    def __init__(self, policy: Policy, min_ratio: float, view: GradientView) -> None:
        self.signals, self.ladder = SpikeSignals(policy, min_ratio), SpikeLadder()
        self._digest = Segments.of(view.plan, "global").digest

    def judge(
        self,
        norm: float,
        loss: float | None,
        rungs: tuple[Rung, ...],
        *,
        max_skips: int,
        may_rewind: bool,
        snapshot_every: int,
    ) -> Verdict:
        """Judge a step, and move on."""
        spikes = self.signals.judge(norm, loss)
        if not spikes:
            return Verdict(spikes, Action.TAKE, self.ladder.healthy(snapshot_every))
        values, ratio = [norm, loss or 0.0], self.signals.min_ratio
        level = steady([*self.ladder.held, values], ratio)
        harmless = loss is not None and loss <= self.signals.loss_mean  # weights that are ruined do not fit the data
        action = self.ladder.spike(
            values, rungs, max_skips, may_rewind=may_rewind and not harmless, level=level, harmless=harmless
        )
        if action is Action.ACCEPT:
            self.signals.accept(self.ladder.held)
            self.ladder.held = []
        return Verdict(spikes, action)

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"parameters": self._digest, "signals": self.signals.saved(), "ladder": self.ladder.saved()}

    def restore(self, saved: dict[str, Any], key: str, losses: Losses) -> bool:
        """Take up a saved state; False if it is of other parameters, or of another policy."""
        with losses.of("what it knew of spikes"):
            check_keys(saved, ("parameters", "signals", "ladder"), key)
            check_saved(entry(saved, "parameters", key), "", f"{key}.parameters")
            fits = saved["parameters"] == self._digest
            if fits and self.signals.restore(saved["signals"], f"{key}.signals", losses):
                self.ladder.restore(saved["ladder"], f"{key}.ladder")
                return True
            return False
        return True
