"""Published methods: each a cell of the grid, a constructor and a docstring."""

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning_calib.callbacks.public import OfPolicy, renamed
from lightning_calib.callbacks.segment_rescaler import SegmentRescaler
from lightning_calib.functional.judge import Policy
from lightning_calib.policies import EMARelative, Percentile, WeightRelative, ZScore
from lightning_calib.policies.global_warmup import GlobalWarmup

Rules = Mapping[str, Policy | float | None]
_OF_ZCLIP = {
    "z_thresh": "Use z_max={!r}.",
    "alpha": "Use decay={!r}.",
    "max_grad_norm": "Use warmup_max_norm={0!r} for the warm-up; for a cap on every step add GradientClip({0!r}).",
    "eps": "It has no counterpart.",
    "mode": 'It is "zscore" here; for a fixed distance above the mean there is no counterpart.',
    "clip_option": 'It is "adaptive_scaling" here, its default there.',
    "clip_factor": "It is 1 here, its default there.",
    "skip_update_on_spike": "It is False here: a spike enters the statistics as far as it was not cut.",
}


class AutoClip(SegmentRescaler):
    """Clip the whole gradient at a percentile of the norms so far: ``Percentile`` x "global".

    Args:
        percentile: 0 or in [1, 100]; the paper recommends 10, so that about nine steps in ten are clipped.
        window: How many norms to remember; None is the whole history, as in the paper.
        rules: ``{glob on parameter name: number, policy or None}``; the first match wins, None leaves alone.
        dry_run: Log what would be clipped, and change nothing.
        name: Tells two callbacks of this class apart, in tags and checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; at the start of training, if a glob of ``rules`` matches no parameter.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import AutoClip
        >>> trainer = Trainer(callbacks=[AutoClip()], logger=False)

    Logged:
        ``calib/grad_norm_before``, ``_max`` and ``_after``, ``calib/clip_fraction`` and ``calib/clip_threshold`` (the
        percentile).

    Checkpoint:
        The norms so far: 4 bytes per step without a window.

    Note:
        Differs from the paper: norms that are zero or not finite never enter the history.

    References:
        Seetharaman et al., *AutoClip: Adaptive gradient clipping for source separation networks*, MLSP 2020,
        Algorithm 1.
    """

    percentile: OfPolicy[float] = OfPolicy[float]("percentile")
    window: OfPolicy[int | None] = OfPolicy[int | None]("window")

    def __init__(
        self,
        percentile: float = 10.0,
        *,
        window: int | None = None,
        rules: Rules | None = None,
        dry_run: bool = False,
        name: str | None = None,
    ) -> None:
        policy = Percentile(percentile, window, warmup_steps=0)
        super().__init__(policy, "global", clip=True, rules=rules, dry_run=dry_run, name=name)


class ZClip(SegmentRescaler):
    """Clip the whole gradient when its norm is a statistical outlier: ``ZScore`` x "global".

    Args:
        z_max: The largest z-score that is left alone, above 0; 2.5 in the paper.
        decay: What mean and deviation keep per step, in [0, 1); 0.97 in the paper.
        warmup_steps: Norms to see before the first judgement, at least 2; 25 in the paper.
        robust: True follows a change of level within some tens of steps; False is the paper's rule, which does not.
        warmup_max_norm: The largest norm during the warm-up, in (0, inf]; None clips nothing in it. Where this callback
            replaces a clip value, pass that value.
        rules: ``{glob on parameter name: number, policy or None}``; the first match wins, None leaves alone.
        dry_run: Log what would be clipped, and change nothing.
        name: Tells two callbacks of this class apart, in tags and checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; at the start of training, if a glob of ``rules`` matches no parameter.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientMonitor, ZClip
        >>> trainer = Trainer(callbacks=[ZClip(warmup_max_norm=1.0), GradientMonitor()], logger=False)

    Logged:
        ``calib/grad_norm_before``, ``_max`` and ``_after``, ``calib/clip_fraction`` and ``calib/clip_threshold``; the
        last is the trigger, or the target on a step that was clipped; in the warm-up ``warmup_max_norm``, or none.

    Checkpoint:
        Count, mean and variance.

    Note:
        Differs from the paper: there is no fixed cap, but for the one of the warm-up on request; ``robust=True`` judges
        the logarithm of the norm (see ``ZScore``).

    References:
        Kumar et al., *ZClip: Adaptive Spike Mitigation for LLM Pre-Training*, 2025, arXiv 2504.02507.
    """

    z_max: OfPolicy[float] = OfPolicy[float]("z_max")
    decay: OfPolicy[float] = OfPolicy[float]("decay")
    warmup_steps: OfPolicy[int] = OfPolicy[int]("warmup_steps")
    robust: OfPolicy[bool] = OfPolicy[bool]("robust")
    warmup_max_norm: OfPolicy[float | None] = OfPolicy[float | None]("warmup_max_norm")

    @renamed("zclip", _OF_ZCLIP)
    def __init__(
        self,
        z_max: float = 2.5,
        *,
        decay: float = 0.97,
        warmup_steps: int = 25,
        robust: bool = True,
        warmup_max_norm: float | None = None,
        rules: Rules | None = None,
        dry_run: bool = False,
        name: str | None = None,
    ) -> None:
        policy = ZScore(z_max, decay, warmup_steps, robust, warmup_max_norm)
        super().__init__(policy, "global", clip=True, rules=rules, dry_run=dry_run, name=name)


class AGC(SegmentRescaler):
    r"""Clip each output unit relative to its weights: ``WeightRelative`` x "unit".

    Args:
        factor: :math:`\lambda`, the gradient norm allowed per weight norm, above 0; 0.01 in the authors' code, for
            batches of 4096.
        min_weight_norm: The floor of the weight norm, above 0; 1e-3 in the authors' code. It lets zero weights learn.
        exclude: Globs on the parameters to leave alone; () for none. "auto": tensors with fewer than two dimensions and
            the last ``nn.Linear`` of ``named_modules()``. A parameter that a rule names is never excluded.
        rules: ``{glob on parameter name: number, policy or None}``; the first match wins, None leaves alone.
        dry_run: Log what would be clipped, and change nothing.
        name: Tells two callbacks of this class apart, in tags and checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; at the start of training, if a glob matches no parameter.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import AGC
        >>> trainer = Trainer(callbacks=[AGC(0.02)], logger=False)

    Logged:
        ``calib/grad_norm_before``, ``_max`` and ``_after``, ``calib/clip_fraction`` and ``calib/clip_threshold`` (the
        median over the units).

    Checkpoint:
        Only the counts: the method has no state.

    Note:
        Differs from the authors' code: 1-D tensors are excluded by default, too. A unit is what produces one output,
        and the row of an embedding table; the authors' units go by the shape of the weight.

    References:
        Brock et al., *High-Performance Large-Scale Image Recognition Without Normalization*, ICML 2021, Equation 3.
    """

    factor: OfPolicy[float] = OfPolicy[float]("factor")
    min_weight_norm: OfPolicy[float] = OfPolicy[float]("min_weight_norm")

    def __init__(
        self,
        factor: float = 0.01,
        *,
        min_weight_norm: float = 1e-3,
        exclude: Sequence[str] | Literal["auto"] = "auto",
        rules: Rules | None = None,
        dry_run: bool = False,
        name: str | None = None,
    ) -> None:
        policy = WeightRelative(factor, min_weight_norm)
        super().__init__(policy, "unit", clip=True, rules=rules, dry_run=dry_run, name=name, exclude=exclude)


class AdaGC(SegmentRescaler):
    r"""Clip each tensor relative to its own average norm, after a global warm-up: ``EMARelative`` x "parameter".

    Args:
        factor: :math:`\lambda_{rel}`, how far above its average a tensor's norm may be, at least 1; 1.05 in two public
            ports, 1.04 in the authors' code.
        decay: :math:`\beta`, in [0, 1); 0.98 in the ports, 0.99 in the authors' code.
        warmup_steps: Steps with a global clip, during which each tensor's smallest norm becomes its first average; 100.
        warmup_max_norm: :math:`\lambda_{abs}`, the threshold of the whole gradient in the warm-up, above 0; 1.0.
        rules: ``{glob on parameter name: number, policy or None}``; the first match wins, None leaves alone.
        dry_run: Log what would be clipped, and change nothing.
        name: Tells two callbacks of this class apart, in tags and checkpoints.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; at the start of training, if a glob of ``rules`` matches no parameter.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import AdaGC
        >>> trainer = Trainer(callbacks=[AdaGC()], logger=False)

    Logged:
        ``calib/grad_norm_before``, ``_max`` and ``_after``, ``calib/clip_fraction`` and ``calib/clip_threshold`` (the
        median over the tensors).

    Checkpoint:
        One average and one count per tensor, and the number of steps.

    Note:
        Differs from the authors' code in its numbers, and in that a norm that is zero or not finite leaves its tensor's
        average alone. An average grows by at most 0.1 % per step.

    References:
        Wang et al., *AdaGC: Improving Training Stability for Large Language Model Pretraining*, 2025, arXiv 2502.11034.
    """

    factor: OfPolicy[float] = OfPolicy[float]("policy.factor")
    decay: OfPolicy[float] = OfPolicy[float]("policy.decay")
    warmup_steps: OfPolicy[int] = OfPolicy[int]("warmup_steps")
    warmup_max_norm: OfPolicy[float] = OfPolicy[float]("max_norm")

    def __init__(
        self,
        factor: float = 1.05,
        *,
        decay: float = 0.98,
        warmup_steps: int = 100,
        warmup_max_norm: float = 1.0,
        rules: Rules | None = None,
        dry_run: bool = False,
        name: str | None = None,
    ) -> None:
        policy = GlobalWarmup(EMARelative(factor, decay, 1), warmup_max_norm, warmup_steps)
        super().__init__(policy, "parameter", clip=True, rules=rules, dry_run=dry_run, name=name)
