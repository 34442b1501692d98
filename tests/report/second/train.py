"""How a run of the second suite is made, and what says whether it learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from helpers.plain_recorder import PlainRecorder
from lightning.pytorch import LightningModule
from report.planted.fit import Case, Learner, Loss, fit
from torch import Tensor, nn

HELD_OUT = 512


class Outcome(NamedTuple):
    """The loss, or another number of which less is better, on held-out data, as the author would look at it."""

    before: float
    after: float


class Fault(NamedTuple):
    """A planted fault, and the same training without it."""

    case: Case
    twin: Callable[[PlainRecorder], Outcome]


def fault(
    name: str,
    make: Callable[..., Outcome],
    *codes: str,
    wrong: dict[str, Any],
    right: dict[str, Any] | None = None,
    rows: int = 10,
    why: str = "",
    layers: str = "",
) -> Fault:
    case = Case(name, partial(make, **wrong), rows, codes, why, layers)  # type: ignore[arg-type]
    return Fault(case, partial(make, **(right or {})))


def held_out_loss(net: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> float:
    was, _ = net.training, net.eval()
    with torch.no_grad():
        found = float(loss(net(x), y).mean())
    net.train(was)
    return found


def train(
    recorder: PlainRecorder,
    net: nn.Module,
    data: tuple[Tensor, Tensor],
    optimizer: Any = None,
    loss: Loss = nn.functional.cross_entropy,
    *,
    module: LightningModule | None = None,
    judge: Loss | None = None,
    change: Any = None,
    groups: Any = None,
    schedule: Any = None,
    **rest: Any,
) -> Outcome:
    """Trains on all but the last examples; `judge` is the loss on those, where it is not the one of the training."""
    (x, y), judge = data, judge or loss
    module = module or Learner(net, optimizer, loss, change, groups, schedule)
    before = held_out_loss(net, judge, x[-HELD_OUT:], y[-HELD_OUT:])
    fit(recorder, module, (x[:-HELD_OUT], y[:-HELD_OUT]), **rest)
    return Outcome(before, held_out_loss(net, judge, x[-HELD_OUT:], y[-HELD_OUT:]))
