"""What to tell where a learning-rate rule is meant for another learning rate than the optimizer has."""

from collections.abc import Mapping
from math import inf, isclose
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_calib.schedules.rule import LearningRateRule

_KEYS = ("max_lr", "initial_lr", "lr")  # OneCycleLR's peak, the rate before any other schedule, the rate without one


def base_rate(group: Mapping[str, Any]) -> float | None:
    """The learning rate that a param group's schedule varies: neither a warm-up's first nor a resumed run's last one.

    Returns:
        None for a group that has none.
    """
    found = (group.get(key) for key in _KEYS)
    numbers = (one for one in found if isinstance(one, (int, float)) or (isinstance(one, Tensor) and one.numel() == 1))
    rate = next(numbers, None)
    return None if rate is None else float(rate)


def doubt_of_rate(rule: LearningRateRule, optimizer: Optimizer, max_factor: float) -> str | None:
    """What to tell where the rule is meant for another learning rate than the optimizer's; None where it fits."""
    wanted = rule.meant_for
    if wanted is None:
        return None
    rates = [base_rate(group) for group in optimizer.param_groups if group["params"]]
    others = sorted({rate for rate in rates if rate is not None and not isclose(rate, wanted.rate, rel_tol=1e-6)})
    if not others:
        return None
    kind, name = type(rule).__name__, type(optimizer).__name__
    have = " and ".join(f"lr={rate:g}" for rate in others)
    open_cap = "math.inf" if wanted.max_factor == inf else f"{wanted.max_factor}"
    cap = f" and max_factor={open_cap}" if max_factor != wanted.max_factor else ""
    return (
        f"{kind} is meant for {wanted.optimizer} with lr={wanted.rate}, as it computes the whole step; {name} has "
        f"{have}, by which every step is multiplied. Use {wanted.optimizer} with lr={wanted.rate}{cap}, or a rule that "
        "corrects the learning rate you chose, such as SpikeBackoff()."
    )
