"""Clip gradients by any policy at any scope."""

from collections.abc import Mapping

from lightning_calib.callbacks.segment_rescaler import SegmentRescaler
from lightning_calib.functional.judge import Policy
from lightning_calib.functional.segments import Scope
from lightning_calib.policies import Percentile


class GradientClip(SegmentRescaler):
    r"""Scale every segment k whose norm exceeds the policy's target: :math:`g_k \leftarrow g_k \min(1, t_k / n_k)`.

    Norms are those of the optimizer's own parameters, unscaled, after accumulation and reduction. A segment that is
    not finite, zero or missing is left alone, and so are the bits of one that stays below its target.

    Args:
        policy: What the target is: a number is ``MaxNorm``, None leaves alone what no rule names.
        scope: What makes a segment: everything, the optimizer's parameter groups, modules, tensors, or output units.
        norm_type: The p of the p-norm, in (0, inf].
        rules: ``{glob on parameter name: number, policy or None}``. The first match wins; each rule makes segments of
            its own; parameters that no glob matches follow ``policy``.
        dry_run: Log what would be clipped, and change nothing.
        name: Tells two callbacks of this class apart, in tags and checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; at the start of training, if a glob matches no parameter or the state would
            take more than 64 MB.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientClip, GradientMonitor, Percentile
        >>> trainer = Trainer(callbacks=[GradientClip(Percentile(95)), GradientMonitor()], logger=False)

    Logged:
        ========================== ==========================================================================
        ``calib/grad_norm_before`` 2-norm as the first of our callbacks saw it
        ``calib/grad_norm_max``    the largest since the last row
        ``calib/grad_norm_after``  2-norm that the optimizer used
        ``calib/clip_fraction``    share of the steps since the last row on which the gradient was reduced
        ``calib/clip_threshold``   median target over the judged segments
        ========================== ==========================================================================

        The last two carry ``.<name>`` with a name, and are ``would_clip_...`` with ``dry_run``.

    Checkpoint:
        The state of every policy, with a digest of the segments that it belongs to, and the counts.
    """

    def __init__(
        self,
        policy: Policy | float | None = Percentile(95),  # noqa: B008 - frozen
        *,
        scope: Scope = "global",
        norm_type: float = 2.0,
        rules: Mapping[str, Policy | float | None] | None = None,
        dry_run: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(policy, scope, clip=True, norm_type=norm_type, rules=rules, dry_run=dry_run, name=name)
