"""Policies that are judged on every step and never applied: a dry run each, without a callback."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_calib.functional.judge import Observation, coefficients
from lightning_calib.functional.norms import Reading
from lightning_calib.functional.saved_state import check_keys
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.policy_parts import Part, PartsMemory
from lightning_calib.steps.saved_state import Losses

FACTOR, LOWEST, KEPT = range(3)  # what is known of a judged step: see `Shadow.judge`


class Seen:
    """The gradient of one step, as several shadows see it.

    Readings that the callbacks need not take are taken for this alone, and forgotten: norms folded from finer ones have
    other last bits, and nothing that acts may see them.
    """

    def __init__(self, view: GradientView) -> None:
        self.view = view
        self.readings: dict[tuple[float, bool], Reading] = {}
        self.observations: dict[int, Observation] = {}  # of the whole gradient, by the reading

    def reading(self, norm_type: float, *, units: bool) -> Reading:
        """The norms, of units if need be."""
        key = (norm_type, units or self.view.units)
        if key == (2.0, self.view.units):
            return self.view.reading()
        if key not in self.readings:
            self.readings[key] = self.view.measure(norm_type, units=key[1])
        return self.readings[key]

    def whole(self, part: Part, reading: Reading) -> Observation:
        """The norm of the whole gradient, as the part's policy sees it."""
        if part.policy.needs_weights:
            return part.observe(reading)
        if id(reading) not in self.observations:
            self.observations[id(reading)] = part.observe(reading)
        return self.observations[id(reading)]


class Shadow:
    """One policy, or several by rules, over their segments.

    Args:
        memory: Its parts.
        norm_type: The p of the p-norm that it judges.
        clip: Whether it only reduces.
    """

    memory: PartsMemory
    norm_type: float
    clip: bool

    def __init__(self, memory: PartsMemory, norm_type: float, *, clip: bool) -> None:
        self.memory, self.norm_type, self.clip = memory, norm_type, clip
        self.units: bool = any(part.segments.scope == "unit" for part in memory.parts)
        only = memory.parts[0].segments if len(memory.parts) == 1 else None
        self.whole: bool = only is not None and only.scope == "global" and only.pick is None

    def judge(self, seen: Seen) -> list[Tensor]:
        """What it would have made of the gradient, each of shape (1,); the policies' states move on.

        Args:
            seen: The gradient of this step.

        Returns:
            The mean and the lowest coefficient of the judged segments, and the share of the gradient's norm that would
            have been left.
        """
        parts, reading = self.memory.parts, seen.reading(self.norm_type, units=self.units)
        reports = [part.judge(part.observe(reading), clip=self.clip) for part in parts]
        left, one = reading, reading.pieces.new_ones(1)
        for part, report in zip(parts, reports, strict=True):
            left = left.rescaled(part.segments.spread(report.coefficients))
        factors = torch.cat([report.coefficients for report in reports]) if reports else one
        observed = torch.cat([report.observed for report in reports]) if reports else one > 0
        mean = 1 + torch.where(observed, factors - 1, 0).sum() / observed.sum().clamp(min=1)
        return [mean.reshape(1), factors.amin().reshape(1), (left.norm / reading.norm).reshape(1)]


def judge_whole(shadows: Sequence[Shadow], seen: Seen) -> list[Sequence[Tensor]]:
    """As `Shadow.judge`, of several that see one norm of the whole gradient: what follows the targets is one call."""
    first = shadows[0]
    reading = seen.reading(first.norm_type, units=False)
    parts = [part for one in shadows for part in one.memory.parts]
    observations = [seen.whole(part, reading) for part in parts]
    targets = torch.cat([part.ask(one) for part, one in zip(parts, observations, strict=True)])
    factors = coefficients(observations[0], targets, clip=first.clip)
    return [(one, one, one) for one in torch.split(factors, 1)]


class ShadowMemory:
    """The shadows of one optimizer.

    Args:
        shadows: By name, in the order given.
    """

    def __init__(self, shadows: dict[str, Shadow]) -> None:
        self.shadows = shadows
        self.together: dict[object, list[str]] = {}  # names of those that judge one norm alike
        for name, one in shadows.items():
            key = (one.clip, one.norm_type) if one.whole else name
            self.together.setdefault(key, []).append(name)

    def judge(self, view: GradientView) -> Tensor:
        """Shape (S, 3): what each would have made of the gradient as it is now, see `Shadow.judge`."""
        seen, found = Seen(view), dict[str, Sequence[Tensor]]()
        for names in self.together.values():
            alike = [self.shadows[name] for name in names]
            each = judge_whole(alike, seen) if alike[0].whole else [alike[0].judge(seen)]
            found.update(zip(names, each, strict=True))
        return torch.cat([one for name in self.shadows for one in found[name]]).view(-1, 3)

    def thresholds(self) -> Tensor:
        """The median target of each over the segments judged last, shape (S,), on the host's demand; nan for none."""
        found = [one.memory.threshold() for one in self.shadows.values()]
        device = next((one.device for one in found if one is not None), torch.device("cpu"))
        unknown = torch.full((), torch.nan, device=device)
        return torch.stack([unknown if one is None else one.to(torch.float32) for one in found])

    def saved(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {name: one.memory.saved() for name, one in self.shadows.items()}

    def restore(self, saved: Any, key: str, losses: Losses) -> list[str]:
        """Take up what was saved; returns those whose state was of other parameters or another policy."""
        with losses.of("what its shadows have learnt"):
            check_keys(saved, list(self.shadows), key)
            each = self.shadows.items()
            return [name for name, one in each if not one.memory.restore(saved[name], f"{key}.{name}", losses)]
        return []
