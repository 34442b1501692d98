"""Where the row goes: TensorBoard, CSV, several loggers, none; and to the callbacks that watch it."""

from __future__ import annotations

import csv
from functools import partial

import pytest
from helpers.tiny_modules import Grads, Rows, Tiny, fit, make_trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD

from lightning_calib import GradientClip, GradientMonitor, ZClip


def _events(logger):
    accumulator = EventAccumulator(logger.log_dir)
    accumulator.Reload()
    return accumulator


def test_tensorboard_file_holds_the_numbers():
    grads, logger = Grads(), TensorBoardLogger("logs")
    fit(Tiny(), [grads, GradientClip(0.5), GradientMonitor()], logger=logger)
    logger.finalize("success")
    scalars = _events(logger).Scalars("calib/grad_norm_before")
    assert [event.step for event in scalars] == [3, 7, 11]
    assert [event.value for event in scalars] == pytest.approx(grads.norms[3::4], rel=1e-6)
    assert {"calib/grad_norm_after", "calib/clip_fraction", "calib/clip_threshold"} <= set(
        _events(logger).Tags()["scalars"]
    )


def test_csv_file_holds_the_numbers():
    grads, logger = Grads(), CSVLogger("logs")
    fit(Tiny(), [grads, GradientMonitor()], logger=logger)
    with open(f"{logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("calib/grad_norm_before")]
    assert [int(row["step"]) for row in rows] == [3, 7, 11]
    assert [float(row["calib/grad_norm_before"]) for row in rows] == pytest.approx(grads.norms[3::4], rel=1e-6)


def test_every_logger_gets_the_same_row_once():
    first, second = Rows(), Rows()
    fit(Tiny(), [ZClip(), GradientClip(0.5), GradientMonitor()], logger=[first, second])
    assert first.rows == second.rows
    assert first.steps == [3, 7, 11]


def test_values_are_plain_floats():
    rows = Rows()
    fit(Tiny(), [GradientClip(0.5), GradientMonitor()], logger=rows)
    assert {type(value) for _, row in rows.rows for value in row.values()} <= {float, int}


def test_same_steps_as_lightnings_own_monitor():
    class Steps(Rows):
        def log_metrics(self, metrics, step=None):
            super().log_metrics(metrics, step)
            if any(tag.startswith("lr-") for tag in metrics):
                self.theirs.append(step)

    rows = Steps()
    rows.theirs = []
    fit(Tiny(), [LearningRateMonitor("step"), GradientMonitor()], 20, logger=rows)
    assert rows.steps == rows.theirs == [3, 7, 11, 15, 19]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"logger": False},
        {"logger": []},
        {"fast_dev_run": 3, "max_steps": -1, "logger": True},
        {"barebones": True, "logger": None, "enable_checkpointing": None, "log_every_n_steps": None, "callbacks": None},
    ],
    ids=["none", "empty", "fast_dev_run", "barebones"],
)
@pytest.mark.filterwarnings("ignore")
def test_trains_without_a_logger(kwargs):
    callbacks = [ZClip(warmup_steps=2), GradientClip(0.5), GradientMonitor()]
    module = Tiny()
    if kwargs.get("barebones"):
        kwargs = kwargs | {"enable_progress_bar": None, "enable_model_summary": None}
        kwargs.pop("callbacks")
    trainer = make_trainer(callbacks, **{"max_steps": 12, **kwargs})
    trainer.fit(module)
    assert trainer.global_step > 0
    assert callbacks[-1].summary()


def test_acting_alone_is_visible():
    rows = Rows()
    fit(Tiny(), [ZClip(1.0, warmup_steps=2)], logger=rows)
    assert rows.steps == [3, 7, 11]
    assert {"calib/clip_fraction", "calib/clip_threshold"} <= rows.tags


def test_callback_metrics_are_filled():
    grads = Grads()
    trainer = fit(Tiny(), [grads, GradientMonitor()])
    assert float(trainer.callback_metrics["calib/grad_norm_before"]) == pytest.approx(grads.norms[11], rel=1e-6)


class Validated(Tiny):
    def validation_step(self, batch, batch_idx):
        return None

    def val_dataloader(self):
        return self.train_dataloader()


def test_early_stopping_watches_the_norm():
    stopper = EarlyStopping("calib/grad_norm_before", patience=1000, divergence_threshold=100.0, mode="min")
    module = Validated(partial(SGD, lr=1e-4), {13: 1e5})
    trainer = fit(module, [GradientMonitor(1), stopper], 40)
    assert trainer.global_step == 14


def test_model_checkpoint_watches_the_norm():
    grads = Grads()
    saver = ModelCheckpoint("saved", monitor="calib/grad_norm_before", mode="max", every_n_train_steps=4, save_top_k=1)
    fit(Tiny(gains={7: 50.0}), [grads, GradientMonitor(), saver], enable_checkpointing=True)
    assert float(saver.best_model_score) == pytest.approx(grads.norms[7], rel=1e-6)
    assert "step=8" in saver.best_model_path
