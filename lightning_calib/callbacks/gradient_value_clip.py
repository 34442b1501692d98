"""Clamp every element of the gradient."""

from typing import Any

import torch

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.scalar_row import Row
from lightning_calib.functional.checks import check_number
from lightning_calib.functional.elementwise import clamp_
from lightning_calib.functional.saved_state import entry, restored
from lightning_calib.steps.counts import Count
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.saved_state import Losses, to_host


class _Fired:
    """How often the value clip fired for one optimizer."""

    def __init__(self, count: Count) -> None:
        self.count = count

    def saved(self) -> dict[str, object]:
        """For the checkpoint."""
        return {"count": to_host(self.count._asdict())}

    def restore(self, saved: dict[str, Any], key: str, losses: Losses) -> bool:
        """Take up the counts."""
        with losses.of("how often it clipped"):
            self.count = restored(entry(saved, "count", key), self.count, f"{key}.count")
        return True


class GradientValueClip(CalibratedCallback):
    r"""Clamp every element of the gradient: :math:`g_i \leftarrow \mathrm{clamp}(g_i, -c, c)`.

    Not a rescale: it turns the gradient. It reads the largest magnitude first, and on the CPU does not write when
    nothing exceeds the bound.

    Args:
        max_value: The bound c, in the unit of the gradient's elements, in (0, inf].

    Raises:
        TypeError: If ``max_value`` is not a number.
        ValueError: If it is not above 0.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right, and
            with complex parameters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientValueClip
        >>> trainer = Trainer(callbacks=[GradientValueClip(0.5)], logger=False)

    Logged:
        As ``GradientClip``; there is no threshold on the norm.

    Checkpoint:
        The counts.
    """

    clips = works_loose = True
    norm_types = (float("inf"),)
    extra_reading = "gradients are read again where GradientValueClip fires"

    def __init__(self, max_value: float) -> None:
        super().__init__()
        check_number("max_value", max_value, "Use for instance 0.5; math.inf never acts.", 0, float("inf"), ends="(]")
        self.max_value = float(max_value)

    def lay(self, ledger: Ledger) -> None:
        """Take up the counts; complex numbers have no order, so there is nothing to clamp them to."""
        if ledger.plan.has_complex:
            self.refuse("Complex gradients cannot be clamped by value. Clip their norm: GradientClip(1.0).")
        self.keep(ledger, _Fired(Count.empty(ledger.plan)))

    def act(self, ledger: Ledger) -> None:
        """Clamp where the largest magnitude exceeds the bound; non-finite tensors keep their bits."""
        tops = ledger.reading(float("inf")).tensors
        over = tops.isfinite() & (tops > self.max_value)
        fired = over.any()
        ledger.fired[self] = fired
        ledger.reduced.append(fired)
        if fired.device.type == "cpu" and not fired:
            return
        ledger.unscale()
        bounds = tops.new_full((), self.max_value / ledger.completion).where(over, torch.inf).unbind()
        pairs = zip(ledger.plan.tensors, bounds, strict=True)
        for tensor, bound in pairs:
            if bound.device.type != "cpu" or bound < torch.inf:
                clamp_([tensor], bound)
        ledger.forget()

    def observe(self, ledger: Ledger) -> None:
        """Count the step, also one that somebody skips."""
        book = self._books[ledger.index]
        book.count = book.count.add(ledger.fired.get(self) if ledger.live else None)

    def row(self, ledger: Ledger) -> Row:
        """Nothing of its own: the shared fraction counts it."""
        book = self._books[ledger.index]
        book.count = book.count.new_window()
        return {}
