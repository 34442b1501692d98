"""Skipping is exact: precision x accumulation x optimizer x automatic and manual optimization."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.poisoned_batches import ADAM, FUSED, MOMENTUM, Micro, MicroTwoNets, Unmoved, everything, finite, incidents
from helpers.tiny_modules import fit, same_bits, scaled, weights

from lightning_calib import NonFiniteGuard

WINDOWS = 8
BAD = (2, 5)  # of these optimizer steps
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]
OPTIMIZERS = {"momentum": MOMENTUM, "adam": ADAM, "fused": FUSED}


def mode(precision):
    return {"plugins": scaled(2.0**10)} if precision == "16-mixed" else {"precision": precision}


def poisoned(size, value=math.nan):
    """The second micro-batch of a window of four, the only one of a window of one."""
    return {step * size + size // 2 - size // 4: value for step in BAD}


def run(module, callbacks, precision, size, manual):
    parts = {} if manual else {"accumulate_grad_batches": size}
    steps = WINDOWS * 2 if manual else -1
    return fit(module, callbacks, steps, max_epochs=1, **parts, **mode(precision))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_skipped_step_leaves_every_bit_and_the_others_are_as_without_us(precision, size, optimizer, said):
    gains, watch = poisoned(size), Unmoved()
    module = Micro(optimizer, range(WINDOWS * size), gains)
    trainer = run(module, [watch, NonFiniteGuard("skip")], precision, size, manual=False)
    taken = [moved for i, (moved,) in enumerate(watch.moved) if (i + 1) % size == 0]
    assert taken == [step not in BAD for step in range(WINDOWS)]
    assert finite(module)
    assert len(incidents(said())) == len(BAD)
    if precision == "16-mixed":  # the scale is part of what the run does: the scaler skips the same steps alone
        alone = Micro(optimizer, range(WINDOWS * size), gains)
        assert watch.scales[-1] == 2.0**8
    else:
        order = [i for i in range(WINDOWS * size) if i // size not in BAD]
        alone = Micro(optimizer, order)
    same_bits(everything(trainer), everything(run(alone, [], precision, size, manual=False)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_of_two_optimizers_only_the_one_stepped_is_affected(precision, size, optimizer, said):
    gains, watch = poisoned(size), Unmoved()
    module = MicroTwoNets(optimizer, MOMENTUM, range(WINDOWS * size), gains, size)
    trainer = run(module, [watch, NonFiniteGuard("skip")], precision, size, manual=True)
    taken = [moved for i, moved in enumerate(watch.moved) if (i + 1) % size == 0]
    assert taken == [[step not in BAD, True] for step in range(WINDOWS)]
    assert finite(module)
    assert len(incidents(said())) == len(BAD)
    if precision == "16-mixed":
        assert watch.scales[-1] == 2.0**8
    else:
        gains = {i: None for i in range(WINDOWS * size) if i // size in BAD}
    alone = MicroTwoNets(optimizer, MOMENTUM, range(WINDOWS * size), gains, size)
    same_bits(everything(trainer), everything(run(alone, [], precision, size, manual=True)))


@pytest.mark.parametrize("action", ["warn", "skip", "raise"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_healthy_run_is_the_same_run(precision, action):
    watched, alone = (Micro(ADAM, range(8)) for _ in range(2))
    fit(watched, [NonFiniteGuard(action)], 8, **mode(precision))
    fit(alone, [], 8, **mode(precision))
    same_bits(weights(watched), weights(alone))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_warn_changes_nothing_at_all(precision, optimizer, said):
    """Dropout too: the guard draws no random numbers."""
    runs = []
    for callbacks in ([], [NonFiniteGuard("warn", save_batch_to="bad")]):
        module = Micro(optimizer, range(8), {3: math.nan}, Dropped)
        torch.manual_seed(3)
        runs.append(everything(fit(module, callbacks, 8, **mode(precision))))
    same_bits(runs[1], runs[0])
    goes_on = "the GradScaler skips the step" if precision == "16-mixed" else "the step goes on as it is"
    assert goes_on in incidents(said())[0]


class Dropped(torch.nn.Sequential):
    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            super().__init__(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_fused_optimizer_whose_first_steps_overflow_starts_from_clean_state(momentum):
    """torch would take its momentum from uninitialised memory."""
    module = Micro(lambda p: torch.optim.SGD(p, lr=0.05, momentum=momentum, fused=True), range(6))
    alone = Micro(lambda p: torch.optim.SGD(p, lr=0.05, momentum=momentum), range(6))
    results, watch = [], Unmoved()
    for one, callbacks in ((module, [watch, NonFiniteGuard("skip")]), (alone, [])):
        fit(one, callbacks, 6, plugins=scaled(2.0**18))
        results.append(weights(one))
    assert watch.moved[0] == [False]
    assert watch.scales[0] == 2.0**17
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)  # the fused kernel rounds differently
