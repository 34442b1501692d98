"""Other ways to get at a callback than handing it to a Trainer: the command line, and a loop of one's own."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import yaml
from helpers.stand_in_deepspeed import DeepSpeedEngine, module_of
from helpers.tiny_modules import fit, make_trainer, same_bits, weights
from lightning.fabric import Fabric
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import SingleDeviceStrategy
from modes.laws import CASES, SHADOWED, shadows
from modes.matrix import run
from modes.models import EPOCHS, Configured, Net, data, network
from torch.utils.data import DataLoader
from two_processes import fits, flat, flat_slow, launch, others
from zero import fits as zero_fits

import lightning_calib
from lightning_calib.fit.participant import FitStart
from lightning_calib.steps.optimizer_facts import TrainerClip

POLICY = {"class_path": "lightning_calib.Percentile", "init_args": {"percentile": 60.0, "window": 5, "warmup_steps": 1}}
WEIGHTS = {"class_path": "lightning_calib.WeightRelative", "init_args": {"factor": 0.1}}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "GradientMonitor": {"every_n_steps": 2, "layers": False},
    SHADOWED: {"every_n_steps": 2, "shadow": [0.6, POLICY, {"class_path": "lightning_calib.AGC"}]},
    "GradientClip": {
        "policy": POLICY,
        "scope": "layer",
        "norm_type": math.inf,
        "rules": {"*bias": WEIGHTS, "*1*": 0.1},
    },
    "GradientNormalize": {"target": WEIGHTS, "scope": "parameter", "name": "weights"},
    "GradientValueClip": {"max_value": 0.1},
    "GradientCentralize": {},
    "AutoClip": {"percentile": 50.0, "window": 5, "rules": {"*bias": None}},
    "ZClip": {"z_max": 1.0, "warmup_steps": 3, "rules": {"net.1.*": POLICY}},
    "AGC": {"factor": 0.05, "exclude": ["net.5.*"]},
    "AdaGC": {"warmup_steps": 3},
    'NonFiniteGuard("warn")': {"action": "warn", "save_batch_to": "bad"},
    'NonFiniteGuard("skip")': {"action": "skip", "max_total": 3},
    "LearningRateControl": {
        "rule": {"class_path": "lightning_calib.InverseNorm", "init_args": {"target": 0.7}},
        "max_factor": math.inf,
    },
    "PreciseBatchNorm": {"num_batches": 3, "forward": "modes.hosts.run_network"},
    'SpikeGuard(ladder=("skip", "stop"))': {"policy": POLICY, "ladder": ["skip", "stop"]},
    "SpikeGuard": {"min_ratio": 5.0, "max_rewinds": 1, "lr_factor": 0.5},
}


def run_network(module: Any, batch: Any) -> Any:
    """An argument that is a function is named in the file."""
    return module.net(batch[0])


class Built(NamedTuple):
    weights: list[torch.Tensor]
    callbacks: dict[str, Any]
    saved: str


def _class(column: str) -> str:
    return column.split("(")[0]


@cache
def from_files(columns: tuple[str, ...]) -> list[Built]:
    """Trained from a file, and once more from the file that this has saved."""
    callbacks = [{"class_path": f"lightning_calib.{_class(one)}", "init_args": ARGUMENTS[one]} for one in columns]
    trainer = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer |= {"devices": 1, "enable_model_summary": False, "max_epochs": EPOCHS, "callbacks": callbacks}
    Path("first.yaml").write_text(yaml.safe_dump({"trainer": trainer}, sort_keys=False))
    return [_from_file(source, columns) for source in ("first.yaml", "config.yaml")]


def _from_file(source: str, columns: tuple[str, ...]) -> Built:
    with patch.object(sys, "argv", ["train.py", "fit", "--config", source]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's own deprecations
        cli = LightningCLI(Configured, seed_everything_default=0, save_config_kwargs={"overwrite": True})
    found = {type(one).__name__: one for one in cli.trainer.callbacks}
    built = {column: copy.deepcopy(found[_class(column)]) for column in columns}
    return Built(weights(cli.model), built, Path("config.yaml").read_text())


def check_cli(mode: Any, column: str) -> None:
    """Both files build what was written, and train to the same bits as callbacks that were built by hand."""
    alone = {one for one in ARGUMENTS if "skip" in one or one == SHADOWED}  # beside another of its class
    columns = (column,) if column in alone else tuple(one for one in ARGUMENTS if one not in alone)
    first, second = from_files(columns)
    assert second.saved == first.saved
    by_hand = {one: _by_hand(one) for one in columns}
    for built in (first, second):
        assert _arguments(built.callbacks[column]) == _arguments(by_hand[column])
    module = Configured()
    fit(module, by_hand.values(), -1, max_epochs=EPOCHS)
    same_bits(second.weights, first.weights)
    same_bits(weights(module), first.weights)


def _arguments(callback: Any) -> dict[str, str]:
    return {key: str(value) for key, value in vars(callback).items() if not key.startswith("_")}


def _by_hand(column: str) -> Any:
    made = {"class_path": f"lightning_calib.{_class(column)}", "init_args": ARGUMENTS[column]}
    return _made(made) if column != "PreciseBatchNorm" else lightning_calib.PreciseBatchNorm(3, forward=run_network)


def _made(value: Any) -> Any:
    """What a file means, without a parser."""
    if isinstance(value, dict) and "class_path" in value:
        kind = getattr(lightning_calib, value["class_path"].split(".")[1])
        return kind(**_made(value.get("init_args", {})))
    if isinstance(value, dict):
        return {key: _made(one) for key, one in value.items()}
    return [_made(one) for one in value] if isinstance(value, list) else value


CASES_OF_TWO = {
    SHADOWED: "shadows_are_dry_runs_under_every_way",
    'NonFiniteGuard("warn")': "a_loss_of_nan_on_one_process_is_skipped_by_all",
    'NonFiniteGuard("skip")': "a_loss_of_nan_on_one_process_is_skipped_by_all",
    "LearningRateControl": "every_rule_under_every_way",
    "PreciseBatchNorm": "batch_statistics_are_those_of_all_processes",
    'SpikeGuard(ladder=("skip", "stop"))': "spikes_of_one_process_are_answered_by_all",
    "SpikeGuard": "spikes_of_one_process_are_answered_by_all",
}
WAYS = {
    "DDP": "ddp",
    "FSDP2": "fully_sharded",
    "FSDP1": "flat_shards",
    "tensor": "tensor_parallel_with_plain_parameters",
}
OF_FLAT = {
    SHADOWED: "shadows_are_dry_runs_under_flat_shards",
    'NonFiniteGuard("warn")': "all_skip_a_step_that_is_bad_on_one_process_under_flat_shards",
    'NonFiniteGuard("skip")': "all_skip_a_step_that_is_bad_on_one_process_under_flat_shards",
    "LearningRateControl": "every_rule_under_flat_shards",
    "PreciseBatchNorm": "batch_statistics_under_flat_shards_are_those_of_all_processes",
}


def check_two_processes(mode: Any, column: str) -> None:
    """Two processes are started once, by tests/distributed; here only that the case is among those that run there."""
    way = WAYS[mode.title.split(" ")[0]]
    name = (OF_FLAT if way == "flat_shards" else CASES_OF_TWO).get(column, f"every_callback_under_{way}")
    known = {**launch.CASES, **launch.SLOW}
    assert known[name] in [vars(module).get(name) for module in (fits, others, flat, flat_slow)]
    assert column in {*CASES_OF_TWO, *fits.CALLBACKS}


class FakeDeepSpeedStrategy(SingleDeviceStrategy):
    """Refused by the name of its class, before there is an engine."""


FakeDeepSpeedStrategy.__name__ = "DeepSpeedStrategy"


def check_deepspeed(mode: Any, column: str) -> Any:
    """Who acts is refused before there is an engine; what works is started by tests/zero, and only looked for here."""
    if column == "GradientMonitor":
        assert "norms_and_rates_are_those_of_the_same_model_without_deepspeed" in zero_fits.CASES
        return None
    if column == SHADOWED:
        net = Net()
        monitor = lightning_calib.GradientMonitor(shadow=shadows(), layers=False)
        engine = DeepSpeedEngine(net)
        trainer = SimpleNamespace(strategy=SimpleNamespace(model=engine))
        with patch.dict(sys.modules, {"deepspeed": module_of(engine)}):
            monitor._start(FitStart(net, [], [monitor], TrainerClip(None, 0.0), trainer))
        return None
    strategy = partial(FakeDeepSpeedStrategy, torch.device("cpu"))
    return run(replace(mode, trainer=lambda: {"strategy": strategy()}), CASES[column])


def check_fabric(mode: Any, column: str) -> None:
    """A loop that calls the hook ends with the Trainer's weights; a callback that needs more than that hook says so."""
    make = partial(torch.optim.SGD, lr=0.05)
    held = fabric_loop([CASES[column].make()], make)
    module = Net(make)
    module.gains = {}
    make_trainer([CASES[column].make()], -1, max_epochs=1).fit(module)
    same_bits(list(held.parameters()), list(module.net.parameters()))


class Held(torch.nn.Module):
    """The same names as in the module of a Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def fabric_loop(callbacks: list[Any], make: Any, batches: slice = slice(None), held: Any = None, **kwargs: Any) -> Held:
    """An epoch with Fabric, the callbacks called by name."""
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=callbacks, **kwargs)
    held = held or Held()
    net, optimizer = fabric.setup(held, make(held.parameters()))
    for x, y in list(DataLoader(data(), batch_size=8))[batches]:
        optimizer.zero_grad()
        with fabric.autocast():
            loss = torch.nn.functional.mse_loss(net(x), y)
        fabric.backward(loss)
        fabric.call("on_before_optimizer_step", trainer=fabric, pl_module=net, optimizer=optimizer)
        optimizer.step()
    return held
