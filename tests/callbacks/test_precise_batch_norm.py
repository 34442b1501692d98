"""PreciseBatchNorm in real fits: the statistics, and when they are there."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.batch_norm_models import EXACT, Net, Passes, X, dense, fit, loader, population, statistics
from helpers.newer import newer
from helpers.tiny_modules import different, make_trainer, same_bits
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_calib.callbacks.precise_batch_norm import PreciseBatchNorm

WeightAveraging = newer("lightning.pytorch.callbacks", "WeightAveraging", "Lightning 2.6")

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def images() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)
        )


class Twice(nn.Module):
    """One BatchNorm, used twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(self.norm(x))))


# The statistics


@pytest.mark.parametrize(
    "net",
    [
        dense(),
        dense(momentum=None),
        dense(affine=False),
        images(),
        Twice(),
        nn.SyncBatchNorm.convert_sync_batchnorm(dense()),
    ],
    ids=["1d", "momentum None", "no affine", "2d", "shared", "sync"],
)
def test_they_are_pooled_over_everything_seen(net):
    module, plain = Net(copy.deepcopy(net)), Net(copy.deepcopy(net))
    fit(module, PreciseBatchNorm())
    fit(plain)
    torch.testing.assert_close(statistics(module), population(module), **EXACT)
    with different("momentum averages are no population statistics"):
        torch.testing.assert_close(statistics(plain), population(module), rtol=0.02, atol=0.01)
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == plain.state_dict()[key]


@pytest.mark.filterwarnings("ignore:Found 1 module")
@pytest.mark.parametrize("val", [True, False], ids=["val", "no val"])
def test_what_does_not_learn_statistics_is_left_alone(val):
    frozen, none = nn.BatchNorm1d(4).eval(), nn.BatchNorm1d(4, track_running_stats=False)
    module = Net(nn.Sequential(frozen, none, nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))
    fit(module, PreciseBatchNorm(), val=loader() if val else None, max_epochs=2)
    same_bits(statistics(frozen), statistics(nn.BatchNorm1d(4)))
    assert [part.training for part in module.net] == [False, True, True, True, True]
    mean = torch.cat([module.net[:3](x) for (x,) in loader()]).mean(0)
    torch.testing.assert_close(module.net[3].running_mean, mean.detach(), **EXACT)


def test_a_part_of_the_epoch():
    passes = Passes()
    module = Net()
    fit(module, PreciseBatchNorm(num_batches=2, forward=passes))
    assert passes.at == [(0, 4), (0, 4)]
    torch.testing.assert_close(statistics(module), population(module, list(loader())[:2]), **EXACT)


@pytest.mark.parametrize("limit", [3, 0.75])
def test_never_more_than_an_epoch(limit):
    module = Net()
    fit(module, PreciseBatchNorm(num_batches=100), limit_train_batches=limit)
    torch.testing.assert_close(statistics(module), population(module, list(loader())[:3]), **EXACT)


def test_the_next_epoch_moves_on_from_them_by_momentum():
    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 0:
                self.after = statistics(pl_module)["net.0.running_mean"]

    watch = Watch()
    fit(Net(), PreciseBatchNorm(), watch, max_epochs=2)
    torch.testing.assert_close(watch.after, 0.9 * X.mean(0) + 0.1 * X[:8].mean(0))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_the_pass_has_the_precision_of_training(precision, dtype):
    inner = []

    class Look(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            inner.append(self.net[:2](batch[0]).dtype)
            return super().training_step(batch, batch_idx)

    module = Look()
    fit(module, PreciseBatchNorm(), precision=precision)
    assert inner == [dtype] * 8
    mean = statistics(module)["net.0.running_mean"]
    tolerance = {"rtol": 0.01, "atol": 0.01} if precision == "bf16-true" else EXACT
    torch.testing.assert_close(mean.float(), X.mean(0), **tolerance)


# When they are there


def test_validation_sees_them_and_the_sanity_check_does_not():
    module = Net()
    trainer = fit(module, PreciseBatchNorm(), val=loader(batch_size=30), max_epochs=2, num_sanity_val_steps=2)
    sanity, first, last = module.validated
    same_bits(sanity["net.0.running_mean"], torch.zeros(4))
    torch.testing.assert_close(first["net.0.running_var"], X.var(0, correction=0))
    torch.testing.assert_close(last, population(module), **EXACT)
    with different("the weights have moved"):
        same_bits(first, last)
    same_bits(last, statistics(module))
    before = statistics(module)
    module.net[0].running_mean.zero_()
    trainer.validate(module, loader(), verbose=False)
    same_bits(module.validated[-1]["net.0.running_mean"], torch.zeros(4))
    assert before.keys() == statistics(module).keys()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 4), (1, 8), (2, 12)]),
        ({"check_val_every_n_epoch": 2}, [(0, 4), (1, 8), (2, 12)]),
        ({"limit_val_batches": 0}, [(0, 4), (1, 8), (2, 12)]),
        ({"max_steps": 6}, [(0, 4), (1, 6)]),
        ({"accumulate_grad_batches": 3}, [(0, 2), (1, 4), (2, 6)]),
        ({"val_check_interval": 4}, [(0, 4), (1, 8), (2, 12)]),
        ({"val_check_interval": 8, "check_val_every_n_epoch": None}, [(0, 4), (1, 8), (2, 12)]),
        ({"val_check_interval": 0.5, "limit_val_batches": 0}, [(0, 4), (1, 8), (2, 12)]),
        ({"fast_dev_run": 2}, [(0, 2)]),
        ({"overfit_batches": 2}, [(0, 2), (1, 4), (2, 6)]),
        ({"reload_dataloaders_every_n_epochs": 1}, [(0, 4), (1, 8), (2, 12)]),
    ],
    ids=str,
)
def test_one_pass_per_epoch_before_its_validation_or_at_its_end(options, expected):
    passes = Passes()
    module = Net()
    fit(module, PreciseBatchNorm(1, forward=passes), val=loader(), max_epochs=3, **options)
    assert passes.at == expected


def test_a_stop_in_the_middle_of_an_epoch():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step == 6

    module = Net()
    fit(module, PreciseBatchNorm(), Stop(), val=loader(), max_epochs=5)
    torch.testing.assert_close(module.validated[-1], population(module), **EXACT)
    torch.testing.assert_close(statistics(module), population(module), **EXACT)


@pytest.mark.parametrize("val", [True, False])
def test_checkpoints_have_them_and_nothing_else(val, tmp_path):
    module = Net()
    save = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(module, PreciseBatchNorm(), save, val=loader() if val else None, enable_checkpointing=True)
    saved = torch.load(save.last_model_path, weights_only=True)
    same_bits({key: saved["state_dict"][key] for key in statistics(module)}, statistics(module))
    assert not [key for key in saved["callbacks"] if "PreciseBatchNorm" in key]


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end"])
def test_stop_and_resume_equals_never_stopped(hook):
    def save(trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint("half.ckpt")

    whole, half, resumed = Net(), Net(), Net()
    fit(whole, PreciseBatchNorm(), val=loader(), max_epochs=4)
    fit(half, PreciseBatchNorm(), LambdaCallback(**{hook: save}), val=loader(), max_epochs=2)
    fit(resumed, PreciseBatchNorm(), val=loader(), max_epochs=4, ckpt_path="half.ckpt")
    same_bits(dict(resumed.state_dict()), dict(whole.state_dict()))
    same_bits(resumed.validated[-8:], whole.validated[-8:])


def test_averaged_weights_get_statistics_of_their_own():
    module = Net()
    fit(module, WeightAveraging(), PreciseBatchNorm(), val=loader(), max_epochs=2)
    torch.testing.assert_close(module.validated[-1], population(module), **EXACT)
    torch.testing.assert_close(statistics(module), population(module), **EXACT)
    without = Net()
    fit(without, WeightAveraging(), PreciseBatchNorm(), max_epochs=2)
    torch.testing.assert_close(statistics(without), population(without), **EXACT)


# Several processes


class Shards(Net):
    """Each rank reads a part of its own, in batches of its own size."""

    def train_dataloader(self) -> DataLoader:
        x, size = SHARDS[self.global_rank]
        return loader(x, batch_size=size)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("loss", torch.ones(()), sync_dist=True)
        return super().training_step(batch, batch_idx)


SHARDS = [(X[:18], 5), (X[18:] * 5 - 3, 3)]


@pytest.mark.slow
def test_ranks_are_pooled():
    module = Shards()
    options = {"strategy": "ddp_spawn", "devices": 2, "use_distributed_sampler": False}
    trainer = make_trainer([PreciseBatchNorm()], max_steps=-1, max_epochs=1, **options)
    trainer.fit(module, val_dataloaders=loader())
    every = [batch for x, size in SHARDS for batch in loader(x, batch_size=size)]
    torch.testing.assert_close(statistics(module), population(module, every), **EXACT)
    torch.testing.assert_close(module.net[0].running_mean, torch.cat([x for x, _ in SHARDS]).mean(0))
