"""Rescale gradients to a target, up or down."""

from math import inf

from lightning_calib.callbacks.segment_rescaler import SegmentRescaler
from lightning_calib.functional.checks import check_number
from lightning_calib.functional.judge import Policy
from lightning_calib.functional.segments import Scope


class GradientNormalize(SegmentRescaler):
    r"""Give every segment k the norm that the policy wants: :math:`g_k \leftarrow g_k \, t_k / n_k`.

    Args:
        target: The norm of every segment after the rescale, in (0, inf), or any policy. A policy without an opinion
            (its warm-up, without ``warmup_max_norm``) leaves the gradient alone.
        scope: What makes a segment.
        name: Tells two callbacks of this class apart, in tags and checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientNormalize
        >>> trainer = Trainer(callbacks=[GradientNormalize(1.0)], logger=False)

    Logged:
        As ``GradientClip``; ``calib/clip_fraction`` counts the steps on which the gradient was made smaller.

    Checkpoint:
        As ``GradientClip``.

    Note:
        A zero gradient stays zero: there is no direction to follow. Small gradients are enlarged with their noise, so
        the learning rate alone decides the length of an SGD step; a schedule must bring it down.
    """

    def __init__(self, target: Policy | float = 1.0, scope: Scope = "global", name: str | None = None) -> None:
        if not isinstance(target, Policy):
            check_number("target", target, "Use 1.0 for unit norm, or a policy.", 0, inf, ends="()")
        super().__init__(target, scope, clip=False, name=name)
