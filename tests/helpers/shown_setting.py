"""What the diffs of the documentation take as given: a model, data, and names that every Lightning script has."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch import nn
from torch.utils.data import DataLoader


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
        "Model": BoringModel,
        "model": BoringModel(),
        "data": DataLoader(RandomDataset(32, 64), batch_size=8),
    }
