"""Modes that cannot be right: acting is refused with a way out, watching warns once and logs nothing."""

from __future__ import annotations

import logging
import warnings
from functools import partial

import pytest
import torch
from helpers.newer import newer
from helpers.tiny_modules import Rows, Tiny, fit, same_bits, weights
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    NonFiniteGuard,
    ZClip,
)
from lightning_calib.functional.dtensor import whole

DTensor = newer("torch.distributed.tensor", "DTensor", "torch 2.5")
Partial = newer("torch.distributed.tensor", "Partial", "torch 2.5")
Shard = newer("torch.distributed.tensor", "Shard", "torch 2.5")
distribute_tensor = newer("torch.distributed.tensor", "distribute_tensor", "torch 2.5")

LBFGS = partial(torch.optim.LBFGS, lr=0.1, max_iter=3)
ACTING = {
    "GradientClip": GradientClip,
    "GradientNormalize": GradientNormalize,
    "GradientValueClip": lambda: GradientValueClip(1.0),
    "GradientCentralize": GradientCentralize,
    "AutoClip": AutoClip,
    "ZClip": ZClip,
    "AGC": AGC,
    "AdaGC": AdaGC,
}


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Told by its name along the MRO, as the real one is."""


class MyDeepSpeed(DeepSpeedStrategy):
    """A user's subclass."""


STRATEGIES = {"DeepSpeedStrategy": DeepSpeedStrategy, "subclass": MyDeepSpeed}


@pytest.mark.parametrize("make", ACTING.values(), ids=ACTING)
def test_lbfgs_is_refused_by_who_acts(make):
    with pytest.raises(MisconfigurationException) as error:
        fit(Tiny(LBFGS), [make()])
    message = str(error.value)
    assert "LBFGS" in message
    assert type(make()).__name__ in message
    assert "several times" in message or "closure" in message, "the reason"
    assert "first-order" in message, "the way out"


@pytest.mark.parametrize("make", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_sharding_strategies_are_refused_by_who_acts(strategy, make):
    module = Tiny()
    with pytest.raises(MisconfigurationException) as error:
        fit(module, [make()], strategy=strategy(torch.device("cpu")))
    message = str(error.value)
    assert "DeepSpeed" in message
    assert type(make()).__name__ in message


MODES = {
    "lbfgs": {"optimizer": LBFGS},
    "deepspeed": {"strategy": DeepSpeedStrategy},
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_monitor_warns_once_logs_nothing_and_lets_training_go_on(mode, said):
    def run(callbacks, logger):
        module = Tiny(mode.get("optimizer", partial(torch.optim.SGD, lr=0.1)))
        strategy = mode["strategy"](torch.device("cpu")) if "strategy" in mode else "auto"
        return fit(module, callbacks, logger=logger, strategy=strategy), weights(module)

    rows, callback = Rows(), GradientMonitor(1)
    trainer, watched = run([callback], rows)
    assert len([line for line in said() if "GradientMonitor" in line and "not supported" in line]) == 1
    assert trainer.global_step == 12
    assert not [tag for tag in rows.tags if "norm" in tag or "clip" in tag or "update" in tag]
    same_bits(watched, run([], Rows())[1])
    assert isinstance(callback.summary(), str)


def test_a_monitor_that_stays_silent_does_not_speak_after_an_epoch(caplog):
    with caplog.at_level(logging.INFO, "lightning_calib"):
        fit(Tiny(torch.optim.LBFGS), [GradientMonitor()])
    assert "stays silent" in caplog.text
    assert "No optimizer step" not in caplog.text


def test_dry_run_watches_and_does_not_act(said):
    """It observes only: the same words as the monitor's, and training goes on."""
    rows = Rows()
    trainer = fit(Tiny(LBFGS), [GradientClip(1.0, dry_run=True)], logger=rows)
    assert trainer.global_step == 12
    assert len([line for line in said() if "LBFGS is not supported" in line]) == 1
    assert rows.rows == []


def test_refusal_for_a_strategy_comes_before_the_first_batch():
    class Never(Tiny):
        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

    with pytest.raises(MisconfigurationException):
        fit(Never(), [ZClip()], strategy=DeepSpeedStrategy(torch.device("cpu")))
    with pytest.raises(MisconfigurationException):
        fit(Never(LBFGS), [ZClip()])


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


class Sharded(Tiny):
    """Parameters as DTensors, one rank; where there is no mesh, plain ones."""

    def __init__(self, mesh):
        super().__init__()
        for layer in self.net[::2] if mesh is not None else ():
            for name, tensor in list(layer.named_parameters()):
                placed = distribute_tensor(tensor.detach(), mesh, [Shard(0)])
                setattr(layer, name, torch.nn.Parameter(placed))

    def training_step(self, batch, batch_idx):
        loss = sum(p.square().sum() for p in self.parameters() if p.requires_grad)
        return loss.full_tensor() if hasattr(loss, "full_tensor") else loss


class Terms(Sharded):
    """One of its parameters is a term of a sum."""

    def __init__(self, mesh):
        super().__init__(mesh)
        term = DTensor.from_local(torch.ones(3), mesh, [Partial()])
        self.term = torch.nn.Parameter(term, requires_grad=False)


def test_sharded_parameters_are_measured_and_clipped(mesh):
    found = []
    for module in (Sharded(mesh), Sharded(None)):
        rows = Rows()
        fit(module, [GradientClip(1.0), AGC(0.1), GradientMonitor(1, histograms=False)], 4, logger=rows)
        found.append((rows.rows, [whole(p.detach()) for p in module.parameters()]))
    assert found[0][0][0][1]["calib/clip_fraction"] == 1.0
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("make", ACTING.values(), ids=ACTING)
def test_parameters_without_a_norm_of_their_own_are_refused_by_who_acts(mesh, make):
    with pytest.raises(MisconfigurationException, match=r"placed as .*Partial.*redistribute"):
        fit(Terms(mesh), [make()])


def test_parameters_without_a_norm_of_their_own_are_not_measured(mesh, said):
    rows = Rows()
    trainer = fit(Terms(mesh), [GradientMonitor(1)], 3, logger=rows)
    assert trainer.global_step == 3
    assert rows.rows == []
    assert len([line for line in said() if "term of a sum" in line]) == 1


def test_the_way_out_of_a_refused_strategy_is_named(said):
    with pytest.raises(MisconfigurationException, match="`ModelParallelStrategy`") as error:
        fit(Tiny(), [ZClip()], strategy=DeepSpeedStrategy(torch.device("cpu")))
    assert "`gradient_clipping`" in str(error.value)
    fit(Tiny(), [NonFiniteGuard("warn")], 1, strategy=DeepSpeedStrategy(torch.device("cpu")))
    (line,) = [line for line in said() if "NonFiniteGuard" in line]
    assert str(error.value).partition("here. ")[2] in line, "who watches says the same"


def test_module_without_an_optimizer_trains():
    class NoOptimizer(Tiny):
        def configure_optimizers(self):
            return None

    rows = Rows()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*configure_optimizers.*")
        fit(NoOptimizer(), [GradientClip(1.0), GradientMonitor(1)], -1, max_epochs=1, logger=rows)
    assert "calib/grad_norm_after" not in rows.tags
