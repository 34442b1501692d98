"""Out of memory in what only we need: one warning, then silence about it, and the run as it is without us."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from helpers.poisoned_batches import ADAM, PlantInStep
from helpers.tiny_modules import SGD, Rows, Tiny, TwoNets, fit, same_bits, scaled, weights
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_calib import (
    GradientClip,
    GradientMonitor,
    LearningRateControl,
    MaxNorm,
    NonFiniteGradientError,
    NonFiniteGuard,
    SpikeBackoff,
    ZClip,
)

OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
USED, UPDATE = {"calib/grad_norm_after"}, {"calib/update_norm", "calib/update_ratio"}


@pytest.fixture
def failing(monkeypatch):
    """Makes one of torch's functions raise at given calls, counted from 0, out of a module of ours."""

    def fail(owner, name: str, module: str, at: set[int] | range) -> list[int]:
        real, calls = getattr(owner, name), []

        def function(*args, **kwargs):
            if sys._getframe(1).f_globals["__name__"] == f"lightning_calib.{module}":
                calls.append(len(calls))
                if calls[-1] in at:
                    raise OUT
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, function)
        return calls

    return fail


def ends(lines: list[str]) -> list[str]:
    return [line for line in lines if "OutOfMemoryError" in line]


ACTING = {
    "observed": lambda: [GradientMonitor(1)],
    "guarded": lambda: [NonFiniteGuard(), GradientMonitor(1)],
    "clipped": lambda: [GradientClip(0.3), GradientMonitor(1)],
}


@pytest.mark.parametrize("make", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_the_extra_reading_of_a_logged_step(make, precision, failing, said):
    kwargs = {"plugins": scaled(4.0)} if precision == "16-mixed" else {}
    whole, rows = Rows(), Rows()
    untroubled, module = Tiny(ADAM), Tiny(ADAM)
    fit(untroubled, make(), logger=whole, **kwargs)
    assert ends(said()) == []
    calls = failing(torch, "_foreach_norm", "functional.piece_norms", {2 * 4 + 1})
    fit(module, make(), logger=rows, **kwargs)
    same_bits(weights(module), weights(untroubled))
    (line,) = ends(said())
    assert line == f"[calib] Adam has no `calib/grad_norm_after` from here on, training goes on: {OUT!r}"
    wanted = [(step, {t: v for t, v in row.items() if step < 4 or t not in USED}) for step, row in whole.rows]
    same_bits(rows.rows, wanted)
    assert len(calls) == 4 * 2 + 1 + 1 + 7, "it is not tried again"


@pytest.mark.parametrize("make", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [(torch, "_foreach_clone", range(4, 10_000)), (torch, "_foreach_norm", range(2 * 4 + 1, 10_000))],
    ids=["before the step", "after it"],
)
def test_the_copies_of_the_weights(owner, name, at, make, failing, said):
    whole, rows = Rows(), Rows()
    untroubled, module = Tiny(ADAM), Tiny(ADAM)
    fit(untroubled, make(), logger=whole)
    failing(owner, name, "steps.weight_update", at)
    fit(module, make(), logger=rows)
    same_bits(weights(module), weights(untroubled))
    (line,) = ends(said())
    tags = "`calib/update_norm` and `calib/update_ratio`"
    assert line == f"[calib] Adam has no {tags} from here on, training goes on: {OUT!r}"
    wanted = [(step, {t: v for t, v in row.items() if step < 4 or t not in UPDATE}) for step, row in whole.rows]
    same_bits(rows.rows, wanted)


def test_the_other_optimizer_keeps_its_tags(failing, said):
    rows = Rows()
    module, bare = TwoNets(SGD, ADAM), TwoNets(SGD, ADAM)
    fit(bare, [], 24)
    failing(torch, "_foreach_norm", "functional.piece_norms", {1})
    fit(module, [GradientMonitor(1)], 24, logger=rows)
    same_bits(weights(module), weights(bare))
    (line,) = ends(said())
    assert "SGD/0 has no `calib/grad_norm_after` from here on" in line
    assert "calib/grad_norm_after/0" not in rows.tags
    assert len(rows.values("calib/grad_norm_before/0")) == len(rows.values("calib/grad_norm_after/1")) == 12


def test_the_tab_goes_on_without_them(failing, said):
    failing(torch, "_foreach_norm", "functional.piece_norms", {1})
    failing(torch, "_foreach_clone", "steps.weight_update", {0})
    fit(Tiny(ADAM), [GradientMonitor(1)], logger=TensorBoardLogger("logs"))
    assert len(ends(said())) == 2
    assert not [line for line in said() if "records end here" in line]


OBSERVERS = {
    "monitor": lambda: [GradientMonitor(1)],
    "two": lambda: [GradientMonitor(1), NonFiniteGuard()],
    "dry run": lambda: [ZClip(dry_run=True)],
}


@pytest.mark.parametrize("make", OBSERVERS.values(), ids=OBSERVERS)
@pytest.mark.parametrize("step", [0, 5])
def test_the_first_reading_where_nobody_acts(step, make, failing, said):
    rows, module, bare = Rows(), Tiny(ADAM), Tiny(ADAM)
    fit(bare)
    failing(torch, "_foreach_norm", "functional.piece_norms", {2 * step})
    fit(module, make(), logger=rows, log_every_n_steps=1)
    same_bits(weights(module), weights(bare))
    lines = ends(said())
    assert lines == [
        f"[calib] {one._label} stays silent. The gradients of Adam could not be measured: {OUT!r}." for one in make()
    ]
    assert len([row for _, row in rows.rows if "calib/grad_norm_before" in row]) == step


def test_a_reading_of_another_norm_and_one_behind_a_foreign_callback(failing, said):
    """What only a dry run asks for, and what the guard looks at again."""
    for callbacks, at in (
        ([GradientMonitor(100), GradientClip(1.0, norm_type=1.0, dry_run=True)], 1),
        ([GradientMonitor(100), PlantInStep({}), NonFiniteGuard()], 1),
    ):
        module, bare = Tiny(ADAM), Tiny(ADAM)
        fit(bare)
        calls = failing(torch, "_foreach_norm", "functional.piece_norms", {at})
        fit(module, callbacks, log_every_n_steps=100)
        same_bits(weights(module), weights(bare))
        assert len(ends(said())) >= 2
        assert len(calls) == 2


ACTORS = {
    "clip": lambda: GradientClip(1.0),
    "skip": lambda: NonFiniteGuard("skip"),
    "rates": lambda: LearningRateControl(SpikeBackoff(MaxNorm(1.0))),
}


@pytest.mark.parametrize("make", ACTORS.values(), ids=ACTORS)
def test_where_somebody_acts_the_first_reading_raises(make, failing):
    failing(torch, "_foreach_norm", "functional.piece_norms", {3})
    with pytest.raises(torch.OutOfMemoryError):
        fit(Tiny(ADAM), [GradientMonitor(100), make()], log_every_n_steps=100)


def test_a_logger_that_raises_is_its_own_business():
    class Full(Rows):
        def log_metrics(self, metrics, step=None):
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fit(Tiny(), [GradientMonitor(1)], logger=Full())


def test_a_guard_that_ends_the_run_still_does():
    with pytest.raises(NonFiniteGradientError):
        fit(Tiny(ADAM, {3: math.nan}), [GradientMonitor(1), NonFiniteGuard("raise")])
