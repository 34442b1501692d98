"""Stop and resume: the records of the second run are those that one run would have written."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.event_files import Recorded
from helpers.tiny_modules import Tiny, TwoNets, different, fit, make_trainer, same_bits, scaled
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_calib import GradientMonitor, NonFiniteGuard, ZClip

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
GAINS = {9: 60.0, 13: math.nan, 21: 60.0, 30: 60.0, 33: math.nan}
END = 48


def callbacks(*more):
    guard = NonFiniteGuard("skip")
    return [*more, guard, ZClip(1.5, warmup_steps=4), GradientMonitor(2, histograms=True)]


def run(end=END, module=None, **kwargs):
    logger = TensorBoardLogger("logs", name=None)
    kwargs = {"callbacks": callbacks(), **kwargs}
    trainer = fit(module or Tiny(SGD, GAINS), kwargs.pop("callbacks"), end, logger=logger, **kwargs)
    return trainer, Recorded(logger.log_dir)


def shown(found, after):
    """What the tab shows of the steps behind ``after``, without the summaries: each fit ends with one."""
    records = [(one.tag, one.step, one.value) for one in found.found if "/events" not in one.tag]
    events = [event for event in found.events() if event["kind"] != "summary"]
    for event in events:  # a loader that starts again numbers its batches anew
        event["text"] = re.sub(r"\(epoch \d+, batch \d+\)", "", event["text"])
    return [one for one in records if one[1] > after], [event for event in events if event["step"] > after]


@pytest.mark.parametrize("stop", [10, 13, 14, 31, 32])
def test_resumed_equals_straight(stop):
    straight, wanted = run()
    run(stop)[0].save_checkpoint("stopped.ckpt")
    resumed, found = run(ckpt_path="stopped.ckpt")
    same_bits(shown(found, stop - 1), shown(wanted, stop - 1))
    assert len(shown(found, stop - 1)[0]) > 10
    same_bits(_monitor(resumed), _monitor(straight))


def _monitor(trainer):
    return next(one for one in trainer.callbacks if isinstance(one, GradientMonitor)).state_dict()


def test_forgetting_would_show():
    _, wanted = run()
    run(31)[0].save_checkpoint("stopped.ckpt")
    checkpoint = torch.load("stopped.ckpt", weights_only=True)
    del checkpoint["callbacks"]["GradientMonitor"]["dashboard"]
    torch.save(checkpoint, "stopped.ckpt")
    _, found = run(ckpt_path="stopped.ckpt")
    with different("the dashboard's memory was thrown away"):
        same_bits(shown(found, 30), shown(wanted, 30))


class SavesFirst(Callback):
    """Saves at the end of a batch, before the row of that very batch is written."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in (8, 10, 22):
            trainer.save_checkpoint(f"first{trainer.global_step}.ckpt")


@pytest.mark.parametrize("step", [8, 10, 22])
def test_a_checkpoint_before_the_row_and_one_after_it_hold_the_same(step):
    late = ModelCheckpoint("late", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    _, wanted = run(callbacks=[*callbacks(SavesFirst()), late], enable_checkpointing=True)
    first, second = (torch.load(path, weights_only=True) for path in (f"first{step}.ckpt", f"late/step={step}.ckpt"))
    same_bits(first["callbacks"]["GradientMonitor"], second["callbacks"]["GradientMonitor"])
    assert first["callbacks"]["GradientMonitor"]["dashboard"]["0"]["layers"]["rows"] == step // 2
    _, found = run(ckpt_path=f"first{step}.ckpt")
    same_bits(shown(found, step - 1), shown(wanted, step - 1))


class Saves(Callback):
    """Stands before ours, so that the row of the step has not been written yet."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(f"{batch_idx}.ckpt", weights_only=False)


@pytest.mark.filterwarnings("ignore:You're resuming")
@pytest.mark.parametrize("stopped", [2, 3])
def test_a_step_that_was_dropped_and_a_row_that_is_due_are_in_a_checkpoint_of_that_batch(stopped):
    def run(version, *before, **kwargs):
        logger, module = TensorBoardLogger("logs", version=version), Tiny(gains={2: math.nan, 3: math.nan})
        ours = [NonFiniteGuard("skip"), GradientMonitor(2, histograms=True)]
        fit(module, [*before, *ours], 7, logger=logger, **kwargs)
        return Recorded(logger.log_dir), ours[1].state_dict()

    (whole, expected), (rest, state) = run("whole", Saves()), run("rest", ckpt_path=f"{stopped}.ckpt")
    same_bits(state["tally"], expected["tally"])
    wanted = [one for one in whole.found if one.step > stopped and "events" not in one.tag]
    assert [one[:2] for one in rest.found if "events" not in one.tag] == [one[:2] for one in wanted]
    assert rest.of("events")[-1].value == whole.of("events")[-1].value


def test_saving_does_not_change_what_is_written():
    _, wanted = run()
    _, found = run(callbacks=callbacks(SavesFirst()))
    same_bits(shown(found, -1), shown(wanted, -1))


def test_two_optimizers_under_a_scaler():
    def module():
        return TwoNets(partial(torch.optim.AdamW, lr=1e-2), SGD, gains={0: 1e9, 4: 1e9, 12: 1e9, 13: 40.0})

    def two(steps, **kwargs):
        ours = [ZClip(), GradientMonitor(2, histograms=True)]
        return run(2 * steps, module(), callbacks=ours, plugins=scaled(2.0**9), **kwargs)

    straight, wanted = two(20)
    two(11)[0].save_checkpoint("stopped.ckpt")
    resumed, found = two(20, ckpt_path="stopped.ckpt")
    same_bits(shown(found, 10), shown(wanted, 10))
    same_bits(_monitor(resumed), _monitor(straight))


def test_the_state_is_plain():
    run(11)[0].save_checkpoint("stopped.ckpt")
    state = torch.load("stopped.ckpt", weights_only=True)["callbacks"]["GradientMonitor"]["dashboard"]
    assert state["0"]["peak"].shape == (6,)
    _only_plain(state)


def _only_plain(value):
    if isinstance(value, dict):
        assert {type(key) for key in value} <= {str, int}
        value = list(value.values())
    if type(value) in (list, tuple):
        for item in value:
            _only_plain(item)
    elif isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        assert value.untyped_storage().nbytes() == value.nbytes  # a view drags its whole storage into the file
    else:
        assert value is None or type(value) in (str, int, float, bool)


def _other():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1))


def test_other_layers_have_another_tag_and_go_on_counting_rows():
    class Grafted(Tiny):
        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = self.state_dict()
            checkpoint["optimizer_states"] = [self.optimizer(self.parameters()).state_dict()]

    first, before = run(11, callbacks=[GradientMonitor(2, histograms=True)])
    first.save_checkpoint("stopped.ckpt")
    trainer, found = run(
        20,
        Grafted(SGD, net=_other),
        callbacks=[GradientMonitor(2, histograms=True)],
        ckpt_path="stopped.ckpt",
    )
    assert found.tags("layers") != before.tags("layers")
    assert [one.step for one in found.of("layers")] == [11, 13, 15, 17, 19]
    assert _monitor(trainer)["dashboard"]["0"]["layers"]["rows"] == 10
    assert bool((found.column("before") >= 0).all())


def test_without_a_logger_the_run_goes_on():
    run(11)[0].save_checkpoint("stopped.ckpt")
    trainer = make_trainer(callbacks(), END)
    trainer.fit(Tiny(SGD, GAINS), ckpt_path="stopped.ckpt")
    assert trainer.global_step == END


def test_a_run_that_breaks_leaves_what_it_has_and_can_be_resumed():
    class Breaks(Tiny):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 23:
                raise RuntimeError("broken data")
            return super().training_step(batch, batch_idx)

    _, wanted = run()
    logger, saver = TensorBoardLogger("logs", name=None), ModelCheckpoint("saved", save_top_k=-1, every_n_train_steps=9)
    trainer = make_trainer([*callbacks(), saver], END, logger=logger, enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="broken data"):
        trainer.fit(Breaks(SGD, GAINS))
    broken = Recorded(logger.log_dir)
    assert [one.step for one in broken.of("layers")] == list(range(1, 23, 2))
    assert "In 23 optimizer steps" in broken.events("summary")[-1]["text"]
    (path,) = [path for path in map(str, Path("saved").iterdir()) if "step=18" in path]
    _, found = run(ckpt_path=path)
    same_bits(shown(found, 17), shown(wanted, 17))


@pytest.mark.slow
def test_a_long_run_is_thinned_and_its_last_rows_are_not_lost():
    logger = TensorBoardLogger("logs")
    fit(Tiny(gains={1002: 1e4}), [GradientMonitor(1)], 1007, logger=logger)
    found = Recorded(logger.log_dir)
    assert [one.step for one in found.of("layers")] == [*range(1000), 1001, 1003, 1005, 1006]
    assert [one.step for one in found.of("globals")] == [*range(1000), 1001, 1003, 1005, 1006]
    assert int(found.column("peak").norm(dim=1).argmax()) == 1001  # the record of steps 1002 and 1003
    assert 1002 in [event["step"] for event in found.events("spike")]
