"""PreciseBatchNorm: what it says when there is nothing to do, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.batch_norm_models import EXACT, Net, Passes, fit, loader, population, statistics
from helpers.newer import newer
from helpers.tiny_modules import same_bits
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from lightning_calib.callbacks.precise_batch_norm import PreciseBatchNorm

WeightAveraging = newer("lightning.pytorch.callbacks", "WeightAveraging", "Lightning 2.6")

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def test_without_batch_norm_there_is_one_warning_and_nothing_else(said):
    module = Net(nn.Linear(4, 1))
    passes = Passes()
    fit(module, PreciseBatchNorm(forward=passes), val=loader(), max_epochs=2)
    assert said() == [
        "[calib] PreciseBatchNorm has nothing to do: no BatchNorm of this model keeps running statistics."
    ]
    assert passes.at == []


def test_one_line_at_the_start(said):
    fit(Net(), PreciseBatchNorm(), max_epochs=2)
    assert said() == ["[calib] PreciseBatchNorm: statistics of 2 layer(s) from 4 batch(es), once per epoch."]


def test_statistics_that_are_not_finite_are_not_written(said):
    class Breaks(Net):
        def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
            return [batch[0] * torch.tensor([1.0, torch.nan, 1.0, 1.0])] if self.global_step == 4 else batch

    module, plain = Breaks(), Net()
    fit(module, PreciseBatchNorm())
    fit(plain)
    same_bits(statistics(module), statistics(plain))
    assert said()[1] == (
        "[calib] PreciseBatchNorm keeps the running averages of net.0, net.2: the statistics are not finite."
    )


def test_a_forward_that_misses_the_layers_is_told(said):
    module, plain = Net(), Net()
    fit(module, PreciseBatchNorm(forward=lambda module, batch: None))
    fit(plain)
    same_bits(dict(module.state_dict()), dict(plain.state_dict()))
    assert said()[1] == "[calib] PreciseBatchNorm changed nothing: no batch of the pass reached a BatchNorm layer."


# Refusals


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.net(batch[0]).square().mean())
        optimizer.step()


class Reads(Net):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        batch, _, _ = next(dataloader_iter)
        return self.net(batch[0]).square().mean()


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize(("kind", "reason"), [(Manual, "manual optimization"), (Reads, "`dataloader_iter`")])
def test_a_training_step_that_cannot_be_rehearsed_needs_forward(kind, reason):
    with pytest.raises(MisconfigurationException, match=rf"PreciseBatchNorm cannot act here.*{reason}.*forward=\.\.\."):
        fit(kind(), PreciseBatchNorm())
    module = kind()
    fit(module, PreciseBatchNorm(forward=lambda module, batch: module.net(batch[0])), max_epochs=2)
    torch.testing.assert_close(statistics(module), population(module), **EXACT)
    assert module.global_step == 8


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 0.5},
        {"val_check_interval": 3},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"val_check_interval": "00:01:00:00", "check_val_every_n_epoch": None},
    ],
    ids=str,
)
def test_validation_inside_an_epoch_is_refused(options):
    module = Net()
    with pytest.raises(MisconfigurationException, match=r"Validation inside an epoch.*`Trainer\(val_check_interval=1"):
        fit(module, PreciseBatchNorm(), val=loader(), **options)
    assert module.global_step == 0


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Recognised by its name: the real one does not start without an accelerator."""


def test_parameters_that_are_not_whole_are_refused():
    with pytest.raises(MisconfigurationException, match=r"DeepSpeedStrategy is not supported: .*FSDP2 .* or DDP\."):
        fit(Net(), PreciseBatchNorm(), strategy=DeepSpeedStrategy(torch.device("cpu")))


def test_weight_averaging_must_come_first():
    with pytest.raises(MisconfigurationException, match="List PreciseBatchNorm after WeightAveraging"):
        fit(Net(), PreciseBatchNorm(), WeightAveraging())


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        ({"num_batches": 0}, ValueError, ["`num_batches`", ">= 1", "0"]),
        ({"num_batches": -3}, ValueError, ["`num_batches`", "-3"]),
        ({"num_batches": 2.0}, TypeError, ["`num_batches`", "a whole number", "2.0"]),
        ({"num_batches": True}, TypeError, ["`num_batches`", "True"]),
        ({"num_batches": None}, TypeError, ["`num_batches`", "None"]),
        ({"forward": "net"}, TypeError, ["`forward`", "callable", "'net'", "Pass `PreciseBatchNorm(forward=...)`"]),
        ({"forward": 3}, TypeError, ["`forward`", "3"]),
    ],
    ids=str,
)
def test_bad_arguments(arguments, kind, parts):
    with pytest.raises(kind) as error:
        PreciseBatchNorm(**arguments)
    for part in parts:
        assert part in str(error.value)
