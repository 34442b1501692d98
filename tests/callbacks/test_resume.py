"""Stop and resume equals never stopped, bit for bit; checkpoints load without this package."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, TwoNets, different, fit, network, same_bits, scaled, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    EMARelative,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientStabilizer,
    GradientValueClip,
    Percentile,
    WeightRelative,
    ZClip,
    ZScore,
)

# Mid-epoch on purpose: the data follow `global_step`, so a loader that starts again changes nothing.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*gradient_clip_val.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]

STOP, END = 10, 20
SPIKES = {4: 10.0, 13: 40.0, 16: 0.02, 17: 40.0}
PERCENTILE = Percentile(60, window=8, warmup_steps=3)
ADAPTIVE = {
    "percentile": PERCENTILE,
    "percentile, all history": Percentile(40, window=None, warmup_steps=2),
    "zscore": ZScore(1.5, decay=0.9, warmup_steps=4, robust=False),
    "zscore, robust": ZScore(1.5, decay=0.9, warmup_steps=4),
    "zscore, warm-up after the stop": ZScore(1.5, decay=0.9, warmup_steps=12, robust=False),
    "ema": EMARelative(1.05, decay=0.9, warmup_steps=3),
    "ema, warm-up after the stop": EMARelative(1.05, decay=0.9, warmup_steps=12),
}
STATEFUL = {
    **{f"GradientClip {name}": partial(GradientClip, policy) for name, policy in ADAPTIVE.items()},
    **{
        f"GradientClip {scope}": partial(GradientClip, policy, scope=scope)
        for scope, policy in zip(["group", "layer", "parameter", "unit"], [PERCENTILE] * 4, strict=True)
    },
    "GradientClip rules": partial(
        GradientClip, PERCENTILE, rules={"net.0.*": EMARelative(warmup_steps=3), "*bias": 0.1}
    ),
    "GradientNormalize percentile": partial(GradientNormalize, PERCENTILE),
    "GradientNormalize ema": partial(GradientNormalize, EMARelative(1.05, decay=0.9, warmup_steps=3), scope="layer"),
    "GradientNormalize stabilizer": partial(GradientNormalize, GradientStabilizer(), scope="layer"),
    "AutoClip": AutoClip,
    "AutoClip windowed": partial(AutoClip, 50, window=5),
    "ZClip": partial(ZClip, 1.5, decay=0.9, warmup_steps=5),
    "ZClip of the paper": partial(ZClip, 1.5, decay=0.9, warmup_steps=5, robust=False),
    "AdaGC": partial(AdaGC, decay=0.9, warmup_steps=5),
    "AdaGC in its warm-up": partial(AdaGC, decay=0.9, warmup_steps=12),
}
STATELESS = {
    "GradientClip fixed": partial(GradientClip, 0.7),
    "GradientClip weights": partial(GradientClip, WeightRelative(0.05), scope="unit"),
    "AGC": partial(AGC, 0.05),
    "GradientValueClip": partial(GradientValueClip, 0.1),
}
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def _train(callbacks, steps, **kwargs):
    rows = Rows()
    module = Tiny(SGD, SPIKES)
    return fit(module, callbacks, steps, logger=rows, **kwargs), weights(module), rows


def _stopped(make, path):
    fit(Tiny(SGD, SPIKES), make(), STOP, logger=Rows()).save_checkpoint(path)


def _without_state(path):
    """The same checkpoint after a fresh installation: the callbacks forgot everything."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, path)


@pytest.mark.parametrize("make", {**STATEFUL, **STATELESS}.values(), ids={**STATEFUL, **STATELESS})
def test_resumed_equals_straight(make):
    straight, wanted, all_rows = _train([make(), GradientMonitor()], END)
    _stopped(lambda: [make(), GradientMonitor()], "stopped.ckpt")
    resumed, got, rows = _train([make(), GradientMonitor()], END, ckpt_path="stopped.ckpt")
    same_bits(got, wanted)
    same_bits(resumed.optimizers[0].state_dict(), straight.optimizers[0].state_dict())
    # 10 steps are two rows of 4 and two steps more: the third row needs the counters of both runs.
    assert rows.steps == all_rows.steps[2:] == [11, 15, 19]
    same_bits([row for _, row in rows.rows], [row for _, row in all_rows.rows[2:]])
    same_bits(_saved(resumed), _saved(straight))


def _saved(trainer):
    return {callback.state_key: callback.state_dict() for callback in trainer.callbacks}


@pytest.mark.parametrize("make", [ZClip, partial(GradientClip, PERCENTILE, scope="layer"), AutoClip])
@pytest.mark.parametrize("fused", [False, True])
def test_resumed_equals_straight_with_two_optimizers_under_a_scaler(make, fused):
    def run(end, **kwargs):
        rows, adamw = Rows(), partial(torch.optim.AdamW, lr=1e-2, fused=fused)
        module = TwoNets(adamw, SGD, gains={0: 1e9, 4: 1e9, 12: 1e9, 13: 40.0})
        callbacks = [make(), GradientMonitor()]
        return fit(module, callbacks, 2 * end, logger=rows, plugins=scaled(2.0**9), **kwargs), weights(module), rows

    straight, wanted, all_rows = run(END)
    stopped, _, _ = run(STOP)
    stopped.save_checkpoint("stopped.ckpt")
    resumed, got, rows = run(END, ckpt_path="stopped.ckpt")
    same_bits(got, wanted)
    same_bits([row for _, row in rows.rows], [row for _, row in all_rows.rows[2:]])
    same_bits(_saved(resumed), _saved(straight))
    assert rows.values("calib/skipped_total/0")[-1] == 3


class SavesFirst(Callback):
    """Saves at the end of a batch before ours have their turn, and ModelCheckpoint after."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 8:
            trainer.save_checkpoint("first.ckpt")


@pytest.mark.parametrize("path", ["first.ckpt", "late/step8.ckpt"])
def test_checkpoints_written_within_the_run(path):
    """Step 8 is a logged one: its row must not be counted again."""

    keep = {"auto_insert_metric_name": False, "save_top_k": -1}

    def callbacks():
        late = ModelCheckpoint("late", filename="step{step}", every_n_train_steps=8, **keep)
        return [SavesFirst(), ZClip(1.5, decay=0.9, warmup_steps=4), GradientMonitor(), late]

    kwargs = {"enable_checkpointing": True, "gradient_clip_val": 0.9}
    _, wanted, all_rows = _train(callbacks(), END, **kwargs)
    _, got, rows = _train(callbacks(), END, ckpt_path=path, **kwargs)
    same_bits(got, wanted)
    same_bits([row for _, row in rows.rows], [row for _, row in all_rows.rows[2:]])


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_forgetting_would_show(make):
    _, wanted, _ = _train([make()], END)
    _stopped(lambda: [make()], "stopped.ckpt")
    _without_state("stopped.ckpt")
    _, got, _ = _train([make()], END, ckpt_path="stopped.ckpt")
    with different("the state was thrown away"):
        same_bits(got, wanted)


def test_monitor_remembers_the_steps_since_the_last_row():
    gains = {8: 500.0, 10: 0.01, 11: 0.01}
    rows = [Rows(), Rows()]
    for ckpt_path, end, log in ((None, STOP, rows[0]), ("stopped.ckpt", END, rows[1])):
        trainer = fit(
            Tiny(gains=gains), [GradientMonitor()], end, logger=log, gradient_clip_val=0.25, ckpt_path=ckpt_path
        )
        trainer.save_checkpoint("stopped.ckpt")
    first = rows[1].rows[0][1]
    assert first["calib/grad_norm_max"] > 100 * first["calib/grad_norm_before"]
    assert first["calib/clip_fraction"] == 0.5


def test_two_instances_of_one_class_have_their_own_state():
    def make():
        return [ZClip(1.5, warmup_steps=3, name="a"), GradientMonitor(), ZClip(1.0, warmup_steps=6, name="b")]

    straight, wanted, _ = _train(make(), END)
    _stopped(make, "stopped.ckpt")
    resumed, got, _ = _train(make(), END, ckpt_path="stopped.ckpt")
    same_bits(got, wanted)
    keys = [callback.state_key for callback in resumed.callbacks if isinstance(callback, ZClip)]
    assert len(set(keys)) == 2
    same_bits(_saved(resumed), _saved(straight))


@pytest.mark.parametrize(("left", "right"), [(None, None), ("a", "a")])
def test_two_instances_without_names_are_refused(left, right):
    with pytest.raises(MisconfigurationException, match="`name` must tell callbacks apart"):
        fit(Tiny(), [ZClip(name=left), ZClip(name=right)])


def test_state_key_does_not_depend_on_hyper_parameters():
    assert ZClip().state_key == ZClip(3.0, decay=0.5).state_key
    assert GradientClip(1.0).state_key == GradientClip(Percentile(), scope="unit").state_key


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_checkpoint_needs_nothing_of_ours(make):
    _stopped(lambda: [make(), GradientMonitor()], "stopped.ckpt")
    checkpoint = torch.load("stopped.ckpt", weights_only=True)
    for state in checkpoint["callbacks"].values():
        assert state["version"] == 1
        _only_plain(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own remark on callbacks that are gone
        module = Tiny(SGD, SPIKES)
        fit(module, [], END, ckpt_path="stopped.ckpt")
    assert all(torch.isfinite(w).all() for w in weights(module))


def _only_plain(value):
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) in (str, int)
            _only_plain(item)
    elif type(value) in (list, tuple):
        for item in value:
            _only_plain(item)
    elif isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        assert not value.requires_grad
        # a view drags its whole storage into the file
        assert value.untyped_storage().nbytes() == value.nbytes
    else:
        assert value is None or type(value) in (str, int, float, bool)


def _other_shape():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


@pytest.mark.parametrize(
    ("before", "after", "net"),
    [
        (lambda: ZClip(warmup_steps=3), lambda: ZClip(warmup_steps=3), _other_shape),
        (
            lambda: GradientClip(PERCENTILE, scope="layer"),
            lambda: GradientClip(PERCENTILE, scope="parameter"),
            network,
        ),
        (lambda: GradientClip(PERCENTILE, scope="unit"), lambda: GradientClip(PERCENTILE, scope="unit"), _other_shape),
        (
            lambda: GradientClip(PERCENTILE, scope="parameter"),
            lambda: GradientClip(PERCENTILE, scope="parameter", rules={"*bias": None}),
            network,
        ),
    ],
    ids=["another model", "another scope", "another model, units", "other rules"],
)
def test_state_of_other_segments_is_dropped_with_one_warning(before, after, net, said):
    class Grafted(Tiny):
        """Keeps our saved state and forgets the rest, as a user does who edits a model and its checkpoint."""

        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = self.state_dict()
            checkpoint["optimizer_states"] = [self.optimizer(self.parameters()).state_dict()]

    fit(Tiny(), [before()], STOP).save_checkpoint("stopped.ckpt")
    resumed = Grafted(gains=SPIKES, net=net)
    trainer = fit(resumed, [after()], END, ckpt_path="stopped.ckpt")
    assert len([line for line in said() if "starts afresh" in line]) == 1
    fresh = after()
    fresh_module = Grafted(gains=SPIKES, net=net)
    _without_state("stopped.ckpt")
    fresh_trainer = fit(fresh_module, [fresh], END, ckpt_path="stopped.ckpt")
    same_bits(weights(resumed), weights(fresh_module))
    assert _saved(trainer).keys() == _saved(fresh_trainer).keys()


def test_newer_version_of_the_state_is_not_guessed(said):
    fit(Tiny(), [ZClip(warmup_steps=3)], STOP).save_checkpoint("stopped.ckpt")
    checkpoint = torch.load("stopped.ckpt", weights_only=True)
    for state in checkpoint["callbacks"].values():
        state["version"] = 99
    torch.save(checkpoint, "stopped.ckpt")
    fit(Tiny(), [ZClip(warmup_steps=3)], END, ckpt_path="stopped.ckpt")
    assert len([line for line in said() if "99" in line and "afresh" in line]) == 1


def test_state_above_64_megabytes_is_refused_with_its_size_and_a_remedy():
    class Wide(Tiny):
        pass

    def wide():
        return nn.Sequential(nn.Linear(4, 20_000), nn.Linear(20_000, 1))

    with pytest.raises(ValueError, match=r"MB") as error:
        fit(Wide(net=wide), [GradientClip(Percentile(95, window=1000), scope="unit")], 1)
    assert "window" in str(error.value)
    assert "scope" in str(error.value)


def test_second_fit_of_one_instance_starts_fresh():
    again = [ZClip(1.5, warmup_steps=3), GradientMonitor()]
    runs = []
    for callbacks in (again, again, [ZClip(1.5, warmup_steps=3), GradientMonitor()]):
        _, got, rows = _train(callbacks, END)
        runs.append((got, rows.rows))
    same_bits(runs[1], runs[0])
    same_bits(runs[2], runs[0])


def test_validating_from_a_checkpoint_leaves_the_next_fit_fresh():
    class Validated(Tiny):
        def validation_step(self, batch, batch_idx):
            return None

        def val_dataloader(self):
            return self.train_dataloader()

    callback = ZClip(1.5, warmup_steps=3)
    trainer = fit(Validated(SGD, SPIKES), [callback], STOP)
    trainer.save_checkpoint("stopped.ckpt")
    trainer.validate(Validated(SGD, SPIKES), ckpt_path="stopped.ckpt", verbose=False, weights_only=True)
    _, got, _ = _train([callback], END)
    _, wanted, _ = _train([ZClip(1.5, warmup_steps=3)], END)
    same_bits(got, wanted)
