"""The optimizers of a fit: which of them can be judged, how their steps are followed, and who takes whose place."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.optim import Optimizer

from lightning_calib.fit.messages import warn
from lightning_calib.fit.participant import Participant
from lightning_calib.fit.trainer_facts import FitFacts
from lightning_calib.fit.unsupported import unseen_step, unsupported
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.step_hooks import StepHooks
from lightning_calib.steps.step_record import StepRecord
from lightning_calib.steps.unseen_steps import UnseenSteps


class WatchedOptimizers:
    """Those of the Trainer's optimizers whose gradients can be judged.

    Attributes:
        runs: What is held of each, by its identity.
        hooks: What follows the steps of each, likewise.
        refused: Indices of those that were given up in the middle of the fit.
        unseen: What sees steps that Lightning did not announce.
    """

    trainer: pl.Trainer
    module: nn.Module
    participants: Sequence[Participant]
    facts: FitFacts

    def __init__(
        self,
        trainer: "pl.Trainer",
        module: nn.Module,
        participants: Sequence[Participant],
        facts: FitFacts,
    ) -> None:
        self.trainer, self.module, self.participants, self.facts = trainer, module, participants, facts
        self.runs: dict[int, OptimizerRun] = {}
        self.hooks: dict[int, StepHooks] = {}
        self.refused: set[int] = set()
        self.unseen: UnseenSteps = UnseenSteps(lambda: [run.view for run in self.runs.values()], self._refuse_unseen)
        for optimizer in trainer.optimizers:
            self._add(optimizer)

    def attach(self) -> None:
        """Hook into torch's own step: the only place where what the optimizer used can be seen; an engine has none."""
        if self.facts.engine is not None:
            return
        self.unseen.attach()
        for key, hooks in self.hooks.items():
            hooks.attach()
            if any(one._needs.scales_rates for one in self.participants):
                self.runs[key].rates.attach()

    def detach(self) -> None:
        """Take the hooks away again."""
        self.unseen.detach()
        for key, hooks in self.hooks.items():
            hooks.detach()
            self.runs[key].rates.detach()

    def run_of(self, optimizer: Optimizer, prepare: Callable[[OptimizerRun], None]) -> OptimizerRun | None:
        """What is held of the optimizer that is stepped; None for one whose gradients cannot be judged.

        Args:
            optimizer: One that the Trainer knows, or not.
            prepare: Called for each that has taken another's place.
        """
        if self.facts.engine is not None:  # it has one, inside of its own, and nobody takes its place
            run = next(iter(self.runs.values()), None)
            return None if run is None or run.view.index in self.refused else run
        if id(optimizer) not in self.runs and any(one is optimizer for one in self.trainer.optimizers):
            self._replace(prepare)
        run = self.runs.get(id(optimizer))
        return None if run is None or run.view.index in self.refused else run

    def refuse(self, run: OptimizerRun, reason: str) -> None:
        """Nothing right can be said of this optimizer from here on: acting callbacks raise, the others fall silent."""
        self.refused.add(run.view.index)
        run.record = StepRecord()
        self.hooks[id(run.view.optimizer)].forget()
        for one in self.participants:
            one._refuse(reason)

    def _add(self, optimizer: Optimizer) -> OptimizerRun | None:
        if unsupported(self.trainer, optimizer, self.module) is not None:
            return None
        index = next(i for i, one in enumerate(self.trainer.optimizers) if one is optimizer)
        suffix = f"/{index}" if len(self.trainer.optimizers) > 1 else ""
        units, engine = self.facts.units, self.facts.engine
        optimizer = optimizer if engine is None else engine.optimizer
        known: Any = {"suffix": suffix, "units": units, "scaler": self.facts.scaler, "engine": engine}
        acts = any(one._needs.acts for one in self.participants)
        view = GradientView(index, optimizer, self.module, acts=acts, **known)
        run = self.runs[id(optimizer)] = OptimizerRun.of(view)
        self.hooks[id(optimizer)] = StepHooks(
            run,
            self.facts.clip,
            final_norm_computable=self.facts.final_norm_computable,
            weights=self.facts.full_row and (engine is None or engine.keeps_weights(self.module)),
            warn=warn,
        )
        return run

    def _replace(self, prepare: Callable[[OptimizerRun], None]) -> None:
        """Optimizers have taken others' places in the middle of the fit: each takes over the memory of its place."""
        now = {id(one) for one in self.trainer.optimizers}
        gone = {run.view.index: run for key, run in self.runs.items() if key not in now}
        self.detach()
        for old in gone.values():
            del self.runs[id(old.view.optimizer)], self.hooks[id(old.view.optimizer)]
        for optimizer in self.trainer.optimizers:
            run = self._add(optimizer) if id(optimizer) not in self.runs else None
            if run is None:
                continue
            if run.view.index in gone:
                old = gone[run.view.index]
                run.memory, run.backwards = old.memory.end_step(old.record), old.backwards
            prepare(run)
        self.attach()

    def _refuse_unseen(self, view: GradientView, stepped: Optimizer) -> None:
        """A step of an optimizer's parameters that our hook was not called for."""
        # `Tuner.lr_find` inside of a fit puts other callbacks in the place of ours: its steps are none of our business.
        here = any(one is self.participants[0] for one in self.trainer.callbacks)  # type: ignore[attr-defined]
        if here and view.index not in self.refused:
            self.refuse(self.runs[id(view.optimizer)], unseen_step(stepped, view.optimizer))
