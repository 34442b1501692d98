"""Validation accuracy on scikit-learn's digits with running averages and with exact statistics, by batch size.

python benchmarks/precise_batch_norm.py    prints the table of docs/methods/precise-batch-norm.md; three minutes
"""

import logging
import warnings
from statistics import mean, stdev
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_calib.callbacks.precise_batch_norm import PreciseBatchNorm

SEEDS, EPOCHS = (0, 1, 2), 8
SETTINGS = [(4, 0.01, False), (4, 0.01, True), (64, 0.05, False), (64, 0.05, True), (449, 0.2, False)]


class Digits(LightningModule):
    def __init__(self, rate: float, decays: bool) -> None:
        super().__init__()
        self.rate, self.decays = rate, decays
        norms = [nn.BatchNorm2d(width) for width in (16, 32, 32)]
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), norms[0], nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), norms[1], nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), norms[2], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(32, 10),
        )  # fmt: skip
        self.accuracies: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.accuracies.append(100 * float((self.net(batch[0]).argmax(1) == batch[1]).float().mean()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return ([optimizer], [{"scheduler": schedule, "interval": "step"}]) if self.decays else optimizer


def run(seed: int, batch_size: int, rate: float, decays: bool, callbacks: list[Callback]) -> list[float]:
    seed_everything(seed, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1347, 450])
    module = Digits(rate, decays)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", enable_model_summary=False, callbacks=callbacks, **quiet)
    trainer.fit(module, DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(val, 450))
    return module.accuracies


def table() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_calib").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    for batch_size, rate, decays in SETTINGS:
        cells = [str(batch_size), f"{rate:g}{' to 0' if decays else ''}"]
        plain = [run(seed, batch_size, rate, decays, []) for seed in SEEDS]
        exact = [run(seed, batch_size, rate, decays, [PreciseBatchNorm(num_batches=400)]) for seed in SEEDS]
        for pick in (lambda epochs: epochs[0], lambda epochs: min(epochs[1:]), lambda epochs: epochs[-1]):
            for runs in (plain, exact):
                values = [pick(epochs) for epochs in runs]
                cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    table()
