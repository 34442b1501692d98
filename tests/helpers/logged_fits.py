"""Fits whose event files are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_calib import GradientMonitor


def logged_fit(module: LightningModule, steps: int, folder: Path | str = "logs", **arguments: Any) -> GradientMonitor:
    """Train with a monitor that writes into that folder; the monitor comes back."""
    monitor = GradientMonitor(layers=arguments.pop("layers", True))
    callbacks = arguments.pop("callbacks", [])
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": steps,
            "log_every_n_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "limit_val_batches": 0,
            "logger": TensorBoardLogger(".", name=None, version=str(folder)),
        }
        | {key: value for key, value in arguments.items() if key != "ckpt_path"},
        callbacks=[*callbacks, monitor],
    )
    trainer.fit(module, ckpt_path=arguments.get("ckpt_path"))
    return monitor
