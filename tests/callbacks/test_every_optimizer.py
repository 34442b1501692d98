"""Every optimizer of torch, and those of a library with over a hundred, with a row on every step.

What observes leaves the bits of a run without it; what acts, but finds nothing to do, as well; or the optimizer is
refused by name.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from helpers.rate_probes import Always
from helpers.tiny_modules import Rows, Tiny, different, fit, network, same_bits, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_calib import GradientMonitor, LearningRateControl, NonFiniteGuard, SpikeBackoff, ZClip

STEPS = 12
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
CALLBACKS: dict[str, Callable[[], Any]] = {
    "GradientMonitor": GradientMonitor,
    "NonFiniteGuard": partial(NonFiniteGuard, "skip"),
    "ZClip": partial(ZClip, z_max=1e6),
    "LearningRateControl": partial(LearningRateControl, SpikeBackoff()),
}


def matrices() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))


class Looked(nn.Module):
    """Rows of a table, which has sparse gradients, chosen by the input's signs."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(16, 1, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(((x > 0) * torch.tensor([1, 2, 4, 8])).sum(1))


def plain(kind: type) -> Callable[[Iterable[Tensor]], Any]:
    return lambda params: kind(params) if optional(kind, "lr") else kind(params, lr=0.01)


def optional(kind: type, argument: str) -> bool:
    found = inspect.signature(kind.__init__).parameters.get(argument)
    return found is None or found.default is not inspect.Parameter.empty


def split(kind: type) -> Callable[[Iterable[Tensor]], Any]:
    """One class for two methods: matrices, and the rest."""

    def make(params: Iterable[Tensor]) -> Any:
        params = list(params)
        groups = [{"params": [p for p in params if (p.ndim > 1) == muon], "use_muon": muon} for muon in (True, False)]
        return kind(groups)

    return make


def around(kind: type, inner: Callable[..., Any] = SGD, **options: Any) -> Callable[[Iterable[Tensor]], Any]:
    return lambda params: kind(inner(params), **options)


def scheduled_free(params: Iterable[Tensor]) -> Any:
    optimizer = pytorch_optimizer.ScheduleFreeWrapper(SGD(params))
    optimizer.train()
    return optimizer


def found(library: Any, without: Iterable[str]) -> dict[str, type]:
    kinds = {name: kind for name, kind in vars(library).items() if inspect.isclass(kind)}
    optimizers = {name: kind for name, kind in kinds.items() if issubclass(kind, torch.optim.Optimizer)}
    return {name: optimizers[name] for name in sorted(optimizers) if name not in without}


BY_MUON = ("AdaGO", "AdaMuon", "Muon", "MuonClip", "NorMuon")
WRAPPERS = ("Lookahead", "Magma", "OrthoGrad", "PCGrad")
LEFT_OUT = {
    "AdaHessian": "wants `backward(create_graph=True)`",
    "AdaLOMO": "wants the module and a backward pass of its own",
    "AdamMini": "wants the module",
    "BSAM": "fails on several tensors",
    "DeMo": "wants another package",
    "DistributedMuon": "wants a process group",
    "GSAM": "wants the module and a schedule",
    "LOMO": "wants the module and a backward pass of its own",
    "SafeFP16Optimizer": "has no param groups, so Lightning refuses it",
    "SophiaH": "wants `backward(create_graph=True)`",
    "WSAM": "wants the module",
}
TORCH = {name: plain(kind) for name, kind in found(torch.optim, ("Optimizer",)).items()}
OTHERS = {name: plain(kind) for name, kind in found(pytorch_optimizer, LEFT_OUT).items()}
OTHERS |= {name: split(getattr(pytorch_optimizer, name)) for name in BY_MUON}
OTHERS |= {name: around(getattr(pytorch_optimizer, name)) for name in WRAPPERS}
OTHERS |= {
    "FriendlySAM": partial(pytorch_optimizer.FriendlySAM, base_optimizer=torch.optim.SGD, lr=0.01),
    "LookSAM": partial(pytorch_optimizer.LookSAM, base_optimizer=torch.optim.SGD, lr=0.01),
    "Ranger21": partial(pytorch_optimizer.Ranger21, num_iterations=STEPS),
    "SAM": partial(pytorch_optimizer.SAM, base_optimizer=torch.optim.SGD, lr=0.01),
    "ScheduleFreeWrapper": scheduled_free,
    "TRAC": around(pytorch_optimizer.TRAC, s_prev=0.1),
}
MAKERS = {f"torch.{name}": make for name, make in TORCH.items()} | OTHERS
NETS = {"torch.Muon": matrices, "SpectralSphere": matrices, "torch.SparseAdam": Looked}

SEVERAL = "evaluates the gradient several times per step"
NO_RATE = "`lr` must be a number or a tensor"
REFUSED = {(name, one): SEVERAL for name in ("torch.LBFGS", "LBFGS") for one in CALLBACKS if one != "GradientMonitor"}
REFUSED |= {(name, "LearningRateControl"): NO_RATE for name in ("A2Grad", "AliG")}
REFUSED |= {("torch.Rprop", "LearningRateControl"): "before the gradients are known"}


def trained(name: str, callbacks: Iterable[Any]) -> tuple[list[Tensor], Any, Rows]:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    module, rows = Tiny(MAKERS[name], net=NETS.get(name, network)), Rows()
    trainer = fit(module, callbacks, STEPS, logger=rows, log_every_n_steps=1)
    return weights(module), trainer, rows


@cache
def bare(name: str) -> list[Tensor]:
    return trained(name, [])[0]


def test_there_are_many() -> None:
    assert len(TORCH) >= 14
    assert len(OTHERS) >= 100


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("name", MAKERS)
def test_as_bare_or_refused_by_name(name: str, callback: str) -> None:
    if (name, callback) in REFUSED:
        with pytest.raises(MisconfigurationException) as refused:
            trained(name, [CALLBACKS[callback]()])
        assert all(word in str(refused.value) for word in (callback, name.split(".")[-1], REFUSED[name, callback]))
        return
    left, trainer, rows = trained(name, [CALLBACKS[callback]()])
    same_bits(left, bare(name))
    if name.endswith("LBFGS"):
        assert not rows.rows, "it falls silent"
        return
    assert len(rows.values("calib/grad_norm_before")) == STEPS
    if callback in ("GradientMonitor", "LearningRateControl"):
        rated = isinstance(trainer.optimizers[0].param_groups[0].get("lr"), (int, float))
        assert len(rows.values("calib/lr")) == len(rows.values("calib/lr_effective")) == STEPS * rated
    if callback in ("GradientMonitor", "NonFiniteGuard"):
        assert rows.values("calib/skipped_total") == [0] * STEPS, "every step was taken"
        assert rows.values("calib/nonfinite_total") == [0] * STEPS


# Whose update does not use the rate in its param group: with a step size of its own, in its warm-up, or not at all in
# a network as small as this one.
HEEDLESS = ("AdaFactor", "ApolloDQN", "SaRA")


@pytest.mark.parametrize("name", [one for one in MAKERS if (one, "LearningRateControl") not in REFUSED])
def test_half_the_rate_is_another_run(name: str) -> None:
    left, _, _ = trained(name, [LearningRateControl(Always((0.5,)))])
    if name in HEEDLESS:
        same_bits(left, bare(name))
    else:
        with different("the rate is halved"):
            same_bits(left, bare(name))
