"""What the diffs of the documentation take as given: a model, data, and names that every Lightning script has."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch import nn
from torch.utils.data import DataLoader


class Model(BoringModel):
    """One that brings its data along, few of them."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(RandomDataset(32, 16))


def given() -> dict[str, object]:
    """Fresh for each program."""
    torch.manual_seed(0)
    return {
        "__name__": "block",
        "torch": torch,
        "nn": nn,
        "F": nn.functional,
        "LightningModule": LightningModule,
        "Trainer": Trainer,
        "Model": Model,
        "model": Model(),
        "data": DataLoader(RandomDataset(32, 64), batch_size=8),
    }
