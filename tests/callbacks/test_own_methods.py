"""A policy and a rule of a user's own, from public names alone, do all that ours do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.own_methods import DecayingMaximum, OfTheWeights, WaitWhileTheLossRises
from helpers.tiny_modules import Rows, Tiny, different, fit, same_bits, weights

from lightning_calib import (
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    LearningRateControl,
    Observation,
    Policy,
    SpikeBackoff,
)
from lightning_calib.functional import clip_grad_

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]
SCOPES = ["global", "group", "layer", "parameter", "unit"]
STOP, END = 10, 20
SPIKE = 4
SPIKES = {SPIKE: 10.0, 13: 40.0, 17: 40.0}
MAKE = {
    **{f"clip {scope}": partial(GradientClip, DecayingMaximum(), scope=scope) for scope in SCOPES},
    "clip, weights": partial(GradientClip, OfTheWeights(), scope="unit"),
    "rules": partial(GradientClip, None, rules={"net.0.*": DecayingMaximum(0.7), "*bias": OfTheWeights()}),
    "normalise": partial(GradientNormalize, DecayingMaximum(), scope="layer"),
    "rule": partial(LearningRateControl, WaitWhileTheLossRises()),
    "policy in a rule": partial(LearningRateControl, SpikeBackoff(DecayingMaximum())),
}


def run(make, steps, **kwargs):
    module, rows = Tiny(gains=SPIKES), Rows()
    callbacks = [make(), GradientMonitor()]
    trainer = fit(module, callbacks, steps, logger=rows, log_every_n_steps=1, **kwargs)
    return trainer, weights(module), rows, callbacks[0].state_dict()


@pytest.mark.parametrize("name", MAKE)
def test_resumed_equals_straight(name):
    _, wanted, all_rows, state = run(MAKE[name], END)
    run(MAKE[name], STOP)[0].save_checkpoint("stopped.ckpt")
    _, got, rows, again = run(MAKE[name], END, ckpt_path="stopped.ckpt")
    same_bits(got, wanted)
    same_bits(again, state)
    same_bits([row for _, row in rows.rows], [row for _, row in all_rows.rows[STOP:]])

    plain = Tiny(gains=SPIKES)
    fit(plain, [], END)
    with different("the method acted"):
        same_bits(weights(plain), wanted)
    if name == "clip, weights":
        return  # remembers nothing
    torch.save(
        {**torch.load("stopped.ckpt", weights_only=True), "callbacks": {}},  # loads without the package
        "forgotten.ckpt",
    )
    _, forgotten, _, _ = run(MAKE[name], END, ckpt_path="forgotten.ckpt")
    with different("the state was lost"):
        same_bits(forgotten, wanted)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_callback_is_thin_over_clip_grad(scope):
    """The same policy in a loop of one's own gives the same weights, to the bit."""
    _, wanted, _, _ = run(MAKE[f"clip {scope}"], 8)
    module, state, clipped = Tiny(gains=SPIKES), None, []
    optimizer = module.configure_optimizers()
    for step in range(8):
        optimizer.zero_grad()
        module.loss(module.net, step).backward()
        source = optimizer if scope == "group" else module
        report, state = clip_grad_(source, DecayingMaximum(), state and state._asdict(), scope=scope)
        optimizer.step()
        clipped.append(bool(report.clipped.any()))
    assert not clipped[0]
    assert clipped[SPIKE]
    same_bits(weights(module), wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "callback",
    [
        {
            "class_path": "lightning_calib.GradientClip",
            "init_args": {
                "policy": {"class_path": "helpers.own_methods.DecayingMaximum", "init_args": {"share": 0.25}},
                "rules": {"net.0.*": {"class_path": "helpers.own_methods.OfTheWeights"}},
            },
        },
        {
            "class_path": "lightning_calib.GradientNormalize",
            "init_args": {"target": {"class_path": "helpers.own_methods.DecayingMaximum"}},
        },
        {
            "class_path": "lightning_calib.LearningRateControl",
            "init_args": {"rule": {"class_path": "helpers.own_methods.WaitWhileTheLossRises"}},
        },
    ],
    ids=lambda callback: callback["class_path"],
)
def test_lightning_cli_takes_it_by_class_path(callback):
    from lightning.pytorch.cli import LightningCLI

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"max_steps": 2, "enable_model_summary": False}
    cli = LightningCLI(Tiny, save_config_callback=None, args={"fit": {"trainer": {**quiet, "callbacks": [callback]}}})
    kinds = [type(one).__name__ for one in cli.trainer.callbacks]
    ours = cli.trainer.callbacks[kinds.index(callback["class_path"].rsplit(".", 1)[1])]
    assert cli.trainer.global_step == 2
    assert isinstance(getattr(ours, "policy", None) or ours.rule, (DecayingMaximum, WaitWhileTheLossRises))
    if "rules" in callback["init_args"]:
        assert ours.policy == DecayingMaximum(0.25)
        assert ours.rules == {"net.0.*": OfTheWeights()}


class Counting(Policy):
    """Counts its calls where no contract looks."""

    calls: list[int] = []

    def init(self, norms):
        return OfTheWeights.Nothing()

    def __call__(self, observation: Observation, state):
        self.calls.append(len(observation.norms))
        return torch.full_like(observation.norms, torch.inf), state


def test_what_it_must_fulfil_is_tried_once_and_not_on_each_step():
    Counting.calls.clear()
    fit(Tiny(), [GradientClip(Counting(), scope="parameter")], 5)
    assert Counting.calls == [6] * 6  # once when laid
    Counting.calls.clear()
    module = Tiny()
    for _ in range(5):
        module.loss(module.net, 0).backward()
        clip_grad_(module, Counting(), scope="layer")
    assert Counting.calls == [3] * 6


class Broken(DecayingMaximum):
    def __call__(self, observation, state):
        return observation.norms.sum(), state


def test_what_is_broken_is_refused_before_training():
    module = Tiny()
    before = weights(module)
    with pytest.raises(ValueError, match=r"the targets of Broken\(\.\.\.\)` must be of the shape"):
        fit(module, [GradientClip(Broken(), scope="layer")], 5)
    same_bits(weights(module), before)
