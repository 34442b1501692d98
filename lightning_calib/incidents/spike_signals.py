"""What a spike is: a gradient norm or a loss beyond what a policy expects, and beyond so many times its level."""

from math import exp, inf, isfinite, log
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_calib.functional.judge import Observation, Policy, fresh_state
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import check_saved, entry
from lightning_calib.functional.segments import Segments
from lightning_calib.steps.policy_parts import Part
from lightning_calib.steps.saved_state import Losses

NAMES = ("gradient norm", "loss")
_DECAY = 0.97  # of the running level, which is an average of logarithms: about 33 steps


class Spike(NamedTuple):
    """One signal of a step that is beyond everything usual.

    Attributes:
        name: ``"gradient norm"`` or ``"loss"``.
        value: In this step.
        level: The running level.
    """

    name: str
    value: float
    level: float


class SpikeSignals:
    """The norm and the loss as two segments of one policy, on the host in float64.

    A step that is a spike enters neither the policy's state nor the levels, until it is accepted.
    """

    def __init__(self, policy: Policy, min_ratio: float) -> None:
        self.policy, self.min_ratio = policy, min_ratio
        signals = nn.ParameterDict({name: nn.Parameter(torch.zeros((), dtype=torch.float64)) for name in NAMES})
        self.segments = Segments.of(Plan.of(signals), "parameter")
        self.part = Part(policy, self.segments)
        self.levels, self.seen = [0.0] * len(NAMES), [0] * len(NAMES)

    def judge(self, norm: float, loss: float | None) -> list[Spike]:
        """Which of the two is a spike; the state moves on where none is. What is not above zero is not judged."""
        values = [value if value is not None and 0 < value < inf else 0.0 for value in (norm, loss)]
        norms = torch.tensor(values, dtype=torch.float64)
        targets, state = self.policy(Observation(norms, norms > 0), self.part.state)
        found = [
            Spike(name, value, exp(level))
            for name, value, target, level, seen in zip(
                NAMES, values, targets.tolist(), self.levels, self.seen, strict=True
            )
            if seen and value > target and value > self.min_ratio * exp(level)
        ]
        if not found:
            self.part.state = state
            self._add(values)
        return found

    def accept(self, values: list[list[float]]) -> None:
        """A level that stays: learn it afresh from the steps that it was seen on."""
        self.part.state = fresh_state(self.policy, self.segments)
        self.levels, self.seen = [0.0] * len(NAMES), [0] * len(NAMES)
        for pair in values:
            norms = torch.tensor(pair, dtype=torch.float64)
            _, self.part.state = self.policy(Observation(norms, norms > 0), self.part.state)
            self._add(pair)

    def _add(self, values: list[float]) -> None:
        for i, value in enumerate(values):
            if value > 0:
                share = max(1 - _DECAY, 1 / (self.seen[i] + 1))
                self.levels[i] += share * (log(value) - self.levels[i])
                self.seen[i] += 1

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"policy": self.part.saved(), "levels": list(self.levels), "seen": list(self.seen)}

    def restore(self, saved: Any, key: str, losses: Losses) -> bool:
        """Take up a saved state; False if it is of another policy."""
        levels, seen = entry(saved, "levels", key), entry(saved, "seen", key)
        check_saved(levels, self.levels, f"{key}.levels")
        check_saved(seen, self.seen, f"{key}.seen")
        if not self.part.restore(entry(saved, "policy", key), f"{key}.policy", losses):
            return False
        self.levels, self.seen = list(levels), list(seen)
        return True


def steady(values: list[list[float]], ratio: float) -> bool:
    """Whether spikes are a level: of each signal all within ``ratio`` of their median, either way."""
    for column in zip(*values, strict=True):
        middle = sorted(column)[len(column) // 2]
        if not all(isfinite(value) and middle / ratio <= value <= middle * ratio for value in column):
            return False
    return bool(values)
