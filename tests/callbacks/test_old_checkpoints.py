"""Checkpoints written before the package was divided into steps, fit, dashboard and incidents still resume.

``tests/fixtures/*.ckpt`` are what commit 1bba2e2 saved in the middle of an epoch: ``window_open`` between two rows,
with every kind of state; ``row_due`` with two optimizers under a GradScaler, before our callbacks wrote the row of the
batch. They were written in a checkout of that commit by these lines, the rest being that of this file:

    for name in RUNS:
        run(name, END, saver=Saves(name))
"""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.callbacks_with_state import every
from helpers.event_files import Recorded
from helpers.tiny_modules import Tiny, TwoNets, different, fit, same_bits, scaled, weights
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_calib import (
    GradientMonitor,
    LearningRateControl,
    NonFiniteGuard,
    Percentile,
    SpikeBackoff,
    ZClip,
    ZScore,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*:UserWarning"),
]

FIXTURES = Path(__file__).parents[1] / "fixtures"
SGD = partial(torch.optim.SGD, lr=1.0)
ADAMW = partial(torch.optim.AdamW, lr=1e-2, fused=True)
END = 16
STOPS = {"window_open": 9, "row_due": 8}  # batches
GAINS = {3: math.nan, 6: 50.0, 8: math.nan, 11: 60.0}
LOSS_SCALE = 2.0**9
OVERFLOWS = {2: 1e9, 505: 1e9, 6: 20.0, 506: 30.0, 11: 30.0, 510: 1e9}  # from 500 on of the second network


def some() -> list[Any]:
    """What counts steps, and steps that were not taken."""
    return [
        NonFiniteGuard("skip"),
        LearningRateControl(SpikeBackoff(Percentile(50, warmup_steps=2))),
        ZClip(2.0, warmup_steps=3),
        GradientMonitor(2),
    ]


class Saves(Callback):
    """Writes a checkpoint at the end of a batch, before the callbacks behind it are told that the batch has ended."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop._batches_that_stepped + 1 == STOPS[self.name]:
            trainer.save_checkpoint(f"{self.name}.ckpt")


def run(name: str, end: int, saver: Any = None, **kwargs: Any) -> Any:
    """A fit over so many batches; returns the trainer and the module."""
    first, logger = [] if saver is None else [saver], TensorBoardLogger("logs", name=None)
    if name == "window_open":
        module, steps, callbacks = Tiny(SGD, GAINS), end, every(5, ZScore(4.0))
    else:
        module, steps, callbacks = TwoNets(SGD, ADAMW, OVERFLOWS), 2 * end, some()
        kwargs["plugins"] = scaled(LOSS_SCALE)
    return fit(module, [*first, *callbacks], steps, logger=logger, **kwargs), module


RUNS = tuple(STOPS)


def ends(trainer: Any, module: Any) -> list[Any]:
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    states = {one.state_key: one.state_dict() for one in trainer.callbacks}
    states["GradientMonitor"].pop("report")  # the old ones have none
    states.pop("SpikeGuard", None)  # nor had they seen it
    return [weights(module), optimizers, states, rows_behind_the_checkpoint(trainer)]


def rows_behind_the_checkpoint(trainer: Any) -> list[Any]:
    found = [one for one in Recorded(trainer.logger.log_dir).found if one.step >= min(STOPS.values())]
    return [one._replace(value=known_of_old(one)) for one in found]


def known_of_old(record: Any) -> Any:
    """Without the loss, of which the old ones know nothing, and what is said of it."""
    if record.tag.startswith("calib/globals"):
        return record.value[:15]
    if record.tag.startswith("calib/events"):
        return [event for event in record.value if event["kind"] != "summary"]
    return record.value


def same_arithmetic(name: str) -> bool:
    """Whether this machine comes to the checkpoint's weights, bit for bit; another processor need not."""
    run(name, STOPS[name] + 1, saver=Saves(name))
    here, there = (torch.load(path / f"{name}.ckpt", weights_only=True)["state_dict"] for path in (Path(), FIXTURES))
    return all(map(torch.equal, here.values(), there.values()))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_from_an_old_checkpoint_and_ends_where_one_that_never_stopped_ends(name, caplog):
    resumed = ends(*run(name, END, ckpt_path=str(FIXTURES / f"{name}.ckpt")))
    ours = [record for record in caplog.records if record.name.startswith("lightning_calib")]
    assert [record.getMessage() for record in ours if record.levelno > logging.INFO] == []
    straight = ends(*run(name, END))
    torch.testing.assert_close(resumed[0], straight[0], rtol=1e-3, atol=1e-5)  # any machine
    if same_arithmetic(name):
        same_bits(without_evidence(resumed), without_evidence(straight))


def without_evidence(value: Any) -> Any:
    """Without what the guard knows of the steps before: the checkpoint is older than that, and has none of it."""
    if isinstance(value, str):
        return re.sub(r" (Most likely|See docs).*", "", re.sub(r"the last finite norm [^;]*; ", "", value))
    if isinstance(value, dict):
        return {key: without_evidence(one) for key, one in value.items() if key not in ("norms", "steps")}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return type(value)(*map(without_evidence, value))
    return type(value)(map(without_evidence, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", RUNS)
def test_what_an_old_checkpoint_remembers_decides_how_the_run_ends(name):
    old = torch.load(FIXTURES / f"{name}.ckpt", weights_only=True)
    torch.save({**old, "callbacks": {}}, "forgetful.ckpt")
    resumed = ends(*run(name, END, ckpt_path="forgetful.ckpt"))
    straight = ends(*run(name, END))
    for one, other in zip((resumed[0], resumed[2], resumed[3]), (straight[0], straight[2], straight[3]), strict=True):
        with different("the callbacks have forgotten everything"):
            same_bits(one, other)
