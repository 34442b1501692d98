"""Short runs on real digits that go wrong in ways that people meet, for docs/gallery.md.

An RNN that explodes; an image without contrast, whose normalisation divides by zero; a branch whose bias is set so
low that its ReLU never opens; and one network at three learning rates.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_calib import GradientMonitor, NonFiniteGuard

BLANK = 700  # which image has no contrast
SHUT = -20.0  # a bias below everything that a layer adds to it


class Classifier(LightningModule):
    """A network, an optimizer, and how many steps its rate is warmed up."""

    def __init__(self, net: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer], warm_up: int = 0) -> None:
        super().__init__()
        self.net, self.optimizer, self.warm_up = net, optimizer, warm_up

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if not self.warm_up:
            return optimizer
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=self.warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PixelByPixel(nn.Module):
    """Reads the 64 pixels one after the other; ReLU does not bound its state."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, width, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(width, 10)
        nn.init.eye_(self.rnn.weight_hh_l0)  # so that the state is kept (Le, Jaitly and Hinton, 2015)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.rnn(images.flatten(1).unsqueeze(2))
        return self.head(states[:, -1])


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def branches(shut: int | None = None) -> nn.Sequential:
    """Three residual blocks, of which one may be shut."""
    blocks = [Residual() for _ in range(3)]
    if shut is not None:
        nn.init.constant_(blocks[shut].up.bias, SHUT)
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(64, 10))


def convolutional() -> nn.Sequential:
    """Two convolutions."""
    first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def digits(*, blank: bool = False) -> DataLoader[Any]:
    """scikit-learn's, each image with mean 0 and deviation 1: with ``blank`` one of them has no contrast."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    if blank:
        images[BLANK] = 7.0
    flat = images.flatten(1)
    scaled = (images - flat.mean(1)[:, None, None, None]) / flat.std(1)[:, None, None, None]
    return DataLoader(TensorDataset(scaled, torch.tensor(found.target)), batch_size=32, shuffle=True)


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def adam(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


class Run(NamedTuple):
    """What is trained, on what, for how many epochs of 57 steps."""

    module: LightningModule
    data: DataLoader[Any]
    callbacks: tuple[Callback, ...] = ()
    epochs: int = 8


RUNS: dict[str, Callable[[], Run]] = {
    "rnn": lambda: Run(Classifier(PixelByPixel(), sgd(1e-2), warm_up=400), digits(), epochs=4),
    "blank-image": lambda: Run(Classifier(convolutional(), adam(1e-3)), digits(blank=True), (NonFiniteGuard("skip"),)),
    "shut-branch": lambda: Run(Classifier(branches(shut=1), adam(1e-3)), digits()),
    "rates/0.3": lambda: Run(Classifier(branches(), sgd(0.3)), digits()),
    "rates/0.00003": lambda: Run(Classifier(branches(), sgd(3e-5)), digits()),
    "rates/0.03": lambda: Run(Classifier(branches(), sgd(0.03)), digits()),
}


def train(name: str, logs: Path) -> None:
    """One of the runs, in this process; nothing if its logs are there."""
    if (logs / name).exists():
        return
    seed_everything(0)
    run = RUNS[name]()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(
        max_epochs=run.epochs,
        callbacks=[*run.callbacks, GradientMonitor(histograms=True)],
        logger=TensorBoardLogger(logs, name="", version=name),
        log_every_n_steps=2,
        accelerator="cpu",
        **quiet,
    ).fit(run.module, run.data)
