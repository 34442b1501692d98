"""Shadows in event files: the report of the files alone has the same ones."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import torch
from helpers.event_files import Recorded
from helpers.tiny_modules import SGD, Tiny, TwoNets, fit, same_bits
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_calib import AGC, AdaGC, GradientClip, GradientMonitor, MaxNorm, Report, ZScore, read_events
from lightning_calib.cli import main
from lightning_calib.tensorboard.about import parse
from lightning_calib.tensorboard.contract import SHADOW_COLUMNS
from lightning_calib.tensorboard.event_runs import runs_of
from lightning_calib.tensorboard.refused import Refused

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]
SPIKES = {5: 20.0, 9: 0.05, 15: 30.0, 16: 8.0}
EVERY = [MaxNorm(0.4), ZScore(1.2, warmup_steps=4), AGC(0.05), AdaGC(warmup_steps=3, warmup_max_norm=0.5)]


def run(steps: int, module: Any = None, shadow: Any = EVERY, every: int = 4, **kinds: Any) -> tuple[Any, Any, Any]:
    """The trainer, the monitor, and the folder of the event files."""
    logger, monitor = TensorBoardLogger("logs", name=None), GradientMonitor(every, shadow=shadow)
    trainer = fit(module or Tiny(SGD, SPIKES), [GradientClip(0.5), monitor], steps, logger=logger, **kinds)
    return trainer, monitor, logger.log_dir


def of_files(folder: Any) -> Any:
    rows = read_events(folder)
    assert rows.problems == ()
    return Report(runs_of(rows)).shadow


@pytest.mark.parametrize("steps", [24, 23], ids=["the last step is logged", "steps after the last row"])
def test_files_tell_what_the_fit_tells(steps):
    _, monitor, folder = run(steps)
    assert of_files(folder) == monitor.report().shadow
    assert any(0 < one.clip_rate < 1 for one in monitor.report().shadow)
    assert {one.agreement for one in monitor.report().shadow} != {None}


def test_files_of_several_optimizers():
    _, monitor, folder = run(46, TwoNets(SGD, partial(torch.optim.AdamW, lr=0.01), SPIKES))
    found = monitor.report().shadow
    assert [one.optimizer for one in found] == [0] * 4 + [1] * 4
    assert of_files(folder) == found


def test_a_run_that_broke_off_has_what_was_judged():
    class Breaks(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 18:
                raise KeyError("broken")
            return super().training_step(batch, batch_idx)

    logger, monitor = TensorBoardLogger("logs", name=None), GradientMonitor(4, shadow=EVERY)
    with pytest.raises(KeyError, match="broken"):
        fit(Breaks(SGD, SPIKES), [monitor], 24, logger=logger)
    assert of_files(logger.log_dir) == monitor.report().shadow
    assert [one.steps for one in monitor.report().shadow] == [18] * 4


@pytest.mark.slow
def test_long_runs_have_bounded_records_and_the_last_is_of_the_last_row():
    _, monitor, folder = run(1103, Tiny(), [MaxNorm(0.4)], every=1)
    records = Recorded(folder).of("shadows")
    assert len(records) == 1000 + 103 // 2 + 1
    (mine,), (theirs,) = monitor.report().shadow, of_files(folder)
    assert theirs._replace(course=None) == mine._replace(course=None)
    assert len(theirs.course.step) <= 512


def test_without_shadows_nothing_is_written():
    _, _, folder = run(8, shadow=None)
    assert Recorded(folder).tags("shadows") == []
    assert read_events(folder).optimizers[0].shadows is None
    assert of_files(folder) == ()


@pytest.mark.parametrize("stop", [10, 12], ids=["within a window", "as a row is due"])
def test_a_resumed_run_writes_the_records_of_one_that_was_not_stopped(stop):
    whole = [one for one in Recorded(run(24)[2]).of("shadows") if one.step >= stop]
    run(stop)[0].save_checkpoint("stopped.ckpt")
    again = Recorded(run(24, ckpt_path="stopped.ckpt")[2]).of("shadows")
    same_bits([tuple(one) for one in again], [tuple(one) for one in whole])


@pytest.mark.slow
def test_the_record_that_is_being_filled_is_kept_in_the_checkpoint():
    """Above 1,000 rows two rows are one record."""
    run(1001, Tiny(), [MaxNorm(0.4)], every=1)[0].save_checkpoint("stopped.ckpt")
    whole = Recorded(run(1004, Tiny(), [MaxNorm(0.4)], every=1)[2]).of("shadows")
    again = Recorded(run(1004, Tiny(), [MaxNorm(0.4)], every=1, ckpt_path="stopped.ckpt")[2]).of("shadows")
    same_bits([tuple(one) for one in again], [tuple(one) for one in whole if one.step > 1000])
    assert [one.step for one in again] == [1001, 1003]


def test_of_other_shadows_after_a_resume_the_newest_count(said):
    logger = partial(TensorBoardLogger, "logs", name=None, version="one")
    trainer = fit(Tiny(), [GradientMonitor(4, shadow=[0.4])], 12, logger=logger())
    trainer.save_checkpoint("stopped.ckpt")
    monitor = GradientMonitor(4, shadow=[0.4, ZScore(warmup_steps=2)])
    fit(Tiny(), [monitor], 24, logger=logger(), ckpt_path="stopped.ckpt")
    assert of_files(logger().log_dir) == monitor.report().shadow
    assert len(monitor.report().shadow) == 2


def test_the_command_line_tells_of_shadows(capsys):
    _, monitor, folder = run(24)
    assert main(["report", folder]) == 0
    text = capsys.readouterr().out
    assert all(one.name in text for one in monitor.report().shadow)
    assert main(["report", folder, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "ZScore(1.2, warmup_steps=4)" in json.dumps(told)


GOOD = {"version": 1, "kind": "shadows", "optimizer": 0, "optimizer_name": "SGD", "rows": ["a", "b"]}
GOOD |= {"columns": list(SHADOW_COLUMNS), "policies": ["A()", "B()"], "scopes": ["global", "unit"]}


def test_good_metadata_are_read():
    assert parse(json.dumps(GOOD).encode()).shape == (2, len(SHADOW_COLUMNS))


@pytest.mark.parametrize(
    "change",
    [{"rows": ["a", "a"]}, {"rows": []}, {"columns": "all"}, {"policies": ["A()"]}, {"scopes": [1, 2]}, {"rows": None}],
)
def test_bad_metadata_are_refused_by_name(change):
    with pytest.raises(Refused) as found:
        parse(json.dumps(GOOD | change).encode())
    assert f"`{next(iter(change))}`" in str(found.value)
