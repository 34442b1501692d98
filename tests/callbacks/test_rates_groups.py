"""Numbers and tensors, one group and several, one control and several, caps."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.rate_probes import Always, Scheduled, Tells, Told, pure, run, slowing
from helpers.tiny_modules import Tiny, TwoNets, fit, same_bits, scaled, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning, LearningRateFinder

from lightning_calib import GradientMonitor, LearningRateControl

# LearningRateMonitor's own way with tensors
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor")


class Grouped(Scheduled):
    """One group per layer; `rates` holds a number, or a tensor, for each."""

    def __init__(self, rates, empty=(), **extra):
        super().__init__()
        self.rates, self.empty, self.extra = rates, empty, extra

    def configure_optimizers(self):
        linears = [self.net[i] for i in (0, 2, 4)]
        groups = [{"params": list(one.parameters()), "lr": lr} for one, lr in zip(linears, self.rates, strict=True)]
        for position in self.empty:
            groups.insert(position, {"params": [], "lr": self.rates[-1]})
        groups[0].update(self.extra)
        optimizer = Tells(groups)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": slowing(optimizer), "interval": "step"}}


def test_every_group_has_its_own_factor():
    found = run(Grouped([0.1, 0.2, 0.4]), [LearningRateControl(Always((0.5, 0.25, 1.0)))], 3)
    for step, used in enumerate(found.used):
        assert used == pytest.approx([0.05 * 0.9**step, 0.05 * 0.9**step, 0.4 * 0.9**step], rel=1e-9)
    assert found.seen == run(Grouped([0.1, 0.2, 0.4]), [], 3).seen


@pytest.mark.parametrize("empty", [(0,), (1,), (3,), (0, 2)])
def test_a_group_without_parameters_keeps_its_rate(empty):
    found = run(Grouped([0.1, 0.2, 0.4], empty), [LearningRateControl(Always((0.5, 0.25, 0.75)))], 2)
    filled = [used for i, used in enumerate(found.used[0]) if i not in empty]
    assert filled == pytest.approx([0.05, 0.05, 0.3], rel=1e-9)
    assert [found.used[0][i] for i in empty] == [0.4] * len(empty)


def test_tensors_are_scaled_in_place():
    rates = [torch.tensor(rate, dtype=torch.float64) for rate in (0.1, 0.2, 0.4)]
    module = Grouped(rates)
    found = run(module, [LearningRateControl(Always((0.5, 0.25, 1.0)))], 3)
    for step, used in enumerate(found.used):
        assert used == pytest.approx([0.05 * 0.9**step, 0.05 * 0.9**step, 0.4 * 0.9**step], rel=1e-9)
    groups = found.trainer.optimizers[0].param_groups
    assert all(group["lr"] is rate for group, rate in zip(groups, rates, strict=True))
    plain = run(Grouped([torch.tensor(rate, dtype=torch.float64) for rate in (0.1, 0.2, 0.4)]), [], 3)
    assert found.seen == plain.seen
    assert found.monitored == plain.monitored


@pytest.mark.parametrize("plugin", [False, True])
def test_a_tensor_shared_by_all_groups_is_scaled_once(plugin):
    class Unscheduled(Grouped):  # a scheduler would move it once per group
        def configure_optimizers(self):
            return super().configure_optimizers()["optimizer"]

    shared, kwargs = torch.tensor(0.1, dtype=torch.float64), {"plugins": scaled(2.0**9)} if plugin else {}
    twice = [LearningRateControl(Always((f,)), name=str(f)) for f in (0.5, 0.25)]
    for callbacks, factor in [
        ([LearningRateControl(Always((0.5,)))], 0.5),
        ([LearningRateControl(Always((0.5, 0.25, 0.75)))], 0.25),  # the least of the groups' factors
        ([LearningRateControl(Always((3.0, 2.0, 4.0)), max_factor=math.inf)], 2.0),  # an empty group has no say
        (twice, 0.125),
    ]:
        module = Unscheduled([shared] * 3, (0, 2))
        found = run(module, [*callbacks, GradientMonitor()], 3, **kwargs)
        assert found.used == [pytest.approx([0.1 * factor] * 5, rel=1e-9)] * 3
        assert found.rows.values("calib/lr_effective") == pytest.approx([0.1 * factor] * 3, rel=1e-9)
        assert shared.item() == 0.1
        assert all(group["lr"] is shared for group in found.trainer.optimizers[0].param_groups)


def test_the_user_s_own_tensor_survives_a_mid_step_checkpoint():
    class Saves(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.saved = optimizer.state_dict()["param_groups"]

    rates, saves = [torch.tensor(0.1, dtype=torch.float64) for _ in range(3)], Saves()
    run(Grouped(rates), [LearningRateControl(Always((0.5,))), saves], 1)
    assert [float(group["lr"]) for group in saves.saved] == [0.1] * 3
    assert not any(group["lr"] is rate for group in saves.saved for rate in rates)


@pytest.mark.parametrize("order", [1, -1])
def test_several_controls_multiply(order):
    controls = [LearningRateControl(Always((f,)), name=n) for f, n in [(0.5, "a"), (0.75, "b"), (0.25, None)]][::order]
    found = run(Scheduled(), controls, 4)
    product = 0.5 * 0.75 * 0.25
    assert [used for (used,) in found.used] == pytest.approx([rate * product for rate in pure(found)], rel=1e-12)
    assert found.rows.values("calib/lr_effective") == pytest.approx([used for (used,) in found.used], rel=1e-12)
    assert found.seen == run(Scheduled(), [], 4).seen
    keys = ["LearningRateControl", "LearningRateControl.a", "LearningRateControl.b"]
    assert sorted(one.state_key for one in controls) == keys


def test_two_controls_without_names_are_refused():
    with pytest.raises(MisconfigurationException, match="`name` must tell callbacks apart"):
        fit(Tiny(), [LearningRateControl(Always()), LearningRateControl(Always())], 1)


@pytest.mark.parametrize(
    ("factor", "low", "high", "wanted"),
    [(3.0, 0.0, 1.0, 1.0), (3.0, 0.0, math.inf, 3.0), (3.0, 0.0, 2, 2.0), (0.01, 0.1, 1.0, 0.1), (0.0, 0, 1, 0.0)],
)
def test_factors_are_clamped(factor, low, high, wanted):
    found = run(Scheduled(), [LearningRateControl(Always((factor,)), min_factor=low, max_factor=high)], 2)
    assert [used for (used,) in found.used] == pytest.approx([rate * wanted for rate in pure(found)], rel=1e-6)


def test_d_multiplies_the_effective_rate_only():
    found = run(Grouped([0.1, 0.2, 0.4], d=0.01), [LearningRateControl(Always((0.5,)))], 2)
    assert found.rows.values("calib/lr") == pure(found)
    assert found.rows.values("calib/lr_effective") == [rate * 0.01 * 0.5 for rate in pure(found)]


def test_manual_optimization_with_two_optimizers():
    def rated(rate):
        return lambda params: Tells(params, rate)

    told = Told((0.5,))
    found = run(TwoNets(rated(0.1), rated(0.2)), [LearningRateControl(told)], 8)
    assert [one.used for one in found.trainer.optimizers] == [[[0.05]] * 4, [[0.1]] * 4]
    for index, rate in enumerate((0.1, 0.2)):
        assert found.rows.values(f"calib/lr/{index}") == [rate] * 4
        assert found.rows.values(f"calib/lr_effective/{index}") == [rate * 0.5] * 4
    plain = TwoNets(rated(0.05), rated(0.1))
    run(plain, [], 8)
    same_bits(weights(found.module), weights(plain))


class Unfreezes(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.2)


def test_groups_that_are_added_in_the_middle(said):
    class Head(Tiny):
        def configure_optimizers(self):
            return self.optimizer(p for p in self.parameters() if p.requires_grad)

    told = Told((0.5,))
    found = run(Head(partial(Tells, lr=0.1)), [Unfreezes(), LearningRateControl(told)], 6)
    assert found.used == [[0.05]] * 3 + [[0.05, 0.1]] * 3
    assert [one.norms.shape for one in told.heard] == [(1,)] * 3 + [(2,)] * 3
    assert told.heard[3].distances.tolist() == [0, 0]
    assert len([line for line in said() if "starts afresh" in line]) == 1


def test_the_range_test_runs_at_full_rates():
    class Finds(Scheduled):
        def __init__(self):
            super().__init__(optimizer=lambda params: Tells(params, self.lr))
            self.lr = 0.01

    finder = LearningRateFinder(num_training_steps=5, min_lr=1e-4, max_lr=1e-1, update_attr=False)
    found = run(Finds(), [finder, LearningRateControl(Always((0.5,)))], 3, enable_progress_bar=False)
    assert len(finder.optimal_lr.results["lr"]) >= 5
    assert found.used[-3:] == [[rate * 0.5] for rate in pure(found)[-3:]]
