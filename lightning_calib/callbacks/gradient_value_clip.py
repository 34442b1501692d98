"""Clamp every element of the gradient."""

import torch

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.fit.participant import Needs
from lightning_calib.functional.checks import check_number
from lightning_calib.functional.elementwise import clamp_all_
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.step_record import Fired, StepRecord


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
        ``calib/grad_norm_before``, ``calib/grad_norm_max``, ``calib/grad_norm_after`` and ``calib/clip_fraction`` (the
        share of the steps since the last row on which any element was clamped); there is no threshold on the norm.

    Checkpoint:
        The counts of steps and of clipped steps; the method has no state.
    """

    _needs = Needs(
        clips="adaptive",
        norm_types=(float("inf"),),
        rereads="gradients are read again where GradientValueClip fires",
        fabric=True,
    )

    def __init__(self, max_value: float) -> None:
        super().__init__()
        check_number("max_value", max_value, "Use for instance 0.5; math.inf never acts.", 0, float("inf"), ends="(]")
        self.max_value: float = float(max_value)

    def _lay(self, view: GradientView) -> None:
        """Complex numbers have no order, so there is nothing to clamp them to."""
        if view.plan.has_complex:
            self._refuse("Complex gradients cannot be clamped by value. Clip their norm: GradientClip(1.0).")

    def _act(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Clamp where the largest magnitude exceeds the bound; non-finite tensors keep their bits."""
        tops = view.reading(float("inf")).tensors
        over = tops.isfinite() & (tops > self.max_value)
        reduced = over.any()
        record = record._replace(fired=(*record.fired, Fired(self.state_key, reduced)))
        if reduced.device.type == "cpu" and not reduced:
            return record
        view.unscale()
        clamp_all_(view.plan, tops.new_full((), self.max_value / record.window_scale).where(over, torch.inf))
        view.look_again()
        return record
