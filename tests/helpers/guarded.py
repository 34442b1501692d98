"""A plain recorder with SpikeGuard behind it, for runs of which it must not drop a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.plain_recorder import PlainRecorder
from lightning.pytorch import Callback

from lightning_calib import SpikeGuard


class Guarded(PlainRecorder):
    """With all rungs of the ladder."""

    ladder: Any = ("skip", "rewind", "stop")

    def around(self, callbacks: Sequence[Callback]) -> list[Callback]:
        first, *rest = super().around(callbacks)
        self.guard = SpikeGuard(ladder=self.ladder)
        return [first, self.guard, *rest]

    def spikes(self) -> list[int]:
        """How many the guard has seen of each optimizer, when the fit is over."""
        return [one["ladder"]["spikes"] for one in self.guard.state_dict()["optimizers"].values()]


class Skipping(Guarded):
    """For manual optimization and several optimizers, where nothing can be rewound."""

    ladder = ("skip", "stop")
