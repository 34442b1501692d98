"""Independent oracles: plain loops over float64, written from the papers' formulas and not from the package.

A segment is a set of elements: every element of every parameter is labelled with the number of its segment, and a
policy oracle is an object per segment that sees one norm at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray


# ---------------------------------------------------------------------------------------------------- scopes


def unit_labels(parameter: Tensor, owner: nn.Module | None) -> Array:
    """Rows of dimension 0; output channels of transposed convolutions, group by group; vectors and scalars whole."""
    shape = tuple(parameter.shape)
    labels = np.zeros(shape, dtype=int)
    if len(shape) < 2:
        return labels
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        inputs_per_group = owner.in_channels // owner.groups
        outputs_per_group = owner.out_channels // owner.groups
        for i in range(shape[0]):
            for j in range(shape[1]):
                labels[i, j] = (i // inputs_per_group) * outputs_per_group + j
        return labels
    for i in range(shape[0]):
        labels[i] = i
    return labels


def unit_count(parameter: Tensor, owner: nn.Module | None) -> int:
    if parameter.ndim < 2 or parameter.numel() == 0:
        return 1
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return owner.out_channels
    return parameter.shape[0]


def label_elements(
    net: nn.Module, scope: str, optimizer: torch.optim.Optimizer | None = None
) -> tuple[list[Tensor], list[Array], int]:
    """The distinct parameters, the segment number of each of their elements, and the number of segments."""
    parameters: list[Tensor] = []
    owners: list[nn.Module] = []
    for module in net.modules():
        for parameter in module._parameters.values():
            if parameter is not None and all(parameter is not known for known in parameters):
                parameters.append(parameter)
                owners.append(module)
    labels: list[Array] = []
    if scope == "global":
        return parameters, [np.zeros(tuple(p.shape), dtype=int) for p in parameters], 1
    if scope == "group":
        assert optimizer is not None
        for parameter in parameters:
            (group,) = [i for i, g in enumerate(optimizer.param_groups) if any(q is parameter for q in g["params"])]
            labels.append(np.full(tuple(parameter.shape), group, dtype=int))
        return parameters, labels, len(optimizer.param_groups)
    if scope == "layer":
        distinct: list[nn.Module] = []
        for parameter, owner in zip(parameters, owners, strict=True):
            if all(owner is not known for known in distinct):
                distinct.append(owner)
            labels.append(np.full(tuple(parameter.shape), [owner is m for m in distinct].index(True), dtype=int))
        return parameters, labels, len(distinct)
    if scope == "parameter":
        return parameters, [np.full(tuple(p.shape), i, dtype=int) for i, p in enumerate(parameters)], len(parameters)
    assert scope == "unit"
    first = 0
    for parameter, owner in zip(parameters, owners, strict=True):
        labels.append(np.asarray(first + unit_labels(parameter, owner)))
        first += unit_count(parameter, owner)
    return parameters, labels, first


def to_numpy(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy().copy()


def segment_norms(
    arrays: Sequence[Array | None], labels: Sequence[Array], count: int, norm_type: float = 2.0
) -> list[float]:
    """The p-norm of each segment, element by element; a missing array adds nothing."""
    norms = []
    for k in range(count):
        parts = [np.abs(a[label == k]).ravel() for a, label in zip(arrays, labels, strict=True) if a is not None]
        values = np.concatenate(parts) if parts else np.zeros(0)
        if norm_type == math.inf:
            norms.append(float(values.max()) if values.size else 0.0)
        else:
            norms.append(float(np.sum(values**norm_type)) ** (1.0 / norm_type))
    return norms


# -------------------------------------------------------------------------------------------------- policies


class PolicyOracle(Protocol):
    """One segment's judge."""

    def step(self, norm: float, weight_norm: float) -> float:
        """Sees one observed norm and says the target; inf for no opinion."""

    def state(self) -> dict[str, float | list[float]]:
        """What it remembers, by the names under which a checkpoint keeps it; values without an order ascending."""


class MaxNormOracle:
    """Pascanu et al. 2013."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def step(self, norm: float, weight_norm: float = math.nan) -> float:
        return self.max_norm

    def state(self) -> dict[str, float | list[float]]:
        return {}


class PercentileOracle:
    """AutoClip (Seetharaman et al. 2020): the current norm joins the history before the percentile is read."""

    def __init__(
        self, percentile: float, window: int | None, warmup_steps: int, warmup_max_norm: float = math.inf
    ) -> None:
        self.percentile, self.window, self.warmup_steps = percentile, window, warmup_steps
        self.warmup_max_norm = warmup_max_norm
        self.history: list[float] = []

    def step(self, norm: float, weight_norm: float = math.nan) -> float:
        self.history.append(norm)
        if len(self.history) <= self.warmup_steps:
            return self.warmup_max_norm
        return float(np.percentile(self.recent(), self.percentile))

    def recent(self) -> list[float]:
        return self.history if self.window is None else self.history[-self.window :]

    def state(self) -> dict[str, float | list[float]]:
        return {"seen": len(self.history), "values": sorted(self.recent())}


class ZClipOracle:
    """ZClip (Kumar et al. 2025): population moments of the warm-up, then adaptive scaling, fed with what was kept.

    Without a spike the target is the trigger, or the norm itself where the paper's 1e-6 lets it pass above.
    In the warm-up the target is a fixed norm, and the whole norm enters the moments.
    """

    def __init__(self, z_max: float, decay: float, warmup_steps: int, warmup_max_norm: float = math.inf) -> None:
        self.z_max, self.decay, self.warmup_steps = z_max, decay, warmup_steps
        self.warmup_max_norm = warmup_max_norm
        self.buffer: list[float] = []
        self.count = 0
        self.mean = self.var = 0.0

    def step(self, norm: float, weight_norm: float = math.nan) -> float:
        self.count += 1
        if len(self.buffer) < self.warmup_steps:
            self.buffer.append(norm)
            self.mean = float(np.mean(self.buffer))
            self.var = float(np.var(self.buffer))
            return self.warmup_max_norm
        std = math.sqrt(self.var)
        z = (norm - self.mean) / (std + 1e-6)
        if z > self.z_max:
            target = kept = self.mean + self.z_max * std / (z / self.z_max)
        else:
            target, kept = max(norm, self.mean + self.z_max * std), norm
        self.mean = self.decay * self.mean + (1 - self.decay) * kept
        self.var = self.decay * self.var + (1 - self.decay) * (kept - self.mean) ** 2
        return target

    def state(self) -> dict[str, float | list[float]]:
        return {"seen": self.count, "mean": self.mean, "var": self.var}


class RobustZScoreOracle(ZClipOracle):
    """The same on the logarithm: deviations of at least 0.01, and residuals enter at most three deviations out."""

    def step(self, norm: float, weight_norm: float = math.nan) -> float:
        x = math.log(norm)
        self.count += 1
        if len(self.buffer) < self.warmup_steps:
            self.buffer.append(x)
            self.mean = float(np.mean(self.buffer))
            self.var = float(np.var(self.buffer))
            return self.warmup_max_norm
        std = max(math.sqrt(self.var), 0.01)
        z = (x - self.mean) / std
        wanted = self.z_max * std / (z / self.z_max) if z > self.z_max else self.z_max * std
        target = math.exp(self.mean + wanted)
        kept = self.mean + max(-3 * std, min(3 * std, x - self.mean))
        self.mean = self.decay * self.mean + (1 - self.decay) * kept
        self.var = self.decay * self.var + (1 - self.decay) * (kept - self.mean) ** 2
        return target


class EMARelativeOracle:
    """AdaGC's second phase (Wang et al. 2025), after a running mean of the first norms."""

    def __init__(self, factor: float, decay: float, warmup_steps: int, warmup_max_norm: float = math.inf) -> None:
        self.factor, self.decay, self.warmup_steps = factor, decay, warmup_steps
        self.warmup_max_norm = warmup_max_norm
        self.first: list[float] = []
        self.count = 0
        self.average = 0.0

    def step(self, norm: float, weight_norm: float = math.nan) -> float:
        self.count += 1
        if len(self.first) < self.warmup_steps:
            self.first.append(norm)
            self.average = sum(self.first) / len(self.first)
            return self.warmup_max_norm
        target = self.factor * self.average
        self.average = self.decay * self.average + (1 - self.decay) * min(norm, target)
        return target

    def state(self) -> dict[str, float | list[float]]:
        return {"seen": self.count, "mean": self.average}


class GradientStabilizerOracle:
    """AdaGN of Stable-SPAM (Huang et al. 2025): moments from zero, the current norm in them, each without its bias."""

    def __init__(self, decay_short: float, decay_long: float, eps: float) -> None:
        self.decay_short, self.decay_long, self.eps = decay_short, decay_long, eps
        self.count = 0
        self.m = self.v = 0.0

    def step(self, norm: float, weight_norm: float = math.nan) -> float:
        self.count += 1
        self.m = self.decay_short * self.m + (1 - self.decay_short) * norm
        self.v = self.decay_long * self.v + (1 - self.decay_long) * norm**2
        return self.corrected()[0] / (math.sqrt(self.corrected()[1]) + self.eps)

    def corrected(self) -> tuple[float, float]:
        return self.m / (1 - self.decay_short**self.count), self.v / (1 - self.decay_long**self.count)

    def state(self) -> dict[str, float | list[float]]:
        mean, square = self.corrected() if self.count else (0.0, 0.0)
        return {"seen": self.count, "mean": mean, "rms": math.sqrt(square)}


class WeightRelativeOracle:
    """AGC (Brock et al. 2021): the floor stands inside, so that a weight of zero can still learn."""

    def __init__(self, factor: float, min_weight_norm: float) -> None:
        self.factor, self.min_weight_norm = factor, min_weight_norm

    def step(self, norm: float, weight_norm: float) -> float:
        return self.factor * max(weight_norm, self.min_weight_norm)

    def state(self) -> dict[str, float | list[float]]:
        return {}


class ClipOracle:
    """Clips segment by segment: the loop that the vectorised code has to equal."""

    def __init__(self, labels: Sequence[Array], policies: Sequence[PolicyOracle], norm_type: float = 2.0) -> None:
        self.labels, self.policies, self.norm_type = labels, policies, norm_type
        self.norms: list[float] = []
        self.targets: list[float] = []
        self.coefficients: list[float] = []

    def step(self, gradients: Sequence[Array | None], weights: Sequence[Array]) -> list[Array | None]:
        count = len(self.policies)
        self.norms = segment_norms(gradients, self.labels, count, self.norm_type)
        weight_norms = segment_norms(weights, self.labels, count, self.norm_type)
        self.targets, self.coefficients = [], []
        for policy, norm, weight_norm in zip(self.policies, self.norms, weight_norms, strict=True):
            observed = math.isfinite(norm) and norm > 0
            target = policy.step(norm, weight_norm) if observed else math.inf
            self.targets.append(target)
            self.coefficients.append(target / norm if observed and target < norm else 1.0)
        coefficients = np.array(self.coefficients)
        return [None if g is None else g * coefficients[label] for g, label in zip(gradients, self.labels, strict=True)]


class AdaGCOracle:
    """AdaGC (Wang et al. 2025), both phases, over a list of tensors; gamma is its per-tensor average."""

    def __init__(self, count: int, factor: float, decay: float, warmup_steps: int, warmup_max_norm: float) -> None:
        self.factor, self.decay = factor, decay
        self.warmup_steps, self.warmup_max_norm = warmup_steps, warmup_max_norm
        self.gamma: list[float | None] = [None] * count
        self.steps = 0

    def step(self, gradients: Sequence[Array]) -> list[Array]:
        norms = [math.sqrt(sum(abs(x) ** 2 for x in g.ravel())) for g in gradients]
        clipped = []
        if self.steps < self.warmup_steps:
            h = min(1.0, self.warmup_max_norm / math.sqrt(sum(n**2 for n in norms)))
            for i, (g, n) in enumerate(zip(gradients, norms, strict=True)):
                known = self.gamma[i]
                if n > 0:
                    self.gamma[i] = h * n if known is None else min(known, h * n)
                clipped.append(h * g)
        else:
            for i, (g, n) in enumerate(zip(gradients, norms, strict=True)):
                gamma = self.gamma[i]
                if n == 0 or gamma is None:
                    self.gamma[i] = n if n > 0 else gamma  # first seen now: nothing to compare it with yet
                    clipped.append(g)
                    continue
                h = min(1.0, self.factor * gamma / n)
                self.gamma[i] = self.decay * gamma + (1 - self.decay) * h * n
                clipped.append(h * g)
        self.steps += 1
        return clipped


# -------------------------------------------------------------------------------------------- element-wise


def centralized(gradient: Array, owner: nn.Module | None = None) -> Array:
    """Gradient centralisation (Yong et al. 2020): each output unit minus its mean over the fan-in."""
    if gradient.ndim < 2:
        return gradient
    labels = unit_labels(torch.from_numpy(gradient), owner)
    result = gradient.copy()
    for k in set(labels.ravel().tolist()):
        elements = [float(x) for x in gradient[labels == k]]
        result[labels == k] -= sum(elements) / len(elements)
    return result
