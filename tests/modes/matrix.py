"""One cell of the matrix: fit once between two spies, and hold every step against the callback's law."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_modules import Rows, make_trainer, same_bits, weights
from lightning.pytorch import Callback, LightningModule, Trainer
from modes.laws import ALWAYS, CASES, SHADOWED, Case, Laws, dry_runs, leave_alone, rate_factors, whole_norm
from modes.models import EPOCHS, POISON, Net, data
from modes.watching import First, Last, Step
from torch import Tensor, nn

from lightning_calib import GradientMonitor


def plain(trainer: Trainer, module: LightningModule) -> Trainer:
    trainer.fit(module)
    return trainer


@dataclass(frozen=True)
class Mode:
    """A row of the matrix.

    Attributes:
        title: As the page has it.
        make: The module; takes ``poison``.
        trainer: Arguments of the Trainer, made anew for every fit.
        before, after: Foreign callbacks around ours, made anew likewise.
        refuses: Words of the message with which a callback refuses, by column; the others work.
        silent: Words of the one warning with which a callback that only watches falls silent.
        tolerance: Relative to the largest element of a step's gradient; float32 by default.
        rows: Whether there is a logger.
        fit: How the module is given to the Trainer; returns the one that trained it.
        quiet: What Lightning warns of in this mode.
        exact: Whether BatchNorm's exact statistics are those of all the data.
        acts: Whether the fit is long enough for every callback to find something to do.
        absent: Columns for which there is nothing to do in this mode.
        check: How a cell is tried, where a fit between spies cannot.
        line: The page's line, where several modes share one.
    """

    title: str
    make: Callable[..., LightningModule] = Net
    trainer: Callable[[], Mapping[str, Any]] = dict
    before: Callable[[], Iterable[Callback]] = list
    after: Callable[[], Iterable[Callback]] = list
    refuses: Mapping[str, str] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 2e-5
    rows: bool = True
    fit: Callable[[Trainer, LightningModule], Trainer] = plain
    quiet: tuple[str, ...] = ()
    exact: bool = True
    absent: tuple[str, ...] = ()
    acts: bool = True
    check: Callable[[Mode, str], object] | None = None
    line: str = ""

    def outcome(self, column: str) -> str:
        if column in self.absent:
            return "absent"
        return "refuses" if column in self.refuses else "silent" if column in self.silent else "works"


@dataclass
class Run:
    module: LightningModule
    trainer: Trainer
    steps: list[Step]
    rows: Rows


def run(mode: Mode, case: Case, ours: Iterable[Callback] | None = None) -> Run:
    """With the case's callback, or with others in its place."""
    module = mode.make(poison=POISON if case.guards else ())
    first, rows = First(), Rows()
    ours = [case.make()] if ours is None else ours
    callbacks = [*mode.before(), first, *ours, Last(first), *mode.after()]
    kwargs = {"max_epochs": EPOCHS, "log_every_n_steps": 1, **({"logger": rows} if mode.rows else {}), **mode.trainer()}
    trainer = make_trainer(callbacks, kwargs.pop("max_steps", -1), **kwargs)
    with warnings.catch_warnings():
        for words in mode.quiet:
            warnings.filterwarnings("ignore", message=words)
        trainer = mode.fit(trainer, module)
    return Run(module, trainer, first.steps, rows)


def check_works(mode: Mode, column: str) -> Run:
    """Every gradient, rate and number that one fit shows."""
    case = CASES[column]
    found = run(mode, case)
    obeys(mode, case, found)
    acted = [changed(step) for step in found.steps if any_before(step)]
    if case.law is not leave_alone and mode.acts:
        assert any(acted)
        assert not all(acted) or column in ALWAYS
    if column == "LearningRateControl":
        for step in found.steps:
            if step.used and step.fresh and step.moved:
                wanted = [rate * factor for rate, factor in zip(step.rates, rate_factors(step), strict=True)]
                assert step.used == pytest.approx(wanted, rel=max(1e-5, mode.tolerance))
    if column == 'NonFiniteGuard("skip")':
        assert [step.moved for step in found.steps] == [any_gradient(step) for step in found.steps]
    if case.writes and mode.rows:
        numbers(mode, found)
    if case.observes:
        same_bits(weights(found.module), weights(run(mode, case, ours=[]).module))
    if column == SHADOWED:
        are_dry_runs(mode, found, run(mode, case, dry_runs()))
    if column == "PreciseBatchNorm" and mode.exact:
        exact_statistics(mode, found)
    return found


def obeys(mode: Mode, case: Case, found: Run) -> None:
    """What it left of every gradient is what the law says, no more and no less."""
    laws = Laws(case, found.module)
    for step in found.steps:
        wanted = laws(step) if step.fresh and any_before(step) else step.before
        assert [g is None for g in step.after] == [g is None for g in wanted]
        for left, law in zip(step.after, wanted, strict=True):
            if left is not None:
                scale = float(np.nanmax(np.abs(law), initial=1e-6))
                np.testing.assert_allclose(left, law, rtol=mode.tolerance, atol=mode.tolerance * scale)


def changed(step: Step) -> bool:
    pairs = zip(step.before, step.after, strict=True)
    return any(a is not None and (b is None or bool((a != b).any())) for a, b in pairs)


def any_before(step: Step) -> bool:
    return any(g is not None for g in step.before)


def any_gradient(step: Step) -> bool:
    return any(g is not None for g in step.after)


def numbers(mode: Mode, found: Run) -> None:
    """The rows hold the norms of whole windows."""
    several = len(found.trainer.optimizers) > 1
    for index in range(len(found.trainer.optimizers)):
        tag = "calib/grad_norm_before" + (f"/{index}" if several else "")
        mine = [step for step in found.steps if step.index == index and step.fresh and any_before(step)]
        wanted = [whole_norm(step.before) for step in mine]
        assert found.rows.values(tag) == pytest.approx(wanted, rel=mode.tolerance, nan_ok=True)


def are_dry_runs(mode: Mode, found: Run, dry: Run) -> None:
    """Each shadow has learnt, counted and told what a dry run does in the same mode, to the bit."""
    (monitor,) = (one for one in found.trainer.callbacks if isinstance(one, GradientMonitor))
    ours = {one.name: one for one in dry.trainer.callbacks if getattr(one, "dry_run", False)}
    fired = []
    for index, state in monitor.state_dict()["shadows"].items():
        for i, learnt in enumerate(state["learnt"].values()):
            expected = ours[f"dry{i}"].state_dict()["optimizers"][index]
            same_bits(learnt["parts"], expected["parts"])
            same_bits(state["counts"]["fired"][i], expected["count"]["fired"])
            # A dry run that leaves all of an optimizer's parameters alone counts nothing.
            assert state["counts"]["steps"] == expected["count"]["steps"] or not learnt["parts"]
            fired.append(0 < int(expected["count"]["fired"]) < expected["count"]["steps"])
    assert len(fired) == len(found.trainer.optimizers) * len(ours)
    assert any(fired) or not mode.acts
    if mode.rows:
        same_rows(found, dry, monitor)


def same_rows(found: Run, dry: Run, monitor: GradientMonitor) -> None:
    """The threshold and the rate of every row."""
    several, results = len(found.trainer.optimizers) > 1, monitor.report().shadow
    for index in range(len(found.trainer.optimizers)):
        for i, one in enumerate(one for one in results if one.optimizer == index):
            for told, name in ((one.course.threshold, "threshold"), (one.course.clip_rate, "fraction")):
                logged = dry.rows.values(f"calib/would_clip_{name}.dry{i}" + (f"/{index}" if several else ""))
                expected = np.float32(logged).tolist()  # rows are kept so
                same_bits([x for x in told if x is not None], expected or [0.0] * told.count(0.0))


def exact_statistics(mode: Mode, found: Run) -> None:
    """BatchNorm stands first, so its exact statistics are those of the inputs."""
    norm = next(one for one in found.module.modules() if isinstance(one, nn.BatchNorm1d))
    x: Tensor = data().tensors[0].double()[: 8 * int(found.trainer.num_training_batches)]
    rtol = 1e-5 if norm.running_mean.dtype != torch.bfloat16 else 2e-2
    torch.testing.assert_close(norm.running_mean.double(), x.mean(0), rtol=rtol, atol=rtol)
    torch.testing.assert_close(norm.running_var.double(), x.var(0, correction=0), rtol=rtol, atol=rtol)
