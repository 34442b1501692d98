"""Optimizers, their views and a session of callbacks, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_calib.dashboard.recorder import Recorder
from lightning_calib.fit.participant import Needs, Participant
from lightning_calib.fit.session import Session
from lightning_calib.steps.counts import ClipCounts
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.saved_state import Losses, to_host
from lightning_calib.steps.step_record import Fired, Phase, StepRecord

SGD = partial(torch.optim.SGD, lr=0.1)
ELEMENTS = 11  # of `network`


def network() -> nn.Sequential:
    """Two matrices and two vectors of ones."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for tensor in net.parameters():
        nn.init.ones_(tensor)
    return net


def give(module: nn.Module, value: float | None) -> None:
    """The same gradient in each element, or none; its norm is value * sqrt(ELEMENTS)."""
    for tensor in module.parameters():
        tensor.grad = None if value is None else torch.full_like(tensor, value)


def bare_run(
    make: Callable[..., torch.optim.Optimizer] = SGD, gradient: float | None = 1.0, scaler: Any = None, **kwargs: Any
) -> OptimizerRun:
    """One optimizer in a step that has begun; its module is ``run.view.module``."""
    net = network()
    view = GradientView(0, make(net.parameters()), net, **{"suffix": "", "units": False, "scaler": scaler, **kwargs})
    give(net, gradient)
    view.begin_step()
    return OptimizerRun.of(view)


def judged(run: OptimizerRun, **fields: Any) -> StepRecord:
    """A live, logged step that all callbacks have seen."""
    norm = run.view.norm() if run.view.has_gradient else None
    plain = {"phase": Phase.JUDGED, "live": True, "logged": True, "norm_before": norm, "norm_left": norm}
    return StepRecord(**{**plain, **fields})


def frozen(memory: OptimizerMemory) -> list[Any]:
    """The bits of now, whatever is written into the memory's tensors later."""
    clips = {key: to_host(counts._asdict()) for key, counts in memory.clips.items()}
    norms = None if memory.norms is None else to_host(memory.norms._asdict())
    return [to_host(memory.steps._asdict()), clips, norms, None if memory.tab is None else memory.tab.saved()]


class Clip(Participant):
    """Clips the whole norm to a number, and keeps count as our callbacks do."""

    def __init__(self, limit: float = 1.0, *, acts: bool = True, key: str = "Clip", **needs: Any) -> None:
        self.limit, self.key = limit, key
        self._needs = Needs(acts=acts, clips="fixed", **needs)
        self.refused: list[str] = []
        self.saw: list[Tensor] = []  # the norm at its turn

    @property
    def state_key(self) -> str:
        return self.key

    def _prepare(self, view: GradientView, memory: OptimizerMemory) -> OptimizerMemory:
        return memory._replace(clips={self.key: ClipCounts.empty(), **memory.clips})

    def _act(self, view: GradientView, record: StepRecord) -> StepRecord:
        norm = view.norm()
        self.saw.append(norm)
        if self._needs.acts:
            view.rescale((self.limit / norm).clamp(max=1).reshape(1))
        return record._replace(fired=(*record.fired, Fired(self.key, norm > self.limit, acted=self._needs.acts)))

    def _refuse(self, reason: str) -> None:
        if self._needs.acts:
            raise RuntimeError(reason)
        self.refused.append(reason)


class Watches(Participant):
    """Wants all scalars, and does nothing."""

    def __init__(self, **needs: Any) -> None:
        self._needs = Needs(acts=False, full_row=True, **needs)
        self.refused: list[str] = []

    def _refuse(self, reason: str) -> None:
        self.refused.append(reason)


class Tab(Watches):
    """Wants the tab's records, as GradientMonitor does."""

    def __init__(self, writers: Sequence[Any] = (), *, histograms: bool = True, saved: Any = None) -> None:
        super().__init__()
        self.told: list[str] = []
        self.losses = Losses()
        self._recorder = Recorder(
            list(writers), histograms=histograms, saved=saved or {}, losses=self.losses, warn=self.told.append
        )

    def _prepare(self, view: GradientView, memory: OptimizerMemory) -> OptimizerMemory:
        return memory if memory.norms is not None else memory._replace(norms=NormHistory.empty(view.plan))


class Foreign:
    """A callback of somebody else's, which multiplies the gradients, or takes them away."""

    def __init__(self, factor: float | None) -> None:
        self.factor = factor

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        for tensor in (one for group in optimizer.param_groups for one in group["params"]):
            tensor.grad = None if self.factor is None or tensor.grad is None else tensor.grad * self.factor


class BareFit:
    """What Lightning does in a fit, step by step; each optimizer has a network of its own.

    Args:
        callbacks: Ours and others', in the order of the list.
        optimizers: How each is made.
        manual: Manual optimization.
        scaler: A GradScaler.
        options: Of the Trainer.
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        optimizers: Sequence[Callable[..., torch.optim.Optimizer]] = (SGD,),
        *,
        manual: bool = False,
        scaler: Any = None,
        **options: Any,
    ) -> None:
        self.nets = [network() for _ in optimizers]
        self.module: Any = nn.ModuleList(self.nets)
        self.module.automatic_optimization = not manual
        self.scaler = scaler
        plain = {
            "optimizers": [make(net.parameters()) for make, net in zip(optimizers, self.nets, strict=True)],
            "callbacks": list(callbacks),
            "gradient_clip_val": None,
            "gradient_clip_algorithm": None,
            "precision_plugin": SimpleNamespace(scaler=scaler),
            "log_every_n_steps": 2,
            "fast_dev_run": False,
            "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0)),
            "world_size": 1,
            "accumulate_grad_batches": 1,
            "loggers": [],
            "callback_metrics": {},
        }
        self.trainer: Any = SimpleNamespace(**{**plain, **options})
        self.session = Session(self.trainer, self.module, [one for one in callbacks if isinstance(one, Participant)])
        self.session.prepare_all()
        self.session.attach()

    def run(self, index: int = 0) -> OptimizerRun:
        return self.session.runs[id(self.trainer.optimizers[index])]

    def step(self, gradient: float | None = 1.0, index: int = 0, passes: int = 1) -> None:
        """One optimizer step, whose gradient is the same in every element."""
        optimizer = self.trainer.optimizers[index]
        if self.scaler is None:
            optimizer.step(lambda: self._closure(gradient, index, passes))
            return
        self._closure(gradient, index, passes)
        self.scaler.step(optimizer)
        self.scaler.update()

    def _closure(self, gradient: float | None, index: int, passes: int) -> None:
        optimizer = self.trainer.optimizers[index]
        give(self.nets[index], gradient)
        if self.scaler is not None:
            factor = float(self.scaler.scale(torch.ones(())))
            give(self.nets[index], None if gradient is None else gradient * factor)
            if not getattr(optimizer, "_step_supports_amp_scaling", False):
                self.scaler.unscale_(optimizer)
        self.session.backwards += passes
        with torch.no_grad():
            for callback in self.trainer.callbacks:
                if isinstance(callback, Participant):
                    self.session.turn(callback, optimizer)
                else:
                    callback.on_before_optimizer_step(self.trainer, self.module, optimizer)

    def end_batch(self) -> None:
        self.session.end_batch()
        self.trainer.fit_loop.epoch_loop._batches_that_stepped += 1

    def batch(self, gradient: float | None = 1.0) -> None:
        """A batch with one step of each optimizer."""
        for index in range(len(self.nets)):
            self.step(gradient, index)
        self.end_batch()


class Written:
    """A logger that keeps what it is handed."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))
