"""LightningCLI: every callback, policy and rule is configured in config.yaml; this file says nothing of them.

python examples/cli/main.py fit --config examples/cli/config.yaml
python examples/cli/main.py fit --config examples/cli/config.yaml --print_config     what would run, defaults included
python examples/cli/main.py fit --config examples/cli/config.yaml --trainer.max_epochs 1
python examples/cli/main.py test --config examples/cli/config.yaml --ckpt_path PATH
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import os
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from lightning_calib import GradientMonitor

HELD_OUT = 359  # of 1,797 images, for validation and for the test
SPLIT_SEED = 1  # the same images in every run, whatever `seed_everything` says


class Digits(LightningDataModule):
    """Scikit-learn's 8x8 digits, which need no download.

    Args:
        batch_size: Images per step.
    """

    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.batch_size = batch_size
        digits = load_digits()
        images = TensorDataset(torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target))
        sizes = [len(images) - HELD_OUT, HELD_OUT]
        self.train, self.held_out = random_split(images, sizes, torch.Generator().manual_seed(SPLIT_SEED))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, 256)

    test_dataloader = val_dataloader


class Perceptron(LightningModule):
    """One hidden layer. The optimizer and its schedule come from the configuration.

    Args:
        width: Hidden units.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, tag: str = "val/accuracy") -> None:
        self.accuracy(self.head(self.body(batch[0])), batch[1])
        self.log(tag, self.accuracy, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, "test/accuracy")


def nearest_mean(data: Digits) -> float:
    """The trivial baseline: each held-out image gets the class whose mean training image is nearest."""
    (images, labels), (unseen, wanted) = data.train[:], data.held_out[:]
    means = torch.stack([images[labels == c].mean(0) for c in range(10)])
    return float((torch.cdist(unseen, means).argmin(1) == wanted).float().mean())


def main(args: Sequence[str] | None = None) -> LightningCLI:
    """Runs the sub-command, and says what the gradients did."""
    # The images are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # between Lightning 2.6 and jsonargparse 4.53
    # 50 lines of usage would stand before the sentence that says what is wrong in the configuration.
    short: dict[str, Any] = {name: {"usage": SUPPRESS} for name in ("fit", "validate", "test", "predict")}
    cli = LightningCLI(Perceptron, Digits, args=args, parser_kwargs=short)
    for name in ("val/accuracy", "test/accuracy"):
        if name in (found := cli.trainer.callback_metrics):
            print(f"{name} {found[name]:.4f} (trivial baseline: nearest class mean {nearest_mean(cli.datamodule):.4f})")
    for monitor in (
        one for one in cli.trainer.callbacks if isinstance(one, GradientMonitor) and cli.subcommand == "fit"
    ):
        print(monitor.summary())
        print("to see the charts: tensorboard --logdir lightning_logs")
    return cli


if __name__ == "__main__":
    main()
