"""When the guard gives up: at the right step, with the evidence, and across a resume."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import ADAM, Micro, Plant, PlantInStep, every, finite, incidents
from helpers.tiny_modules import Tiny, fit, make_trainer, same_bits, scaled, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGradientError, NonFiniteGuard

NAN = math.nan
BIAS = partial(every, "net.2.bias")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


def failing(module, callbacks, **kwargs):
    """Fits until the guard gives up; the Trainer and the error."""
    trainer = make_trainer(callbacks, 12, **kwargs)
    with pytest.raises(NonFiniteGradientError) as caught:
        trainer.fit(module)
    return trainer, str(caught.value)


def test_it_raises_at_the_fourth_in_a_row_if_three_are_allowed(said):
    module = Tiny(ADAM)
    trainer, text = failing(module, [Plant(BIAS(range(2, 12))), NonFiniteGuard("skip", max_consecutive=3)])
    assert trainer.global_step == 5
    assert "4 gradients in a row were not finite, more than max_consecutive=3." in text
    assert [f"- step {step} (" in text for step in range(1, 7)] == [False, True, True, True, True, False]
    assert "Bad steps (4 in all): 2 to 5." in text
    assert "Most likely: arithmetic in the backward pass of the layer of net.2.bias, since the loss was finite" in text
    assert "Usual causes" not in text
    assert text.endswith("See docs/my-loss-is-nan.md.")
    assert finite(module)
    lines = incidents(said())
    assert "the step is skipped, 2 in a row" in lines[1]
    assert "the run ends here, 4 in a row" in lines[2]


def test_a_healthy_step_ends_a_streak():
    guard = NonFiniteGuard("skip", max_consecutive=2)
    module = Tiny(ADAM)
    fit(module, [Plant(BIAS([0, 1, 3, 4, 6, 7, 9, 10])), guard])
    assert guard.state_dict()["optimizers"]["0"] | {"last": [], "overflows": [], "norms": []} == {
        "row": 0,
        "total": 8,
        "last": [],
        "overflows": [],
        "norms": [],
        "steps": [[0, 1], [3, 4], [6, 7], [9, 10]],
        "moved_at": -1,
        "moved": 0.0,
        "settled": True,
        "sick": False,
        "judged": False,
    }


def test_max_total_counts_all_of_them():
    trainer, text = failing(Tiny(ADAM), [Plant(BIAS([0, 2, 4, 6, 8])), NonFiniteGuard("skip", max_total=3)])
    assert trainer.global_step == 6
    assert "4 gradients were not finite, more than max_total=3." in text


@pytest.mark.parametrize("limits", [{"max_consecutive": 0}, {"max_total": 0}])
def test_a_limit_of_nought_raises_at_the_first(limits):
    trainer, _ = failing(Tiny(ADAM), [Plant(BIAS([3])), NonFiniteGuard("skip", **limits)])
    assert trainer.global_step == 3


def test_warn_never_raises(said):
    fit(Tiny(ADAM), [Plant(BIAS([2])), NonFiniteGuard("warn", max_consecutive=0, max_total=0)])
    assert "the step goes on as it is, 1 in a row" in incidents(said())[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_raise_ends_the_run_before_the_step(precision, said):
    plugins = {"plugins": scaled(2.0**6)} if precision == "16-mixed" else {"precision": precision}
    module, healthy = Micro(ADAM, range(12), {3: NAN}), Micro(ADAM, range(3))
    trainer, text = failing(module, [NonFiniteGuard("raise")], **plugins)
    fit(healthy, [], 3, **plugins)
    same_bits(weights(module), weights(healthy))
    assert trainer.global_step == 3
    assert (
        "A gradient is not finite. Bad steps (1 in all): 3. The last incidents:\n  - step 3 (epoch 0, batch 3)" in text
    )
    fp16 = "a value above 65504 in the forward pass, which fp16 cannot hold"
    first = fp16 if precision == "16-mixed" else "arithmetic in the forward pass on this batch"
    assert f"\nMost likely: {first}" in text
    assert "the run ends here" in incidents(said())[0]


def test_a_streak_of_a_foreign_callback_is_a_streak():
    """Found behind it, though the first look of each step was fine."""
    company = [GradientClip(1e6), PlantInStep(BIAS(range(4, 12))), NonFiniteGuard("skip", max_consecutive=2)]
    trainer, _ = failing(Tiny(ADAM), company)
    assert trainer.global_step == 6


@pytest.mark.parametrize("first", [5, 6, 8])
def test_streak_and_total_survive_a_checkpoint(first, tmp_path):
    bad = BIAS([1, 4, 5, 6, 7, 8])
    whole, _ = failing(Tiny(ADAM), [Plant(bad), NonFiniteGuard("skip", max_consecutive=4)])
    assert whole.global_step == 8
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=first)
    fit(Tiny(ADAM), [Plant(bad), NonFiniteGuard("skip"), saver], first, enable_checkpointing=True)
    path = saver.best_model_path
    saved = torch.load(path, weights_only=True)["callbacks"]["NonFiniteGuard"]["optimizers"]["0"]
    assert (saved["row"], saved["total"]) == (first - 4, first - 3)
    resumed = make_trainer([Plant(bad), NonFiniteGuard("skip", max_consecutive=4)], 12)
    with pytest.raises(NonFiniteGradientError, match="5 gradients in a row"):
        resumed.fit(Tiny(ADAM), ckpt_path=path)
    assert resumed.global_step == 8


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    bad = BIAS([1, 4, 7])
    whole, guard = Tiny(ADAM), NonFiniteGuard("skip")
    fit(whole, [Plant(bad), guard, GradientMonitor()])
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    fit(Tiny(ADAM), [Plant(bad), NonFiniteGuard("skip"), GradientMonitor(), saver], 5, enable_checkpointing=True)
    module, again = Tiny(ADAM), NonFiniteGuard("skip")
    fit(module, [Plant(bad), again, GradientMonitor()], ckpt_path=saver.best_model_path)
    same_bits(weights(module), weights(whole))
    same_bits(again.state_dict(), guard.state_dict())


@pytest.mark.filterwarnings("ignore:.*was called without a model", "ignore:.*there is no last checkpoint")
def test_the_checkpoint_of_the_end_holds_the_weights_before_it(tmp_path):
    guard = NonFiniteGuard("skip", max_consecutive=1)
    company = [Plant(BIAS([4, 5])), guard, OnExceptionCheckpoint(tmp_path)]
    module = Tiny(ADAM)
    failing(module, company, enable_checkpointing=True)
    again = Tiny(ADAM)
    fresh = NonFiniteGuard("skip", max_consecutive=1)
    fit(again, [fresh, Plant(BIAS([6]))], 8, ckpt_path=tmp_path / "on_exception.ckpt")
    assert finite(again)
    assert fresh.state_dict()["optimizers"]["0"]["total"] == 3


def test_it_can_be_copied_and_pickled_before_and_after_a_fit():
    guard = NonFiniteGuard("skip", save_batch_to="bad")
    module = Tiny(ADAM, {2: NAN})
    for one in (guard, deepcopy(guard), pickle.loads(pickle.dumps(guard))):
        fit(module, [one], 4)
        assert one.state_dict()["optimizers"]["0"]["total"] == 1
        assert len(pickle.dumps(one)) < 5000, "no batch, no buffer, no module"


def test_skip_refuses_the_trainers_value_clip():
    clip = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    with pytest.raises(MisconfigurationException, match="Use GradientValueClip instead"):
        fit(Tiny(), [NonFiniteGuard("skip")], **clip)
    fit(Tiny(), [NonFiniteGuard("warn")], 2, **clip)


BAD = [
    ({"action": "ignore"}, ValueError, ["`action`", "'warn', 'skip', 'raise'", "'ignore'"]),
    ({"action": None}, ValueError, ["`action`", "None"]),
    ({"max_consecutive": -1}, ValueError, ["`max_consecutive`", ">= 0", "-1", "Use 5"]),
    ({"max_consecutive": 2.0}, TypeError, ["`max_consecutive`", "2.0"]),
    ({"max_consecutive": True}, TypeError, ["`max_consecutive`", "True"]),
    ({"max_consecutive": None}, TypeError, ["`max_consecutive`", "None"]),
    ({"max_total": -1}, ValueError, ["`max_total`", "-1", "Use for instance 100, or None, the default"]),
    ({"max_total": "many"}, TypeError, ["`max_total`", "'many'"]),
    ({"save_batch_to": 3}, TypeError, ["`save_batch_to`", "3", "bad_batches"]),
    ({"save_batch_to": True}, TypeError, ["`save_batch_to`", "True"]),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD)
def test_bad_arguments(arguments, kind, parts):
    with pytest.raises(kind) as caught:
        NonFiniteGuard(**arguments)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert str(caught.value).endswith(".")
