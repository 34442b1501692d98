"""What all detectors look at, computed once: steps per row, the recent window, the loss, each tensor's motion."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.loss_course import LossCourse, loss_course
from lightning_calib.report.optimizer_kind import optimizer_kind
from lightning_calib.report.run import Floats, Group, Kind, Layers, Run
from lightning_calib.report.wording import decimal

SCALE_FREE: tuple[Kind, ...] = ("adam", "sign", "muon")  # divide the scale of the gradient out again
_THIN = 64  # rows that a median over the recent window is of, at most: more change its third digit


class Tensors(NamedTuple):
    """Of each of T tensors, over the last half of the rows unless said otherwise; nan where not known.

    Attributes:
        matrix: Whether it has two dimensions or more, and is trained, T bools.
        grad: Median norm of the gradient, where it was finite.
        rms: The same per element: over the root of the number of elements.
        after: Median norm that the optimizer used, per element.
        weight: The largest norm of the weights in the whole run, so that a start at zero divides nothing.
        ratio: Median |dw| / ``weight`` of a step.
        pulled: The same in rows with a gradient above zero, without what decoupled or coupled weight decay does: the
            root of the difference of squares.
        step: Median |dw| of a step, per element.
        moved: Length of the path in the whole run over ``weight``: mean |dw| of a step times the steps.
        reach: Sum over all steps and tensors of |g| |dw|: to first order the loss cannot have fallen by more.
        eps: What Adam and its kin add to the root of the second moment; nan for others.
        kinds: What its group's update makes of the scale of a gradient, T.
    """

    matrix: NDArray[np.bool_]
    grad: Floats
    rms: Floats
    after: Floats
    weight: Floats
    ratio: Floats
    pulled: Floats
    step: Floats
    moved: Floats
    reach: float
    eps: Floats
    kinds: tuple[Kind, ...]


class Measured(NamedTuple):
    """A run, and what is derived from it.

    Attributes:
        run: The numbers.
        steps_per_row: Optimizer steps between two rows of scalars.
        recent: The rows of the recent window: the last half, as a slice.
        window: Its length in optimizer steps.
        norms: The finite norms above zero of the recent window, before anything reduced them.
        loss: What the loss did.
        tensors: Of the tensors; None without rows of layers.
        kinds: Kinds of the groups, each once.
        lr: The largest learning rate of the first group; nan if not known.
        steps_of_others: Steps of the busiest other optimizer of the run.
    """

    run: Run
    steps_per_row: float
    recent: slice
    window: int
    norms: Floats
    loss: LossCourse
    tensors: Tensors | None
    kinds: frozenset[Kind]
    lr: float
    steps_of_others: int = 0

    @property
    def high(self) -> float:
        """The 95th percentile of the recent norms, which would clip outliers only; nan without any."""
        return float(np.percentile(self.norms, 95)) if len(self.norms) else float("nan")

    @property
    def scale_free(self) -> bool:
        """Whether every group divides the scale of the gradient out again."""
        return bool(self.kinds) and self.kinds <= set(SCALE_FREE)

    def clip(self, value: float) -> str:
        """What clips the whole gradient by a value, to paste: the Trainer's where our callbacks are refused."""
        text = decimal(value)
        return f"`Trainer(gradient_clip_val={text})`" if self.run.facts.engine else f"`GradientClip({text})`"

    @property
    def moved(self) -> float:
        """Median over matrices of the length of the path over the weights' norm; nan if not known."""
        if self.tensors is not None and len(known := self.of_matrices(self.tensors.moved)):
            return float(np.median(known))
        ratios = finite(self.run.scalars.update_ratio)
        return float(ratios.mean()) * self.run.counts.steps if len(ratios) else float("nan")

    @property
    def update_ratio(self) -> float:
        """Median over the matrices that move of their |dw| / |w| of a step, in the recent rows; nan if not known."""
        if self.tensors is not None and len(known := self.of_matrices(self.tensors.ratio)):
            return float(np.median(known[known > 0])) if (known > 0).any() else 0.0
        ratios = finite(self.run.scalars.update_ratio[self.recent])
        return float(np.median(ratios)) if len(ratios) else float("nan")

    @property
    def work(self) -> float:
        """Sum of |g| |dw| over the run, by which the loss can have changed to first order; nan if not known."""
        if self.tensors is not None and np.isfinite(self.tensors.reach):
            return self.tensors.reach
        products = finite(self.run.scalars.grad_norm_before * self.run.scalars.update_norm)
        return float(products.mean()) * self.run.counts.steps if len(products) else float("nan")

    def of_matrices(self, values: Floats) -> Floats:
        """The finite values of the matrices."""
        return finite(values[self.tensors.matrix]) if self.tensors is not None else np.empty(0)

    def steps_of(self, first: int, last: int) -> tuple[int, int]:
        """Steps of two rows of scalars."""
        return int(self.run.scalars.step[first]), int(self.run.scalars.step[last])


def measure_all(runs: Sequence[Run]) -> tuple[Measured, ...]:
    """Of every optimizer of a run; each knows how often the others stepped."""
    steps = [run.counts.steps for run in runs]
    return tuple(
        measure(run)._replace(steps_of_others=max(steps[:place] + steps[place + 1 :], default=0))
        for place, run in enumerate(runs)
    )


def measure(run: Run) -> Measured:
    """Derive once what several detectors look at."""
    scalars, rows, steps = run.scalars, len(run.scalars.step), run.counts.steps
    gaps = np.diff(scalars.step)
    batches = int(scalars.step[-1]) + 1 if rows else 1
    per_batch = steps / batches if steps and not run.counts.earlier else 1.0
    steps_per_row = max(1.0, float(np.median(gaps)) * per_batch) if rows > 1 else float(max(1, steps))
    recent = slice(rows // 2, rows)
    norms = scalars.grad_norm_before[recent]
    rates = finite(scalars.lr)
    groups = run.facts.groups or (Group(optimizer_kind([run.facts.optimizer]), None),)
    lr = float(rates.max()) if len(rates) else groups[0].lr
    return Measured(
        run=run,
        steps_per_row=steps_per_row,
        recent=recent,
        window=min(steps, round((rows - rows // 2) * steps_per_row)),
        norms=norms[np.isfinite(norms) & (norms > 0)],
        loss=loss_course(scalars, steps_per_row),
        tensors=_tensors(run.layers, groups, steps, rates) if run.layers is not None else None,
        kinds=frozenset(group.kind for group in groups),
        lr=float("nan") if lr is None else lr,
    )


def finite(values: Floats) -> Floats:
    """Those that are known and finite."""
    return values[np.isfinite(values)]


def column_medians(table: Floats) -> Floats:
    """Median of each column's finite values, R by T to T; nan where there are none. Of two middles the lower."""
    rows, columns = table.shape
    if not rows:
        return np.full(columns, np.nan)
    chosen = table[np.unique(np.linspace(0, rows - 1, min(rows, _THIN)).round().astype(int))]
    ordered = np.sort(np.where(np.isfinite(chosen), chosen, np.inf), axis=0)
    middle = np.maximum(np.isfinite(chosen).sum(axis=0) - 1, 0) // 2
    found = ordered[middle, np.arange(columns)]
    return np.where(np.isfinite(found), found, np.nan)


def _tensors(layers: Layers, groups: Sequence[Group], steps: int, rates: Floats) -> Tensors:
    of = [groups[place] if place < len(groups) else Group("other", None) for place in layers.group_of]
    half = slice(len(layers.step) // 2, None)
    root = np.sqrt(np.where(np.array(layers.sizes) > 0, layers.sizes, np.nan).astype(float))
    weight = np.max(np.where(np.isfinite(layers.weight), layers.weight, 0.0), axis=0, initial=0.0)
    weight = np.where(weight > 0, weight, np.nan)
    grad, update = column_medians(layers.before[half]), column_medians(layers.update[half])
    # A block that is drawn now and then is moved by its weight decay alone where it is not.
    drawn = column_medians(np.where(layers.before[half] > 0, layers.update[half], np.nan)) / weight
    usable = np.isfinite(layers.update)
    mean = np.where(usable, layers.update, 0.0).sum(axis=0) / np.maximum(usable.sum(axis=0), 1)
    mean = np.where(usable.any(axis=0), mean, np.nan)
    both = usable & np.isfinite(layers.before)
    work = np.where(both, layers.before, 0.0) * np.where(both, layers.update, 0.0)
    rows = int(both.any(axis=1).sum())
    now = float(np.median(rates[len(rates) // 2 :]) / rates[0]) if len(rates) and rates[0] > 0 else 1.0
    decay = np.array([(one.lr or 0.0) * one.weight_decay / (1 - one.momentum) for one in of]) * min(now, 1.0)
    ratio = update / weight
    return Tensors(
        matrix=(np.array(layers.dims, int) >= 2) & layers.trainable,
        grad=grad,
        rms=grad / root,
        after=column_medians(layers.after[half]) / root,
        weight=weight,
        ratio=ratio,
        pulled=np.sqrt(np.maximum(np.square(drawn) - np.square(decay), 0.0)),
        step=update / root,
        moved=mean * steps / weight,
        reach=float(work.sum()) / rows * steps if rows else float("nan"),
        eps=np.array([one.eps if one.kind == "adam" and one.eps else np.nan for one in of], float),
        kinds=tuple(one.kind for one in of),
    )
