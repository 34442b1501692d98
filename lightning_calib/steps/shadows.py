"""Policies that are judged on every step and never applied: a dry run each, without a callback."""

from typing import Any

import torch
from torch import Tensor

from lightning_calib.functional.norms import Reading
from lightning_calib.functional.saved_state import check_keys
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.policy_parts import PartsMemory
from lightning_calib.steps.saved_state import Losses

FACTOR, LOWEST, KEPT = range(3)  # what is known of a judged step: see `Shadow.judge`


class Shadow:
    """One policy, or several by rules, over their segments.

    Args:
        memory: Its parts.
        norm_type: The p of the p-norm that it judges.
        clip: Whether it only reduces.
    """

    def __init__(self, memory: PartsMemory, norm_type: float, *, clip: bool) -> None:
        self.memory, self.norm_type, self.clip = memory, norm_type, clip
        self.units = any(part.segments.scope == "unit" for part in memory.parts)
        parts = memory.parts
        self.whole = len(parts) == 1 and parts[0].segments.pick is None and len(parts[0].segments) == 1

    def judge(self, reading: Reading) -> list[Tensor]:
        """What it would have made of the gradient, each of shape (1,); the policies' states move on.

        Returns:
            The mean and the lowest coefficient of the judged segments, and the share of the gradient's norm that would
            have been left.
        """
        reports = [part.judge(reading, clip=self.clip) for part in self.memory.parts]
        if self.whole:
            return [reports[0].coefficients] * 3
        left, one = reading, reading.pieces.new_ones(1)
        for part, report in zip(self.memory.parts, reports, strict=True):
            left = left.rescaled(part.segments.spread(report.coefficients))
        factors = torch.cat([report.coefficients for report in reports]) if reports else one
        observed = torch.cat([report.observed for report in reports]) if reports else one > 0
        mean = 1 + torch.where(observed, factors - 1, 0).sum() / observed.sum().clamp(min=1)
        return [mean.reshape(1), factors.amin().reshape(1), (left.norm / reading.norm).reshape(1)]


class ShadowMemory:
    """The shadows of one optimizer.

    Args:
        shadows: By name, in the order given.
    """

    def __init__(self, shadows: dict[str, Shadow]) -> None:
        self.shadows = shadows

    def judge(self, view: GradientView) -> Tensor:
        """Shape (S, 3): what each would have made of the gradient as it is now, see `Shadow.judge`.

        Readings that the callbacks need not take are taken for this alone, and forgotten: norms folded from finer ones
        have other last bits, and nothing that acts may see them.
        """
        readings: dict[tuple[float, bool], Reading] = {}

        def reading(norm_type: float, *, units: bool) -> Reading:
            key = (norm_type, units or view.units)
            if key == (2.0, view.units):
                return view.reading()
            if key not in readings:
                readings[key] = view.measure(norm_type, units=key[1])
            return readings[key]

        found = [x for one in self.shadows.values() for x in one.judge(reading(one.norm_type, units=one.units))]
        return torch.cat(found).view(-1, 3)

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
