"""A learning-rate schedule from the gradient norms of a finished run."""

from bisect import bisect_left, insort
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_calib.functional.checks import check_choice, check_number, message

_POWERS = {"sgd": 2, "adam": 1}


def refine_schedule(norms: Tensor | Iterable[float], optimizer: str = "sgd", *, smoothing: float = 0.1) -> Tensor:
    r"""The refined schedule: learning rates, relative to their largest, that suit the gradient norms of an earlier run.

    With smoothed norms :math:`\hat g_t`, t from 1 to T:

    .. math:: \eta_t \propto w_t \sum_{p=t+1}^{T} w_p, \qquad
        w_t = \hat g_t^{-2} \text{ for SGD}, \quad w_t = \hat g_t^{-1} \text{ for Adam.}

    So it is long where the gradients are small, warms up where they fall, and ends at 0. Constant norms give linear
    decay. The smoothing is a running median, its window ``smoothing`` times T (made odd); the first norm stands for
    those before it, and the last ones are mirrored.

    Args:
        norms: The gradient norm of every step, or at even spacing, before clipping; shape (T,), T at least 2. For SGD
            2-norms. For Adam and its relatives the paper takes 1-norms; 2-norms, which ``GradientMonitor`` logs,
            give the same schedule as far as the ratio of the two norms stays what it is during the run.
        optimizer: ``"sgd"``, or ``"adam"`` for every optimizer that scales each coordinate by its own history.
        smoothing: The window as a fraction of T, in [0, 1]; 0.1 in the authors' code, below 2 / T no smoothing.

    Returns:
        The schedule, shape (T,), float64 on the CPU; no number is negative, the largest is exactly 1, the last 0.

    Raises:
        TypeError: If ``norms`` does not hold numbers, or ``smoothing`` is none.
        ValueError: If fewer than two norms, a negative one or too many unusable ones are given, or another argument
            is out of range.

    Example:
        >>> from lightning_calib import refine_schedule
        >>> refine_schedule([2.0, 2.0, 2.0, 2.0, 2.0])
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)

    Note:
        Norms that are zero or not finite (skipped and overflowed steps) are missing: they are interpolated between
        their neighbours, and refused when they are more than half. The authors' code leaves out the infinite ones.
        The running median takes about 0.3 s for 100,000 norms and 15 s for a million: thin out such a log first.

    References:
        Defazio, Cutkosky, Mehta, Mishchenko, *When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement*,
        2023, arXiv 2310.07831: schedule refinement for SGD and for Adam.
    """
    check_choice("optimizer", optimizer, tuple(_POWERS), 'Use "adam" for optimizers with per-coordinate scaling.')
    check_number("smoothing", smoothing, "Use 0.1, or 0 to take the norms as they are.", 0, 1)
    smoothed = _running_median(_complete(_read(norms)), smoothing)
    weights = (smoothed.min() / smoothed) ** _POWERS[optimizer]
    from_here = weights.flip(0).cumsum(0).flip(0)
    schedule = weights * torch.cat([from_here[1:], from_here.new_zeros(1)])
    return schedule / schedule.max()


def _read(norms: Tensor | Iterable[float]) -> Tensor:
    remedy = "Pass the logged norms as one sequence of numbers."
    try:
        values = _numbers(norms)
    except (TypeError, ValueError, OverflowError, RuntimeError) as reason:
        raise TypeError(message("norms", "numbers", norms, remedy)) from reason
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(message("norms", "of shape (T,) with T >= 2", tuple(values.shape), remedy))
    if (values < 0).any():
        remedy = "Pass the norms themselves, not their logarithms."
        raise ValueError(message("norms", "non-negative", values.nan_to_num(nan=0).min().item(), remedy))
    return values


def _numbers(norms: Tensor | Iterable[float]) -> Tensor:
    """In float64 on the CPU; raises whatever comes up where they are none."""
    if isinstance(norms, (str, bytes)) or (isinstance(norms, Tensor) and norms.is_complex()):
        raise TypeError("characters, and complex numbers, are no norms")
    if not isinstance(norms, Tensor):
        return torch.tensor([float(x) for x in norms], dtype=torch.float64)
    found = norms.detach().to("cpu", torch.float64)
    return found.to_dense() if found.layout != torch.strided else found


def _complete(norms: Tensor) -> Tensor:
    """Interpolate what is missing between its neighbours; beyond the first and the last, repeat these."""
    observed = norms.isfinite() & (norms > 0)
    known = observed.nonzero().squeeze(1)
    if 2 * len(known) < len(norms):
        rule, told = "finite and above zero for at least half of the steps", f"{len(known)} of {len(norms)}"
        raise ValueError(message("norms", rule, told, "Leave out the part of the log without norms."))
    steps = torch.arange(len(norms))
    after = torch.searchsorted(known, steps).clamp(max=len(known) - 1)
    before = (torch.searchsorted(known, steps, right=True) - 1).clamp(min=0)
    span = (known[after] - known[before]).clamp(min=1)
    share = ((steps - known[before]).double() / span).clamp(0, 1)
    return torch.lerp(norms[known[before]], norms[known[after]], share)


def _running_median(norms: Tensor, smoothing: float) -> Tensor:
    half = int(smoothing * len(norms)) // 2
    values = norms.tolist()
    padded = [values[0]] * half + values + values[-2 : -2 - half : -1]
    window = sorted(padded[: 2 * half])
    medians = []
    for i in range(len(values)):
        insort(window, padded[i + 2 * half])
        medians.append(window[half])
        del window[bisect_left(window, padded[i])]
    return torch.tensor(medians, dtype=torch.float64)
