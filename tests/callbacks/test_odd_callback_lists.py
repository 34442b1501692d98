"""Lists of callbacks that are not what Lightning's documentation has: stand-ins, wrappers, proxies, one name twice."""

from functools import partial
from unittest.mock import MagicMock

import pytest
from helpers.tiny_modules import Rows, Tiny, fit, make_trainer, same_bits, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from lightning_calib import (
    AutoClip,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    InverseNorm,
    LearningRateControl,
    NonFiniteGuard,
    ZClip,
)


class Duck:
    """No `Callback`: answers to every hook by name, and changes gradients in one."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for p in pl_module.parameters():
            p.grad.mul_(3.0)

    def __getattr__(self, name):
        if name.startswith(("on_", "setup", "teardown", "state", "load")):
            return lambda *args, **kwargs: {}
        raise AttributeError(name)


def test_a_stand_in_that_changes_gradients_counts_as_a_foreign_callback():
    rows, module = Rows(), Tiny()
    trainer = make_trainer([monitor := GradientMonitor(1), GradientClip(0.05)], 6, logger=rows)
    trainer.callbacks.insert(1, Duck())
    trainer.fit(module)
    assert "ran from" in monitor.summary()
    after = rows.values("calib/grad_norm_after")
    assert after == pytest.approx([0.05] * 6, rel=1e-5), "it is read again behind the stand-in"


def test_a_mock_in_the_list_ends_no_run():
    mock, module, bare = MagicMock(spec=[*filter(lambda name: name[0] != "_", dir(Callback))]), Tiny(), Tiny()
    mock.state_dict.return_value, mock.state_key = {}, "mock"
    trainer = make_trainer([GradientMonitor(1)], 4, logger=Rows())
    trainer.callbacks.append(mock)
    trainer.fit(module)
    assert mock.on_before_optimizer_step.call_count == 4
    fit(bare, [], 4)
    same_bits(weights(module), weights(bare))


class Forwards(Callback):
    """Holds one of ours, and calls its hooks."""

    def __init__(self, held):
        self.held = held

    def setup(self, trainer, pl_module, stage):
        self.held.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer, pl_module):
        self.held.on_train_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.held.on_before_optimizer_step(trainer, pl_module, optimizer)


class Proxy(Callback):
    """Says that it is what it holds, as `wrapt.ObjectProxy` does."""

    def __init__(self, held):
        self.__dict__["held"] = held

    @property
    def __class__(self):
        return type(self.held)

    def __getattribute__(self, name):
        if name in ("held", "__dict__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "held"), name)

    def __setattr__(self, name, value):
        setattr(self.held, name, value)


@pytest.mark.parametrize("wrap", [Forwards, Proxy])
@pytest.mark.parametrize("others", [[], [GradientMonitor]])
def test_a_wrapped_callback_is_refused_in_words(wrap, others):
    words = r"ZClip cannot act here\. `trainer.callbacks` does not hold it itself: .* Pass the callback itself to"
    with pytest.raises(MisconfigurationException, match=words):
        fit(Tiny(), [wrap(ZClip()), *[make() for make in others]], 3)


@pytest.mark.parametrize("wrap", [Forwards, Proxy])
def test_a_wrapped_observer_says_so_once_and_ends_no_run(wrap, said):
    trainer = fit(Tiny(), [wrap(GradientMonitor(1))], 3, logger=Rows())
    assert trainer.global_step == 3
    (line,) = [line for line in said() if "GradientMonitor stays silent" in line]
    assert "does not hold it itself" in line


class NoStart(ZClip):
    """Forgets its base."""

    def on_train_start(self, trainer, pl_module):
        return


def test_a_subclass_that_forgets_its_base_is_told_so():
    words = r"among `trainer.callbacks`, but its class overrides `on_train_start`.*`super\(\)\.on_train_start"
    with pytest.raises(MisconfigurationException, match=words):
        fit(Tiny(), [NoStart()], 3)


def test_the_others_begin_without_it():
    rows = Rows()
    fit(Tiny(), [NoStart(), GradientMonitor(1)], 3, logger=rows)
    assert len(rows.values("calib/grad_norm_before")) == 3


CLASHES = {
    "one name twice": ([partial(GradientClip, 1e-3, name="enc"), partial(ZClip, name="enc")], ".enc"),
    "named like an unnamed one": ([partial(GradientClip, 1.0), partial(AutoClip, name="ZClip"), ZClip], ".ZClip"),
    "the other way round": ([partial(GradientClip, 1.0), ZClip, partial(AutoClip, name="ZClip")], ".ZClip"),
    "dry runs": ([partial(ZClip, dry_run=True, name="a"), partial(AutoClip, dry_run=True, name="a")], ".a"),
}


@pytest.mark.parametrize(("makes", "tag"), CLASHES.values(), ids=CLASHES)
def test_one_tag_for_two_callbacks_is_refused(makes, tag):
    with pytest.raises(MisconfigurationException, match=rf"clip_fraction{tag}`.*Give one of them another name"):
        fit(Tiny(), [make() for make in makes], 2)


def test_names_that_tell_callbacks_apart_are_not_refused():
    rows = Rows()
    clips = [
        GradientClip(10.0, name="enc"),
        ZClip(name="encoder"),
        ZClip(dry_run=True, name="dry"),
        GradientNormalize(1),
    ]
    fit(Tiny(), [NonFiniteGuard(), *clips, AutoClip(dry_run=True, name="enc")], 2, logger=rows, log_every_n_steps=1)
    named = {tag for tag in rows.tags if "clip_fraction" in tag}
    assert named == {
        "calib/clip_fraction", "calib/clip_fraction.enc", "calib/clip_fraction.encoder",
        "calib/would_clip_fraction.dry", "calib/would_clip_fraction.enc",
    }  # fmt: skip


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
