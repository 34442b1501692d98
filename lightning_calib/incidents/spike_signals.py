"""What a spike is: a gradient norm or a loss beyond what a policy expects, and beyond so many times its level."""

from copy import deepcopy
from math import exp, inf, isfinite, log, sqrt
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
_FAR = 4.0  # standard deviations of the loss itself: near zero a ratio of losses means nothing
_DECAY = 0.97  # of the running level, which is an average of logarithms: about 33 steps

_SAVED = ("levels", "seen", "loss_mean", "loss_var", "losses")


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

    policy: Policy
    min_ratio: float
    levels: list[float]
    seen: list[int]
    loss_mean: float
    loss_var: float
    losses: int

    def __init__(self, policy: Policy, min_ratio: float) -> None:
        self.policy, self.min_ratio = policy, min_ratio
        signals = nn.ParameterDict({name: nn.Parameter(torch.zeros((), dtype=torch.float64)) for name in NAMES})
        self.segments: Segments = Segments.of(Plan.of(signals), "parameter")
        self.part: Part = Part(policy, self.segments)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.levels, self.seen = [0.0] * len(NAMES), [0] * len(NAMES)
        self.loss_mean, self.loss_var, self.losses = 0.0, 0.0, 0  # of losses of any sign

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
        if loss is not None and loss <= self.loss_mean + _FAR * sqrt(self.loss_var):
            found = [one for one in found if one.name != "loss"]
        if not found:
            self.part.state = state
            self._add(values, loss)
        return found

    def accept(self, values: list[list[float]]) -> None:
        """A level that stays: learn it afresh from the steps that it was seen on."""
        self.part.state = fresh_state(self.policy, self.segments)
        self._start_afresh()
        for pair in values:
            norms = torch.tensor(pair, dtype=torch.float64)
            _, self.part.state = self.policy(Observation(norms, norms > 0), self.part.state)
            self._add(pair, pair[1])

    def _add(self, values: list[float], loss: float | None) -> None:
        if loss is not None:
            share = max(1 - _DECAY, 1 / (self.losses + 1))
            residual = loss - self.loss_mean
            self.loss_mean, self.losses = self.loss_mean + share * residual, self.losses + 1
            self.loss_var = (1 - share) * (self.loss_var + share * residual * residual)
        for i, value in enumerate(values):
            if value > 0:
                share = max(1 - _DECAY, 1 / (self.seen[i] + 1))
                self.levels[i] += share * (log(value) - self.levels[i])
                self.seen[i] += 1

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"policy": self.part.saved(), **{name: self._plain(name) for name in _SAVED}}

    def _plain(self, name: str) -> Any:
        value = getattr(self, name)
        return list(value) if isinstance(value, list) else value

    def restore(self, saved: Any, key: str, losses: Losses) -> bool:
        """Take up a saved state; False if it is of another policy."""
        for name in _SAVED:
            check_saved(entry(saved, name, key), self._plain(name), f"{key}.{name}")
        if not self.part.restore(entry(saved, "policy", key), f"{key}.policy", losses):
            return False
        vars(self).update(deepcopy({name: saved[name] for name in _SAVED}))
        return True


def steady(values: list[list[float]], ratio: float) -> bool:
    """Whether spikes are a level: of each signal all within ``ratio`` of their median, either way."""
    for column in zip(*values, strict=True):
        middle = sorted(column)[len(column) // 2]
        if not all(isfinite(value) and middle / ratio <= value <= middle * ratio for value in column):
            return False
    return bool(values)
