"""One policy over one set of an optimizer's tensors, and the parts that a callback has for one optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_calib.functional.contract import check_policy
from lightning_calib.functional.judge import Observation, Policy, SegmentReport, State, fresh_state, judge, observe
from lightning_calib.functional.norms import Reading
from lightning_calib.functional.saved_state import check_kind, entry
from lightning_calib.functional.segment_names import segment_names
from lightning_calib.functional.segments import Segments
from lightning_calib.steps.saved_state import Losses, pack, unpack


class Part:
    """A policy, its segments, its state, and what it wanted last."""

    policy: Policy
    segments: Segments

    def __init__(self, policy: Policy, segments: Segments) -> None:
        self.policy, self.segments = policy, segments
        self.names: Sequence[str] = segment_names(segments)
        check_policy(policy, segments)
        self.state: State = fresh_state(policy, segments)
        self.last: tuple[Tensor, Tensor] | None = None  # which segments were observed, and the targets

    def observe(self, reading: Reading) -> Observation:
        """What the policy sees of a reading."""
        return observe(self.segments, reading, weights=self.policy.needs_weights)

    def judge(self, observation: Observation, *, clip: bool) -> SegmentReport:
        """Judge this step's norms; the state moves on."""
        report, self.state = judge(self.policy, observation, self.state, self.names, clip=clip)
        self.last = report.observed, report.targets
        return report

    def ask(self, observation: Observation) -> Tensor:
        """The targets alone, shape (K,), where nobody rescales by them; the state moves on."""
        targets, self.state = self.policy(observation, self.state)
        self.last = observation.observed, targets
        return targets

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return pack(self.policy.kind, self.segments, self.state)

    def restore(self, saved: Any, key: str, losses: Losses) -> bool:
        """Take up a saved state; False if it is of other segments or of another kind."""
        with losses.of(f"what {self.policy.kind} has learnt"):
            found = unpack(saved, self.policy.kind, self.segments, self.state, key)
            self.state = self.state if found is None else found
            return found is not None
        return True


class PartsMemory:
    """The parts of a rescaling callback for one optimizer."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"parts": [part.saved() for part in self.parts]}

    def restore(self, saved: dict[str, Any], key: str, losses: Losses) -> bool:
        """Take up what fits; False if some part is of other parameters or of another policy."""
        with losses.of("what its policies have learnt"):
            parts = entry(saved, "parts", key)
            check_kind(parts, list, f"{key}.parts")
            fits = [
                part.restore(old, f"{key}.parts.{i}", losses)
                for i, (part, old) in enumerate(zip(self.parts, parts, strict=False))
            ]
            return len(parts) == len(self.parts) and all(fits)
        return True

    def threshold(self) -> Tensor | None:
        """The median target over the segments judged last; None if none was."""
        asked = [part.last for part in self.parts if part.last is not None]
        judged = [targets[observed & targets.isfinite()] for observed, targets in asked]
        found = torch.cat(judged).sort().values if judged else torch.zeros(0)
        middle = found.numel() // 2
        return (found[middle] + found[-1 - middle]) / 2 if found.numel() else None
