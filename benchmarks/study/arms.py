"""The callbacks and optimizers of the arms, as users type them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback

from lightning_calib import AGC, GradientClip, Percentile, ZClip, ZScore

# Each takes the cell's threshold. "clip" is not here: it is the Trainer's own argument.
WAYS: dict[str, Callable[[float | None], list[Callback]]] = {
    "none": lambda threshold: [],
    "clip": lambda threshold: [],
    "ZClip": lambda threshold: [ZClip()],
    "AGC": lambda threshold: [AGC()],
    "AGC-all": lambda threshold: [AGC(exclude=())],
    "percentile": lambda threshold: [GradientClip(Percentile())],
    "head": lambda threshold: [GradientClip(ZScore(), rules={"net.head.*": threshold})],
}
OURS = {"ZClip", "AGC", "AGC-all", "percentile", "head"}  # whose cut the report states

OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, rate, momentum=0.9),
    "plain-sgd": lambda parameters, rate: torch.optim.SGD(parameters, rate),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, rate),
    "adagrad": lambda parameters, rate: torch.optim.Adagrad(parameters, rate),
}
