"""The numbers of a run, as the report reads them: of each optimizer the facts, the counts, the rows, the layers.

They come from a fit in memory or from event files; what a source does not know is nan. In every array of floats **nan
means "not known", and inf "was inf or nan"**; arrays of R rows have one entry per logged row.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.shadow_rows import ShadowRows

Floats = NDArray[np.float64]
Kind = Literal["adam", "sign", "muon", "sgd", "other"]
How = Literal["fixed", "adaptive", "normalise", "dry"]


class Group(NamedTuple):
    """One parameter group, at the start of the fit.

    Attributes:
        kind: What its update makes of the scale of a gradient, see `optimizer_kind`.
        lr: Learning rate; None without one.
        eps: What is added to the root of the second moment; None without one.
        momentum: Of SGD and its kin, in [0, 1); 0 without.
        weight_decay: 0 without.
    """

    kind: Kind
    lr: float | None
    eps: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0


class Clipper(NamedTuple):
    """Somebody who reduces gradients.

    Attributes:
        name: As the user calls it, such as "ZClip" or "Trainer(gradient_clip_val=1)".
        kind: "fixed" clips by one norm that never changes, "adaptive" clips otherwise, "normalise" also enlarges, "dry"
            only tells what it would do.
        clip_rate: The share of the steps on which it reduced (or would have reduced) the gradient, in [0, 1]; None
            where it cannot be seen.
        max_norm: Of a fixed one; None otherwise.
        seen: The number of steps that the share is of, where it could not be seen on all; None where it is of all.
    """

    name: str
    kind: How
    clip_rate: float | None
    max_norm: float | None = None
    seen: int | None = None


class Facts(NamedTuple):
    """What stays the same for a whole fit, of one optimizer.

    Attributes:
        optimizer: Class name.
        position: Its place among the optimizers of the run.
        groups: Its parameter groups.
        precision: As Lightning writes it, such as "32-true"; empty if not known.
        accumulation: Micro-batches per step, at least 1.
        schedule: Class names of its schedulers; empty without.
        interval: "step" or "epoch", of the first of them; empty without.
        steps_planned: Optimizer steps of the whole fit; None where it is not known or endless.
        steps_per_epoch: None where it is not known.
        manual: Whether the module steps by itself.
        optimizers: How many optimizers the run has.
        guarded: Whether somebody looks for gradients that are not finite.
        rules: Names of LearningRateControl's rules.
        norm_layers: Names of the BatchNorm layers in training mode.
        batch_size: Samples per batch and process; None where it is not known.
        world_size: Processes.
        version: Of the package that wrote it.
        engine: What keeps the gradients to itself and refuses our callbacks, such as "DeepSpeed"; empty without.
    """

    optimizer: str
    position: int = 0
    groups: tuple[Group, ...] = ()
    precision: str = ""
    accumulation: int = 1
    schedule: tuple[str, ...] = ()
    interval: str = ""
    steps_planned: int | None = None
    steps_per_epoch: int | None = None
    manual: bool = False
    optimizers: int = 1
    guarded: bool = False
    rules: tuple[str, ...] = ()
    norm_layers: tuple[str, ...] = ()
    batch_size: int | None = None
    world_size: int = 1
    version: str = ""
    engine: str = ""


class Counts(NamedTuple):
    """Counts since the start of the run; a resumed run goes on counting.

    Attributes:
        steps: Optimizer steps with a gradient, those that were skipped among them.
        usable: Those of them whose norm was finite and above zero.
        skipped: Steps that were not taken.
        nonfinite: Steps whose gradient was inf or nan (a GradScaler's overflows excepted).
        left: Mean share of the norm that everybody left, above 0; None where it is not known.
        known: The number of steps of that mean.
        earlier: Whether the Trainer had taken steps before of which nothing is known here.
        epochs: Epochs that have ended.
        rewound: Steps that were taken, and undone by a rewind.
        spikes: Steps that SpikeGuard dropped; among the skipped.
        stopped: "running", "finished" (the plan was carried out), "early" (something stopped it), "broken" (exception).
    """

    steps: int = 0
    usable: int = 0
    skipped: int = 0
    nonfinite: int = 0
    left: float | None = None
    known: int = 0
    earlier: bool = False
    epochs: int = 0
    stopped: Literal["running", "finished", "early", "broken"] = "running"
    rewound: int = 0
    spikes: int = 0

    @property
    def taken(self) -> int:
        """Steps that were taken and not undone."""
        return max(0, self.steps - self.skipped - self.rewound)

    @property
    def all_bad_skipped(self) -> bool:
        """Whether every step whose gradient was inf or nan was skipped."""
        return self.skipped - self.spikes >= self.nonfinite


class Scalars(NamedTuple):
    """Rows of scalars, each of shape (R,); the names are those of the tags without ``calib/``.

    Attributes:
        step: Batches that had ended in a step before the row's, ascending.
        loss: Mean over the steps since the last row of the loss of a whole step (Lightning's, times the accumulation).
        grad_norm_max: The largest finite norm since the last row.
        loss_max: The largest of them; inf if one was not finite.
        loss_first: The loss of the first step of the run, the same in every row.
        val_loss: The last validation loss that the module logged, if it logs one under a name with "val" and "loss".
        clip_fraction: Share of the steps since the last row on which anybody reduced the gradient.
        factor: Mean share of the norm that was left on the steps since the last row.
        norm_shift: How far the batches' means were from BatchNorm's running means, in running standard deviations:
            the median over channels, of the worst layer.
    """

    step: NDArray[np.int64]
    grad_norm_before: Floats
    grad_norm_max: Floats
    grad_norm_after: Floats
    clip_fraction: Floats
    clip_threshold: Floats
    lr: Floats
    lr_effective: Floats
    nonfinite_total: Floats
    skipped_total: Floats
    loss_scale: Floats
    update_norm: Floats
    update_ratio: Floats
    loss: Floats
    loss_max: Floats
    loss_first: Floats
    val_loss: Floats
    factor: Floats
    norm_shift: Floats


class Norms(NamedTuple):
    """The norms of all steps, before anything; of those that were finite and above zero.

    Attributes:
        lowest: The smallest.
        median: The 50th percentile; beyond 4,096 steps an estimate, as the next.
        high: The 95th percentile.
        highest: The largest.
    """

    lowest: float
    median: float
    high: float
    highest: float


class Layers(NamedTuple):
    """Rows of the optimizer's T tensors, R by T; the rows may be fewer than those of the scalars.

    Attributes:
        names: Of the parameters, T.
        owners: The modules that own them, T.
        dims: Number of dimensions, T.
        sizes: Number of elements, T; 0 where it is not known.
        group_of: Index of each one's parameter group, T.
        given: Whether there has ever been a gradient, if only one of zeros, T bools.
        trainable: Whether a gradient is to be expected (`requires_grad`, and not empty), T bools.
        step: (R,).
        before: Norm of the gradient as the first of our callbacks saw it; nan where the tensor had none.
        after: Norm that the optimizer used.
        peak: The largest `before` since the last row.
        weight: Norm of the weights before the step.
        update: Norm of the change of the weights in the step.
    """

    names: tuple[str, ...]
    owners: tuple[str, ...]
    dims: tuple[int, ...]
    sizes: tuple[int, ...]
    group_of: tuple[int, ...]
    given: NDArray[np.bool_]
    trainable: NDArray[np.bool_]
    step: NDArray[np.int64]
    before: Floats
    after: Floats
    peak: Floats
    weight: Floats
    update: Floats


class Run(NamedTuple):
    """Everything that is known of one optimizer's run.

    Attributes:
        facts: What stays the same.
        counts: Since the start.
        scalars: Rows of scalars, at least those of the last half of the run.
        layers: Rows of layers; None where none were kept.
        clippers: Who reduced the gradient how often.
        norms: Of all steps; None where only those of rows are known, or none was usable.
        bad_steps: What guards have found, the first 200 of a fit in memory, those that are listed of an event file.
        shadows: What policies would have done; None where none was judged.
    """

    facts: Facts
    counts: Counts
    scalars: Scalars
    layers: Layers | None = None
    clippers: tuple[Clipper, ...] = ()
    norms: Norms | None = None
    bad_steps: tuple[BadStep, ...] = ()
    shadows: ShadowRows | None = None
