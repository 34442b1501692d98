"""GradientMonitor alone: it changes nothing, and says what the optimizer really used."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.tiny_modules import Grads, Rows, Tiny, TwoNets, fit, network, norm, same_bits, scaled, weights
from torch import nn
from torch.optim import SGD, Adam, AdamW

from lightning_calib import GradientMonitor
from lightning_calib.steps.weight_update import SamplePlan, WeightSample

OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.05),
    "sgd momentum": partial(SGD, lr=0.05, momentum=0.9),
    "sgd nesterov foreach": partial(SGD, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": partial(SGD, lr=0.05, momentum=0.9, fused=True),
    "adam": partial(Adam, lr=1e-2),
    "adamw": partial(AdamW, lr=1e-2),
    "adamw fused": partial(AdamW, lr=1e-2, fused=True),
}
PRECISIONS = {"fp32": {}, "scaler": {"plugins": 1000.0}, "bf16": {"precision": "bf16-mixed"}}


def _plugins(kwargs):
    return {**kwargs, **({"plugins": scaled(kwargs["plugins"])} if "plugins" in kwargs else {})}


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_keeps_its_bits(optimizer, precision):
    alone, watched = Tiny(optimizer, {5: 100.0}), Tiny(optimizer, {5: 100.0})
    plain = fit(alone, max_steps=50, **_plugins(precision))
    monitored = fit(watched, [GradientMonitor(every_n_steps=3)], max_steps=50, logger=Rows(), **_plugins(precision))
    same_bits(weights(watched), weights(alone))
    same_bits(monitored.optimizers[0].state_dict(), plain.optimizers[0].state_dict())


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_after_equals_before_when_nothing_clips(optimizer, precision):
    rows, grads = Rows(), Grads()
    fit(Tiny(optimizer), [grads, GradientMonitor(every_n_steps=1)], logger=rows, **_plugins(precision))
    before = rows.values("calib/grad_norm_before")
    assert rows.values("calib/grad_norm_after") == pytest.approx(before, rel=1e-6)
    assert set(rows.values("calib/clip_fraction")) <= {0.0}
    fused_scaler = "plugins" in precision and optimizer.keywords.get("fused")
    scale = 1000.0 if fused_scaler else 1.0
    assert before == pytest.approx([n / scale for n in grads.norms], rel=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_twelve_tags_at_most(optimizer):
    rows = Rows()
    fit(Tiny(optimizer), [GradientMonitor()], logger=rows, gradient_clip_val=0.25, plugins=[])
    assert len({tag for tag in rows.tags if not tag.startswith("calib_layer/")}) <= 12
    assert not any(tag.startswith("calib_layer/") for tag in rows.tags)
    assert {
        "calib/grad_norm_before",
        "calib/grad_norm_max",
        "calib/grad_norm_after",
        "calib/clip_fraction",
        "calib/lr",
        "calib/lr_effective",
        "calib/nonfinite_total",
        "calib/skipped_total",
        "calib/update_norm",
        "calib/update_ratio",
    } <= rows.tags


def test_twelve_tags_at_most_for_each_of_two_optimizers():
    rows = Rows()
    module = TwoNets(partial(AdamW, lr=1e-2, fused=True), partial(SGD, lr=0.1))
    fit(module, [GradientMonitor()], 24, logger=rows, plugins=scaled(2.0**10))
    for index in "01":
        assert 10 <= len({tag for tag in rows.tags if tag.endswith(f"/{index}")}) <= 12
    assert all(tag.endswith(("/0", "/1")) for tag in rows.tags)


class Overrides(Tiny):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.25, gradient_clip_algorithm="norm")


class ClipsByHand(Tiny):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.25)


CLIPPERS = {
    "trainer": (Tiny, {"gradient_clip_val": 0.25}),
    "module": (Overrides, {}),
    "by hand": (ClipsByHand, {}),
    "by hand over trainer": (ClipsByHand, {"gradient_clip_val": 5.0}),
}


@pytest.mark.parametrize(("module", "kwargs"), CLIPPERS.values(), ids=CLIPPERS)
@pytest.mark.parametrize("optimizer", ["sgd", "sgd momentum", "adamw", "adamw fused"])
def test_after_is_the_clip_value_when_lightning_clips(optimizer, module, kwargs):
    rows = Rows()
    gains = dict.fromkeys(range(20), 100.0)
    fit(module(OPTIMIZERS[optimizer], gains), [GradientMonitor(every_n_steps=2)], logger=rows, **kwargs)
    assert min(rows.values("calib/grad_norm_before")) > 1
    # clip_grad_norm_ adds 1e-6 to the norm it divides by
    assert rows.values("calib/grad_norm_after") == pytest.approx([0.25] * 6, rel=1e-4)
    assert rows.values("calib/clip_fraction") == [1.0] * 6


@pytest.mark.parametrize("module", [Tiny, ClipsByHand])
def test_where_the_optimizer_overwrites_its_gradients_the_norm_is_computed_or_absent(module):
    rows, gains = Rows(), dict.fromkeys(range(20), 100.0)
    clip = 0.25 if module is Tiny else None
    module = module(OPTIMIZERS["sgd nesterov foreach"], gains)
    fit(module, [GradientMonitor(every_n_steps=2)], logger=rows, gradient_clip_val=clip)
    assert rows.values("calib/grad_norm_after") == pytest.approx([0.25] * 6 if clip else [], rel=1e-4)
    assert set(rows.values("calib/clip_fraction")) <= {1.0}, "a number or nothing, never a wrong one"


def test_clip_fraction_counts_the_steps_between_two_logs():
    rows, grads = Rows(), Grads()
    gains = {
        0: 1e-3,
        1: 100.0,
        2: 1e-3,
        3: 1e-3,
        4: 1e-3,
        5: 1e-3,
        6: 1e-3,
        7: 1e-3,
        8: 100.0,
        9: 100.0,
        10: 1e-3,
        11: 100.0,
    }
    fit(Tiny(gains=gains), [grads, GradientMonitor()], logger=rows, gradient_clip_val=0.25)
    reduced = [n > 0.25 for n in grads.norms]
    assert [sum(reduced[i : i + 4]) for i in (0, 4, 8)] == [1, 0, 3]
    assert rows.values("calib/clip_fraction") == [0.25, 0.0, 0.75]
    assert rows.values("calib/grad_norm_max") == pytest.approx(
        [max(grads.norms[i : i + 4]) for i in (0, 4, 8)], rel=1e-6
    )
    assert rows.values("calib/grad_norm_before") == pytest.approx(grads.norms[3::4], rel=1e-6)


def test_value_clipping_is_counted_on_logged_steps_only():
    rows = Rows()
    gains = {1: 100.0, 2: 100.0, 7: 100.0} | dict.fromkeys((0, 3, 4, 5, 6, 8, 9, 10, 11), 1e-4)
    kwargs = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}
    fit(Tiny(gains=gains), [GradientMonitor()], logger=rows, **kwargs)
    assert rows.values("calib/clip_fraction") == [0.0, 1.0, 0.0]
    after, before = rows.values("calib/grad_norm_after"), rows.values("calib/grad_norm_before")
    assert after[1] < before[1]
    assert (after[0], after[2]) == pytest.approx((before[0], before[2]), rel=1e-6)


def test_the_threshold_is_a_norm_and_never_a_bound_on_elements():
    rows = Rows()
    fit(Tiny(), [GradientMonitor(1)], gradient_clip_val=0.5, gradient_clip_algorithm="value", logger=rows)
    assert rows.rows
    assert rows.values("calib/clip_threshold") == []


def test_only_the_optimizers_own_parameters_are_read():
    rows, grads = Rows(), Grads()
    fit(TwoNets(partial(SGD, lr=0.1), partial(SGD, lr=0.1)), [grads, GradientMonitor(1)], 16, logger=rows)
    for index in (0, 1):
        wanted = grads.norms[index::2]
        assert rows.values(f"calib/grad_norm_before/{index}") == pytest.approx(wanted, rel=1e-6)
    assert rows.steps == list(range(8))


def test_one_norm_for_each_optimizer_step_under_accumulation():
    rows, grads = Rows(), Grads()
    fit(Tiny(), [grads, GradientMonitor(1)], 9, logger=rows, accumulate_grad_batches=3)
    assert len(grads.norms) == 9
    # Seven batches: the last window of each epoch has one, whose loss Lightning divides by three all the same.
    whole = [n * (3 if i % 3 == 2 else 1) for i, n in enumerate(grads.norms)]
    assert rows.values("calib/grad_norm_before") == pytest.approx(whole, rel=1e-6)
    assert rows.steps == list(range(9))


def test_every_n_steps_follows_the_trainer_unless_given():
    default, own = Rows(), Rows()
    fit(Tiny(), [GradientMonitor()], 12, logger=default, log_every_n_steps=5)
    fit(Tiny(), [GradientMonitor(every_n_steps=3)], 12, logger=own, log_every_n_steps=5)
    assert default.steps == [4, 9]
    assert own.steps == [2, 5, 8, 11]


def test_log_every_zero_steps_logs_nothing():
    rows = Rows()
    fit(Tiny(), [GradientMonitor()], logger=rows, log_every_n_steps=0)
    assert rows.rows == []


def test_effective_rate_of_a_group_with_d():
    class Prodigy(SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.param_groups[0]["d"] = 0.25

    rows = Rows()
    fit(Tiny(partial(Prodigy, lr=0.1)), [GradientMonitor(1)], 3, logger=rows)
    assert rows.values("calib/lr") == pytest.approx([0.1] * 3)
    assert rows.values("calib/lr_effective") == pytest.approx([0.025] * 3)


def test_rate_in_a_tensor():
    rows = Rows()
    fit(Tiny(partial(AdamW, lr=torch.tensor(0.01))), [GradientMonitor(1)], 3, logger=rows)
    assert rows.values("calib/lr") == pytest.approx([0.01] * 3)


def test_update_of_a_large_tensor_is_estimated_within_two_percent():
    def wide():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return torch.nn.Sequential(torch.nn.Linear(4, 40_000), torch.nn.Tanh(), torch.nn.Linear(40_000, 1))

    rows, module = Rows(), Tiny(partial(SGD, lr=0.01), net=wide)
    start = weights(module)
    fit(module, [GradientMonitor(1)], 1, logger=rows)
    moved = [(b - a).double() for a, b in zip(start, weights(module), strict=True)]
    assert start[0].numel() > 2**16
    # 2^16 of 160,000 elements at fixed strides
    assert rows.values("calib/update_norm") == pytest.approx([norm(moved)], rel=0.02)


@pytest.mark.parametrize("shape", [(65536, 4), (1024, 1024), (512, 64, 3, 3)])
def test_the_sample_of_the_weights_sees_every_column(shape):
    for column in range(0, shape[-1], max(1, shape[-1] // 4)):
        weight = nn.Parameter(torch.ones(shape))
        sample = WeightSample(SamplePlan((weight,)))
        weight.data[..., column] += 1.0
        wanted = (weight.numel() / shape[-1]) ** 0.5
        assert float(sample.moved()[0]) == pytest.approx(wanted, rel=0.1)  # of 2^16 elements, one in shape[-1] moved


def test_half_precision_weights():
    rows, grads = Rows(), Grads()
    fit(Tiny(net=lambda: network()), [grads, GradientMonitor(1)], 4, logger=rows, precision="bf16-true")
    assert rows.values("calib/grad_norm_before") == pytest.approx(grads.norms, rel=1e-5)
    assert rows.values("calib/grad_norm_after") == pytest.approx(grads.norms, rel=1e-5)


def test_double_precision_is_kept():
    rows, grads = Rows(), Grads()
    fit(Tiny(), [grads, GradientMonitor(1)], 4, logger=rows, precision="64-true")
    assert rows.values("calib/grad_norm_before") == pytest.approx(grads.norms, rel=1e-12)
