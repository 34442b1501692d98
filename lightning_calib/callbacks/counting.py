"""How often one callback reduced one optimizer's gradients, of all steps that had one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import Plan


class Count(NamedTuple):
    """Steps with a gradient and, as 0-d tensors, those on which it was (or would have been) reduced.

    The steps are the session's (`Tally`): one that somebody skips is among them, whether it could be judged or not.
    """

    window_steps: int
    window_fired: Tensor
    steps: int
    fired: Tensor

    @staticmethod
    def empty(plan: Plan) -> "Count":
        """Nothing counted."""
        zero = torch.zeros((), dtype=torch.int64, device=plan.device)
        return Count(0, zero, 0, zero)

    def add(self, fired: Tensor | None) -> "Count":
        """Count one step; ``fired`` is a 0-d bool, None where the step was not judged."""
        count = 0 if fired is None else fired
        return Count(self.window_steps + 1, self.window_fired + count, self.steps + 1, self.fired + count)

    def new_window(self) -> "Count":
        """A row was written."""
        return self._replace(window_steps=0, window_fired=torch.zeros_like(self.window_fired))

    @property
    def fraction(self) -> Tensor:
        """Of the window's steps, 0-d."""
        return self.window_fired / max(1, self.window_steps)


def windowless(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved count whose window has been told."""
    return {**saved, "window_steps": 0, "window_fired": torch.zeros_like(saved["window_fired"])}
