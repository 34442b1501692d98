"""Rescale gradients to a target, up or down."""

from collections.abc import Mapping
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
        scope: What makes a segment: everything, the optimizer's parameter groups, modules, tensors, or output units.
        norm_type: The p of the p-norm, in (0, inf].
        rules: ``{glob on parameter name: number, policy or None}``: a number is the norm that the segment gets, None
            leaves it alone. The first match wins; parameters that no glob matches follow ``target``.
        dry_run: Log what would be rescaled, and change nothing.
        name: Tells two callbacks of this class apart, in tags and checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; at the start of training, if a glob matches no parameter or the state would
            take more than 64 MB.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientNormalize
        >>> trainer = Trainer(callbacks=[GradientNormalize(1.0)], logger=False)

    Logged:
        ========================== ==========================================================================
        ``calib/grad_norm_before`` 2-norm as the first of our callbacks saw it
        ``calib/grad_norm_max``    the largest since the last row
        ``calib/grad_norm_after``  2-norm that the optimizer used
        ``calib/clip_fraction``    share of the steps since the last row on which the gradient was made smaller
        ``calib/clip_threshold``   median target over the judged segments
        ========================== ==========================================================================

        The last two carry ``.<name>`` with a name, and are ``would_clip_...`` with ``dry_run``.

    Checkpoint:
        The state of every policy, with a digest of the segments that it belongs to, and the counts.

    Note:
        A zero gradient stays zero: there is no direction to follow. One so small that target / norm is beyond its type
        is left alone. Small gradients are enlarged with their noise, so
        the learning rate alone decides the length of an SGD step; a schedule must bring it down.
    """

    def __init__(
        self,
        target: Policy | float = 1.0,
        *,
        scope: Scope = "global",
        norm_type: float = 2.0,
        rules: Mapping[str, Policy | float | None] | None = None,
        dry_run: bool = False,
        name: str | None = None,
    ) -> None:
        given = {"target": target}
        if isinstance(rules, Mapping):
            given.update({f"rules[{glob!r}]": rule for glob, rule in rules.items() if isinstance(rule, (int, float))})
        for argument, value in given.items():
            if not isinstance(value, Policy):
                check_number(argument, value, "Use 1.0 for unit norm, or a policy.", 0, inf, ends="()")
        super().__init__(target, scope, clip=False, norm_type=norm_type, rules=rules, dry_run=dry_run, name=name)

    @property
    def target(self) -> Policy | None:
        """The policy, for a number ``MaxNorm``."""
        return self.policy
