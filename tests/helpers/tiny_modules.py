"""Tiny modules whose data follow the step counter, so that a resumed run sees what an uninterrupted one saw."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

BATCHES = 7  # per epoch: neither 10 nor 20 steps end an epoch
SGD = partial(torch.optim.SGD, lr=0.05)


def data(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(16, 4, generator=generator, dtype=dtype)
    return x, torch.randn(16, 1, generator=generator, dtype=dtype)


def network() -> nn.Sequential:
    """Three matrices and three vectors; the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))


class Tiny(LightningModule):
    """Regression; `gains[step]` multiplies that step's loss, None returns no loss."""

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer] = SGD,
        gains: dict[int, float | None] | None = None,
        net: Callable[[], nn.Module] = network,
    ) -> None:
        super().__init__()
        self.net = net()
        self.optimizer, self.gains = optimizer, gains or {}

    def loss(self, net: nn.Module, step: int) -> Tensor:
        x, y = data(step, next(net.parameters()).dtype)
        return nn.functional.mse_loss(net(x), y) * self.gains.get(step, 1.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        step = self.trainer.global_step
        return None if self.gains.get(step, 1.0) is None else self.loss(self.net, step)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(BATCHES))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Cleans(Tiny):
    """Takes inf and NaN away after the callbacks, so that one bad step does not spoil the weights."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for p in self.parameters():
            p.grad.nan_to_num_(0, 0, 0)


class TwoNets(Tiny):
    """Manual optimization: two networks, two optimizers, one step of each per batch."""

    def __init__(self, first: Callable, second: Callable, gains: dict[int, float | None] | None = None) -> None:
        super().__init__(first, gains)
        self.other, self.second = network(), second
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        step = batches_that_stepped(self.trainer)
        losses = (partial(self.loss, self.net, step), partial(self.loss, self.other, step + 500))
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.net.parameters()), self.second(self.other.parameters())


class Rows(Logger):
    """A logger that keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = "rows"
    version = 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        ours = {tag: value for tag, value in metrics.items() if tag.startswith("calib")}
        if ours:
            self.rows.append((step, ours))

    def values(self, tag: str) -> list[float]:
        return [row[tag] for _, row in self.rows if tag in row]

    @property
    def steps(self) -> list[int | None]:
        return [step for step, _ in self.rows]

    @property
    def tags(self) -> set[str]:
        return {tag for _, row in self.rows for tag in row}


class Grads(Callback):
    """Copies the gradients at its place in the list, one list of tensors per optimizer step."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor | None]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self.seen.append([None if p.grad is None else p.grad.detach().to_dense().clone() for p in params])

    @property
    def norms(self) -> list[float]:
        return [norm(grads) for grads in self.seen]


def norm(tensors: Iterable[Tensor | None]) -> float:
    """Euclidean norm over all tensors, in float64."""
    squares = [t.double().square().sum().item() for t in tensors if t is not None]
    return math.sqrt(sum(squares))


def batches_that_stepped(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def scaled(init_scale: float = 2.0**16) -> list[MixedPrecision]:
    """Plugins for float16 with a loss scaler on the CPU."""
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))]


def make_trainer(callbacks: Iterable[Callback] = (), max_steps: int = 12, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 4}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return Trainer(callbacks=list(callbacks), max_steps=max_steps, **(quiet | kwargs))


def fit(module: LightningModule, callbacks: Iterable[Callback] = (), max_steps: int = 12, **kwargs: Any) -> Trainer:
    """Fits for `max_steps` optimizer steps; `ckpt_path` resumes."""
    ckpt_path = kwargs.pop("ckpt_path", None)
    trainer = make_trainer(callbacks, max_steps, **kwargs)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same_bits(actual: Any, expected: Any) -> None:
    """Equal to the last bit, NaN equal to NaN, through nested containers."""
    leaves, wanted = dict(_leaves(actual)), dict(_leaves(expected))
    assert list(leaves) == list(wanted)
    for path, value in leaves.items():
        if isinstance(value, (Tensor, float)):
            torch.testing.assert_close(
                value, wanted[path], rtol=0, atol=0, equal_nan=True, msg=lambda m, path=path: f"{path}: {m}"
            )
        else:
            assert value == wanted[path], path


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{path}[{key!r}]")
    else:
        yield path, value


@contextlib.contextmanager
def different(reason: str):
    """The two sides compared inside must not be equal, or the test could not fail."""
    try:
        yield
    except AssertionError:
        return
    raise AssertionError(f"equal, though {reason}")
