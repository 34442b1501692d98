"""How a planted run is made: a case, a module that learns, and a quiet Trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from helpers.plain_recorder import PlainRecorder
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_calib.report.run import Run

Loss = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """One planted run.

    Attributes:
        name: ``<what>-<model>-<optimizer>``, in the table's words.
        fit: Trains with a recorder at the front of the callbacks.
        rows: A row is kept every so many steps.
        codes: Of a fault: the code that the first sentence must have, and any others that are as right; none of a
            healthy run.
        why: Why the others are as right; empty without others.
        layers: Of a fault of some layers: a part of the names of those that may be named; empty if any may.
        notes: Of a healthy run: notes that it should have.
        part: Whether it belongs to the short suite.
    """

    name: str
    fit: Callable[[PlainRecorder], None]
    rows: int = 5
    codes: tuple[str, ...] = ()
    why: str = ""
    layers: str = ""
    notes: tuple[str, ...] = ()
    part: bool = False

    def run(self, seed: int = 0, recorder_of: Callable[[int], Any] = PlainRecorder) -> list[Run]:
        """Trains; one `Run` for each optimizer."""
        torch.manual_seed(1000 + seed)
        recorder = recorder_of(self.rows)
        with quiet():
            self.fit(recorder)
        return recorder.runs()


class quiet:  # noqa: N801 - used as a function
    """Without Lightning's advice: about loaders, about a step without a loss, about what a fault does."""

    def __enter__(self) -> None:
        self.catching = warnings.catch_warnings()
        self.catching.__enter__()
        warnings.simplefilter("ignore")
        self.levels = {name: logging.getLogger(name).level for name in NOISY}
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *error: Any) -> None:
        self.catching.__exit__(*error)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)


NOISY = ("lightning.pytorch", "lightning.fabric", "lightning_calib")


class Learner(LightningModule):
    """A network, a loss and an optimizer; `change` may change a batch by the number of the step."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Any], Optimizer],
        loss: Loss = nn.functional.cross_entropy,
        change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        groups: Callable[[nn.Module], Any] | None = None,
        schedule: Callable[[Optimizer, int], Any] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.make, self.change, self.groups, self.schedule = optimizer, change, groups, schedule

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        x, y = batch
        if self.change is not None:
            x, y = self.change(self.trainer.global_step, x, y)
        return self.loss(self.net(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.groups(self.net) if self.groups else self.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(
    recorder: PlainRecorder,
    module: LightningModule,
    data: tuple[Tensor, Tensor],
    steps: int = 300,
    batch: int = 64,
    callbacks: Sequence[Callback] = (),
    validate: bool = False,
    **trainer: Any,
) -> None:
    """Trains for so many batches."""
    held_out = DataLoader(TensorDataset(*(part[-256:] for part in data)), 256) if validate else None
    train = TensorDataset(*(part[:-256] for part in data)) if validate else TensorDataset(*data)
    batches = DataLoader(train, batch, shuffle=True, drop_last=True)
    Trainer(
        max_epochs=trainer.pop("max_epochs", -(-steps // len(batches))),
        max_steps=trainer.pop("max_steps", -1),
        callbacks=recorder.around(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **trainer,
    ).fit(module, batches, held_out)


def sgd(lr: float = 0.1, momentum: float = 0.9, **rest: Any) -> Callable[[Any], Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum, **rest)


def adamw(lr: float = 1e-3, **rest: Any) -> Callable[[Any], Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr, **rest)


def muon(lr: float = 0.02, **rest: Any) -> Callable[[Any], Optimizer]:
    """Of matrices only."""
    return lambda parameters: torch.optim.Muon(list(parameters), lr, weight_decay=0.0, **rest)
