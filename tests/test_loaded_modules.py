"""What is loaded when: a hundred modules of TensorBoard only by a run that writes for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

TENSORBOARD = ("tensorboard", "torch.utils.tensorboard", "lightning_calib.dashboard")
FIT = """
import warnings
warnings.simplefilter("ignore")
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_calib import GradientMonitor
class Late(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.loggers = [{logger}]  # what Lightning has not opened yet
trainer = Trainer(
    accelerator="cpu", max_steps=2, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
    limit_val_batches=0, enable_checkpointing=False, logger=CSVLogger("."),
    callbacks=[Late(), GradientMonitor(layers={layers})],
)
trainer.fit(BoringModel())
"""


def loaded(code: str) -> set[str]:
    """What is loaded of TensorBoard, and of our part that writes for it, when a program has run."""
    code += "\nimport sys\nprint('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.splitlines()[-1].split()
    assert names[0] == "loaded"
    return {name for name in names if name.startswith(TENSORBOARD)}


def test_a_callback_loads_nothing_of_tensorboard() -> None:
    assert loaded("from lightning_calib import ZClip") - loaded("import lightning.pytorch") == set()


def test_a_monitor_loads_nothing_of_it_for_another_logger() -> None:
    assert loaded(FIT.format(logger="CSVLogger('.')", layers=True)) == set()


@pytest.mark.parametrize("layers", [True, False])
def test_a_monitor_loads_the_dashboard_for_a_tensorboard_logger_and_layers(layers) -> None:
    found = loaded(FIT.format(logger="TensorBoardLogger('.')", layers=layers))
    assert "torch.utils.tensorboard" in found, "loaded by the logger"
    assert ("lightning_calib.dashboard.recorder" in found) == layers
