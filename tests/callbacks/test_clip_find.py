"""`clip_find`: the answer of a short run, and that nothing of the run is left."""

import logging
import random
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, TwoNets, data, different, make_trainer, same_bits, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_calib import ClipSuggestion, GradientClip, MaxNorm, Percentile, Report, ZClip, ZScore, clip_find

ADAM = partial(torch.optim.AdamW, lr=3e-3)
OUTLIERS = {70: 15.0, 85: 15.0}  # of 100 steps, in the last half


def loader(generator=None, **kinds):
    made = torch.Generator().manual_seed(3)
    x = torch.randn(160, 4, generator=made)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 16, shuffle=True, generator=generator, **kinds)


class Net(LightningModule):
    """Everything that a fit moves: dropout, running statistics, a schedule, a metric, lists and counts of its own."""

    def __init__(self, broken=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 1))
        self.broken, self.calls, self.seen, self.lr = broken, 0, [], 1e-2
        self.kept = {"last": torch.zeros(3)}
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        if self.calls == self.broken:
            raise RuntimeError("the loss is broken")
        self.calls += 1
        self.seen.append(float(batch[0][0, 0]))
        self.kept["last"] += random.random() + np.random.default_rng().normal() * 0
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Learns(Tiny):
    """Something can be learnt, so that a spike is not all that happens."""

    def loss(self, net, step):
        x = data(step)[0]
        return nn.functional.mse_loss(net(x), x[:, :1]) * self.gains.get(step, 1.0)


class TwoLearn(TwoNets):
    loss = Learns.loss


class Data(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.events = []

    def setup(self, stage):
        self.events.append(stage)
        self.train = loader()

    def train_dataloader(self):
        return self.train


class Counts(Callback):
    """Of the user's: it must not hear of the search."""

    def __init__(self):
        self.heard = []

    def setup(self, trainer, pl_module, stage):
        self.heard.append(stage)

    def on_train_batch_end(self, *args):
        self.heard.append("batch")


def trainer_of(callbacks=(), **kinds):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 4}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, **kinds}
    return Trainer(callbacks=list(callbacks), **options)


def whole_fit(find, callbacks=(), *, between=None, broken=None, **kinds):
    """A fit, with or without a search before it; what it leaves, and the random numbers behind it."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    generator = torch.Generator().manual_seed(5)
    batches, module, trainer = loader(generator), Net(broken), trainer_of(callbacks, **kinds)
    if between:
        between(trainer, module, batches)
    found = None
    if find:
        with nullcontext() if broken is None else pytest.raises(RuntimeError, match="the loss is broken"):
            found = clip_find(trainer, module, batches, num_steps=25)
    module.broken = None
    trainer.fit(module, batches)
    rngs = [random.random(), float(np.random.rand()), float(torch.rand(())), float(torch.rand((), generator=generator))]
    states = [one.state_dict() for one in trainer.optimizers]
    buffers = {name: one.clone() for name, one in module.named_buffers()}
    left = [weights(module), buffers, states, rngs, module.calls, module.seen, dict(module.kept), trainer.global_step]
    return left, found, trainer


@pytest.mark.parametrize("broken", [None, 0, 7])
def test_the_fit_behind_it_has_the_bits_of_one_without(broken):
    same_bits(whole_fit(True, broken=broken)[0], whole_fit(False)[0])


def test_the_comparison_can_fail():
    with different("the first batches came twice"):
        same_bits(
            whole_fit(False, between=lambda trainer, module, batches: next(iter(batches)))[0], whole_fit(False)[0]
        )


def test_a_fit_that_goes_on_has_the_bits_of_one_without():
    """The Trainer has been used: its optimizers, its count of epochs and the momentum stay."""

    def between(trainer, module, batches):
        trainer.fit(module, batches)
        trainer.fit_loop.max_epochs = 6

    found, plain = whole_fit(True, between=between), whole_fit(False, between=between)
    same_bits(found[0], plain[0])
    assert found[2].global_step == 60
    assert found[1].report.runs[0].counts.steps == 25


def attributes(trainer):
    """Of the Trainer and its parts, by identity."""
    parts = [trainer, trainer.strategy, trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer._data_connector]
    return [{key: id(value) for key, value in vars(part).items()} for part in parts]


@pytest.mark.parametrize("broken", [None, 7])
def test_the_trainer_is_as_it_was(broken):
    rows, mine = Rows(), Counts()
    trainer, module = trainer_of([mine, GradientClip(1.0)], logger=rows, max_steps=30), Net(broken)
    before, inside = attributes(trainer), dict(vars(module))
    with nullcontext() if broken is None else pytest.raises(RuntimeError, match="the loss is broken"):
        clip_find(trainer, module, loader(), num_steps=20)
    assert attributes(trainer) == before
    assert dict(vars(module)) == inside
    assert (trainer.global_step, trainer.current_epoch, trainer.should_stop, trainer.state.fn) == (0, 0, False, None)
    assert (mine.heard, rows.rows, trainer.callback_metrics) == ([], [], {})
    assert trainer.callbacks[0] is mine
    assert module._trainer is None
    assert list(Path().iterdir()) == []


def test_the_modules_own_callbacks_are_set_aside():
    class WithCallbacks(Net):
        def configure_callbacks(self):
            return [ModelCheckpoint("here", every_n_train_steps=1), mine]

    mine, module = Counts(), WithCallbacks()
    clip_find(trainer_of(), module, loader(), num_steps=20)
    assert (mine.heard, list(Path().iterdir())) == ([], [])
    assert len(module.configure_callbacks()) == 2


def test_a_plateau_without_validation_rests():
    class Waits(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

        def validation_step(self, batch, batch_idx):
            raise AssertionError("there is no validation")

        def val_dataloader(self):
            return loader()

    found = clip_find(trainer_of(), Waits(), loader(), num_steps=25)
    assert found.report.runs[0].counts.steps == 25


def test_after_lr_find_and_with_a_data_module():
    module, source = Net(), Data()
    trainer = trainer_of()
    Tuner(trainer).lr_find(module, datamodule=source, num_training=20)
    before, events = weights(module), list(source.events)
    found = clip_find(trainer, module, datamodule=source, num_steps=20)
    again = clip_find(trainer, module, source, num_steps=20)  # where `fit` takes it, too
    assert found.report.runs[0].counts.steps == 20
    assert str(found) == str(again)
    same_bits(weights(module), before)
    assert source.events == events
    trainer.fit(module, datamodule=source)
    assert trainer.global_step == 40


def test_accumulated_batches_are_one_step():
    found = clip_find(trainer_of(accumulate_grad_batches=2, max_epochs=20), Net(), loader(), num_steps=20)
    assert found.report.runs[0].counts.steps == 20


def test_a_shorter_fit_ends_by_itself():
    found = clip_find(trainer_of(max_epochs=2), Net(), loader(), num_steps=200)
    assert found.report.runs[0].counts.steps == 20


def test_a_least_number_of_steps_does_not_hold_it():
    found = clip_find(trainer_of(min_steps=35, min_epochs=4), Net(), loader(), num_steps=20)
    assert found.report.runs[0].counts.steps == 20


def test_it_says_nothing_and_leaves_the_logger_alone(said):
    logger = logging.getLogger("lightning_calib")
    logger.setLevel(logging.INFO)
    clip_find(trainer_of(), Net(), loader(), num_steps=20)
    assert (said(), logger.level) == ([], logging.INFO)


def test_policies_of_several_optimizers_are_refused_with_the_way_to_give_them():
    with pytest.raises(
        TypeError, match=r"`policy` must be one number, policy or None, got \(None, MaxNorm.*give `rules`"
    ):
        GradientClip((None, MaxNorm(0.5)))  # what `.policy` is then


def test_a_bar_is_shown_where_the_trainer_has_one(capsys):
    clip_find(trainer_of(enable_progress_bar=True), Net(), loader(), num_steps=20)
    assert "Finding a clip value: 100%" in capsys.readouterr().err
    clip_find(trainer_of(), Net(), loader(), num_steps=20)
    assert "Finding" not in capsys.readouterr().err


# ---------------------------------------------------------------- the answer


def test_outliers_are_clipped_and_the_answer_can_be_pasted():
    found = clip_find(make_trainer(max_steps=100), Learns(ADAM, OUTLIERS), num_steps=100)
    assert found.policy == MaxNorm(found.value)
    assert repr(found) == f"GradientClip({found.value:g})"
    assert eval(repr(found)).policy == found.policy
    assert str(found).startswith(f"gradient_clip_val={found.value:g}, or callbacks=[{found!r}]. ")


def test_without_outliers_none_is_needed_and_what_is_pasted_clips_nothing():
    found = clip_find(make_trainer(max_steps=40), Tiny(ADAM), num_steps=40)
    assert (found.value, found.policy, repr(found)) == (None, None, "GradientClip(None)")
    assert eval(repr(found)).policy is None
    assert str(found).startswith("You need none. ")


def test_the_table_has_what_each_policy_would_have_done():
    found = clip_find(make_trainer(max_steps=30), Tiny(), num_steps=30)
    assert {"MaxNorm(1.0)", "Percentile()", "ZScore()"} <= {one.name for one in found.table}
    found = clip_find(make_trainer(max_steps=30), Tiny(), num_steps=30, policies=[0.5, ZClip()])
    assert [one.steps for one in found.table] == [30, 30]
    norms = found.report.runs[0].scalars.grad_norm_before
    assert found.table[0].clip_rate == pytest.approx(float(np.mean(norms > 0.5)))


def test_the_trainers_clip_acts_and_is_judged():
    found = clip_find(make_trainer(max_steps=40, gradient_clip_val=0.01), Tiny(ADAM), num_steps=40)
    assert (found.suggestions[0].answer, found.value) == ("keep", 0.01)


def test_two_optimizers_get_an_answer_each():
    gains = {**OUTLIERS, **{500 + step: gain for step, gain in OUTLIERS.items()}}
    found = clip_find(make_trainer(max_steps=200), TwoLearn(ADAM, ADAM, gains), num_steps=100)
    first, second = found.value
    assert found.policy == (MaxNorm(first), MaxNorm(second))
    assert repr(found) == f'GradientClip(None, rules={{"net.*": {first:g}, "other.*": {second:g}}})'
    assert [line.split(":")[0] for line in str(found).splitlines()] == ["Optimizer 0", "Optimizer 1"]
    assert {one.optimizer for one in found.table} == {0, 1}
    trainer = make_trainer([eval(repr(found))], 20)
    trainer.fit(TwoNets(ADAM, ADAM))
    runs = [run._replace(layers=run.layers._replace(names=tuple("abcd"))) for run in found.report.runs]
    mixed = ClipSuggestion(Report(runs))
    assert mixed.value == found.value
    assert repr(mixed) == f"<no one callback does it; value: {found.value}>"
    assert str(mixed).splitlines()[1].startswith(f"Optimizer 1: Its clip value is {second:g}. ")


def test_of_a_report_without_steps_there_is_no_answer():
    found = ClipSuggestion(Report([]))
    assert (found.value, found.policy, found.table, str(found)) == (None, None, (), "")
    with pytest.raises(TypeError, match=r"`report` must be a Report, got 3\. Use `clip_find"):
        ClipSuggestion(3)


@pytest.mark.parametrize(
    ("policy", "wanted"), [("ZScore()", ZScore()), ("Percentile(95)", Percentile(95)), ("MaxNorm(2)", MaxNorm(2.0))]
)
def test_a_policy_that_follows_is_given_as_it_is_named(policy, wanted):
    report = Report([])
    one = clip_find(make_trainer(max_steps=20), Tiny(), num_steps=20).suggestions[0]
    object.__setattr__(report, "suggestion", (one._replace(policy=policy, value=2.0),))
    assert ClipSuggestion(report).policy == wanted


# ---------------------------------------------------------------- the picture


def test_without_matplotlib_the_picture_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=r"`plot` needs matplotlib.*`pip install matplotlib`"):
        ClipSuggestion(Report([])).plot()


def test_the_picture_has_norms_thresholds_and_who_would_fire():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    found = clip_find(make_trainer(max_steps=100), Learns(ADAM, OUTLIERS), num_steps=100)
    figure = found.plot()
    labels = [one.get_text() for one in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == "gradient norm"
    assert any(label.startswith("ZScore(): ") for label in labels)
    assert f"suggested: {found.value:g}" in labels
    own, axes = pyplot.subplots()
    assert found.plot(axes) is own
    gains = {**OUTLIERS, 570: 15.0}
    assert len(clip_find(make_trainer(max_steps=200), TwoLearn(ADAM, ADAM, gains), num_steps=100).plot().axes) == 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("steps", "error"), [(19, ValueError), (True, TypeError), (2.5, TypeError)])
def test_too_few_steps_are_refused(steps, error):
    with pytest.raises(error, match="`num_steps` must be"):
        clip_find(make_trainer(), Tiny(), num_steps=steps)


def test_what_cannot_be_judged_is_refused_before_anything_runs():
    module = Net()
    with pytest.raises(TypeError, match=r"`shadow\[0\]` must be"):
        clip_find(trainer_of(), module, loader(), policies=["ZScore"])
    assert module.calls == 0


def test_gradients_that_cannot_be_measured_are_refused(said):
    module = Tiny(partial(torch.optim.LBFGS, lr=0.1))
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=r"`clip_find` must see the gradients of Tiny's optimizers"):
        clip_find(make_trainer(max_steps=20), module, num_steps=20)
    assert any("LBFGS" in line for line in said())
    same_bits(weights(module), before)


def test_processes_that_are_started_elsewhere_are_refused():
    with pytest.raises(MisconfigurationException, match=r"must run in this process, and DDPStrategy starts others"):
        clip_find(trainer_of(strategy="ddp_spawn", devices=2), Net(), loader())


def test_sharded_parameters_are_refused():
    from two_processes.run import strategy

    with pytest.raises(MisconfigurationException, match=r"undo its run, and ModelParallelStrategy changes the module"):
        clip_find(trainer_of(strategy=strategy("fsdp", {}), devices=2), Net(), loader())


def test_parameters_without_a_shape_are_refused():
    module = Net()
    module.net[0] = nn.LazyLinear(16)
    with pytest.raises(MisconfigurationException, match=r"shapes of all parameters, and Net has lazy ones"):
        clip_find(trainer_of(), module, loader())
