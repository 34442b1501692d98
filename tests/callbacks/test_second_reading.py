"""What a second critical reading found about the callbacks."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.event_files import Recorded
from helpers.tiny_modules import Tiny, fit, same_bits, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_calib import GradientMonitor, InverseNorm, LearningRateControl, NonFiniteGuard, ZClip
from lightning_calib.functional.exponent_counts import _bincount, exponent_counts
from lightning_calib.functional.plan import Plan


class NoCharts(Callback):
    """The first process cannot write the charts; the others would not know."""

    def on_train_start(self, trainer, pl_module):
        trainer.logger.experiment.add_custom_scalars = self.fails

    def fails(self, *args):
        raise OSError("No space left on device")


def test_charts_that_cannot_be_written_end_no_record_for_which_other_processes_count_along(said):
    logger = TensorBoardLogger("logs")
    fit(Tiny(), [NoCharts(), GradientMonitor(1, histograms=True)], 12, logger=logger)
    found = Recorded(logger.log_dir)
    assert [one.step for one in found.of("layers")] == list(range(12))
    assert [one.step for one in found.of("hist")] == [0, 10]
    assert len([line for line in said() if "lack their charts" in line]) == 1


class Operators(TorchDispatchMode):
    """The names of what torch is asked for."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [256, 2048])
def test_counting_on_a_gpu_asks_for_nothing_that_a_deterministic_run_forbids(size, deterministic):
    with FakeTensorMode(), Operators() as operators:
        found = _bincount(torch.ones(99, dtype=torch.int32, device="cuda"), size)
    assert found.shape == (size,)
    assert "index_add_" in operators.called
    assert not operators.called & {"histc", "bincount"}


def test_a_missing_gradient_takes_no_digit_from_the_counts_of_the_others():
    many = torch.ones(1).expand(2**24 + 1)
    found = exponent_counts(Plan.of([many, torch.ones(1)]), [many, None], [0, 1], -48, 15)
    assert found[0, 3 + 48].item() == 2**24 + 1


def test_a_factor_is_not_rounded_to_the_type_of_the_gradient():
    value = torch.tensor([1.6640625], dtype=torch.bfloat16)  # times 6 / 5: just below 2
    found = exponent_counts(Plan.of([value]), [value], [0], -48, 15, torch.tensor(6 / 5))
    assert found[0, 2].item() == 0


class Adds(Callback):
    """Puts a callback among the others when training has begun."""

    def __init__(self, late):
        self.late = late

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            trainer.callbacks.append(self.late)


def test_a_monitor_that_comes_late_says_so_once_and_ends_no_run(said):
    alone, watched = Tiny(), Tiny()
    fit(alone, max_steps=8)
    fit(watched, [Adds(GradientMonitor(1))], 8)
    same_bits(weights(watched), weights(alone))
    (line,) = said()
    assert "GradientMonitor stays silent. It was not among `trainer.callbacks` when training began." in line


@pytest.mark.parametrize("late", [ZClip(), LearningRateControl(InverseNorm())], ids=["ZClip", "LearningRateControl"])
def test_a_callback_that_acts_and_comes_late_is_refused(late):
    with pytest.raises(MisconfigurationException, match=r"cannot act here\. It was not among `trainer.callbacks`"):
        fit(Tiny(), [Adds(late)], 8)


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
