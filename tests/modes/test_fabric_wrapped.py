"""A Fabric loop needs no hook on torch's step, so a wrapper without any is no trouble there."""

from __future__ import annotations

from typing import Any

from helpers.tiny_modules import different, same_bits
from modes.hosts import fabric_loop
from modes.models import SGD
from modes.optimizers import Around

from lightning_calib import GradientClip


def around(params: Any) -> Around:
    return Around(SGD(params))


def test_clipping_works() -> None:
    clipped = [fabric_loop([GradientClip(0.1)], make) for make in (around, SGD)]
    same_bits(*([*held.parameters()] for held in clipped))
    with different("it clips"):
        same_bits([*clipped[0].parameters()], [*fabric_loop([], around).parameters()])
