"""Stop and resume equals never stopped, for every rule; what a control leaves in a checkpoint."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, TwoNets, different, fit, same_bits, scaled, weights

from lightning_calib import (
    DistanceOverGradients,
    EMARelative,
    InverseNorm,
    LearningRateControl,
    MaxNorm,
    Percentile,
    Polyak,
    SpikeBackoff,
    ZScore,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]
STOP, END = 10, 20
SPIKES = {4: 10.0, 8: 10.0, 13: 40.0, 17: 40.0}
Free = partial(LearningRateControl, max_factor=math.inf)
CONTROLS = {
    "spikes, z-score": partial(LearningRateControl, SpikeBackoff(ZScore(1.5, decay=0.9, warmup_steps=4))),
    "spikes, the paper": partial(LearningRateControl, SpikeBackoff(ZScore(1.5, warmup_steps=12, robust=False))),
    "spikes, average": partial(LearningRateControl, SpikeBackoff(EMARelative(1.05, decay=0.9, warmup_steps=3))),
    "spikes, percentile": partial(LearningRateControl, SpikeBackoff(Percentile(60, window=8, warmup_steps=3))),
    "spikes, fixed": partial(LearningRateControl, SpikeBackoff(MaxNorm(1.5))),
    "Polyak": partial(Free, Polyak(growth_steps=3)),
    "DoG": partial(Free, DistanceOverGradients(1e-3)),
    "InverseNorm": partial(Free, InverseNorm(0.2)),
}
RATES = {"Polyak": 1.0, "DoG": 1.0}


def _sgd(name):
    return partial(torch.optim.SGD, lr=RATES.get(name, 0.05))


def _train(name, steps, **kwargs):
    rows, module = Rows(), Tiny(_sgd(name), SPIKES)
    control = CONTROLS[name]()
    trainer = fit(module, [control], steps, logger=rows, log_every_n_steps=1, **kwargs)
    return trainer, weights(module), rows.values("calib/lr_effective"), control


@pytest.mark.parametrize("name", CONTROLS)
def test_resumed_equals_straight(name):
    straight, wanted, rates, control = _train(name, END)
    _train(name, STOP)[0].save_checkpoint("stopped.ckpt")
    resumed, got, rest, again = _train(name, END, ckpt_path="stopped.ckpt")
    same_bits(got, wanted)
    same_bits(rest, rates[STOP:])
    same_bits(again.state_dict(), control.state_dict())
    same_bits(resumed.optimizers[0].state_dict(), straight.optimizers[0].state_dict())


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "InverseNorm"])
def test_forgetting_would_show(name):
    _, wanted, _, _ = _train(name, END)
    _train(name, STOP)[0].save_checkpoint("stopped.ckpt")
    checkpoint = torch.load("stopped.ckpt", weights_only=True)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, "stopped.ckpt")
    _, got, _, _ = _train(name, END, ckpt_path="stopped.ckpt")
    with different("the state was thrown away"):
        same_bits(got, wanted)


@pytest.mark.parametrize("name", ["spikes, z-score", "Polyak", "DoG"])
@pytest.mark.parametrize("fused", [False, True])
def test_two_optimizers_under_a_scaler(name, fused):
    def once(end, **kwargs):
        sgd = partial(_sgd(name), fused=fused)
        module = TwoNets(sgd, sgd, gains={0: 1e9, 4: 1e9, 12: 1e9, 13: 40.0})
        control = CONTROLS[name]()
        trainer = fit(module, [control], 2 * end, plugins=scaled(2.0**9), **kwargs)
        return trainer, weights(module), control.state_dict()

    _, wanted, state = once(END)
    once(STOP)[0].save_checkpoint("stopped.ckpt")
    _, got, again = once(END, ckpt_path="stopped.ckpt")
    same_bits(got, wanted)
    same_bits(again, state)


@pytest.mark.parametrize("name", CONTROLS)
def test_checkpoints_hold_plain_things_only(name):
    _train(name, STOP)[0].save_checkpoint("stopped.ckpt")
    saved = torch.load("stopped.ckpt", weights_only=True)["callbacks"]["LearningRateControl"]
    assert saved["version"] == 1
    assert {type(leaf) for leaf in _leaves(saved)} <= {int, str, float, torch.Tensor}
    for leaf in _leaves(saved):
        if isinstance(leaf, torch.Tensor):
            assert not leaf.requires_grad
            assert leaf.untyped_storage().nbytes() == leaf.nbytes


def _leaves(value):
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


@pytest.mark.parametrize(
    ("before", "after"),
    [("DoG", "Polyak"), ("Polyak", "DoG"), ("spikes, z-score", "spikes, average"), ("InverseNorm", "DoG")],
)
def test_the_state_of_another_rule_is_not_taken_up(before, after, said):
    trainer = _train(before, STOP)[0]
    trainer.optimizers[0].param_groups[0]["lr"] = RATES.get(after, 0.05)
    trainer.save_checkpoint("stopped.ckpt")
    _, got, _, _ = _train(after, END, ckpt_path="stopped.ckpt")
    assert len([line for line in said() if "starts afresh" in line]) == 1
    checkpoint = torch.load("stopped.ckpt", weights_only=True)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, "stopped.ckpt")
    _, wanted, _, _ = _train(after, END, ckpt_path="stopped.ckpt")
    same_bits(got, wanted)


def test_a_second_fit_starts_afresh():
    control, found = CONTROLS["DoG"](), []
    for _ in range(2):
        module = Tiny(_sgd("DoG"), SPIKES)
        fit(module, [control], END)
        found.append(weights(module))
    same_bits(found[1], found[0])


def test_the_state_survives_a_change_of_numbers():
    """A key that held hyper-parameters would orphan the state."""
    assert CONTROLS["DoG"]().state_key == LearningRateControl(Polyak()).state_key == "LearningRateControl"
    assert LearningRateControl(Polyak(), name="head").state_key == "LearningRateControl.head"
