"""What our callbacks share during one fit: the ledgers, who measures, and when a row is due."""

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_calib.fit.scalar_row import Row, step_row, write
from lightning_calib.fit.trainer_facts import foreign_between, grad_scaler, overrides, trainer_clip
from lightning_calib.fit.unsupported import several_closures, unseen_step, unsupported_optimizer
from lightning_calib.steps.counts import Tally
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.step_hooks import After, trainer_share
from lightning_calib.steps.unseen_steps import UnseenSteps

if TYPE_CHECKING:
    from lightning_calib.callbacks.base import CalibratedCallback
    from lightning_calib.dashboard.recorder import Dashboard


class Session:
    """One fit, seen by all of ours. The first of them (the owner) drives it, the last of them closes each step."""

    def __init__(self, trainer: "pl.Trainer", module: "pl.LightningModule", ours: "list[CalibratedCallback]") -> None:
        self.trainer, self.module, self.ours = trainer, module, ours
        self.owner, self.last = ours[0], ours[-1]
        self.scaler = grad_scaler(trainer)
        self.clip = trainer_clip(trainer, module)
        self.behind_foreign, foreign_last = foreign_between(trainer.callbacks, ours)  # type: ignore[attr-defined]
        unseen = foreign_last or overrides("on_before_optimizer_step", module)
        # Whether what the optimizer uses follows from what ours leave; else it is only seen, on logged steps.
        self.foreseeable = self.clip.how in (None, "norm") and not unseen
        self.watched = any(callback.watches for callback in ours)
        self.period = min(
            (callback.every_n_steps for callback in ours if callback.every_n_steps is not None),
            default=trainer.log_every_n_steps,  # type: ignore[attr-defined]
        )
        self.backwards = 0
        self.given_up: set[int] = set()
        self.dashboard: Dashboard | None = None  # GradientMonitor's, where it has one
        self.ledgers: dict[int, Ledger] = {}
        self.afters: dict[int, After] = {}
        self.unseen = UnseenSteps(self.ledgers.values, self._unseen)
        for optimizer in trainer.optimizers:
            self._add(optimizer)

    def _add(self, optimizer: Optimizer) -> Ledger | None:
        if unsupported_optimizer(optimizer) is not None:
            return None
        index = next(i for i, one in enumerate(self.trainer.optimizers) if one is optimizer)
        suffix = f"/{index}" if len(self.trainer.optimizers) > 1 else ""
        units = any(callback.needs_units for callback in self.ours)
        ledger = Ledger(index, optimizer, self.module, suffix=suffix, units=units, scaler=self.scaler)
        self.ledgers[id(optimizer)] = ledger
        self.afters[id(optimizer)] = After(ledger, self.clip, foreseeable=self.foreseeable, weights=self.watched)
        return ledger

    def _give_up(self, ledger: Ledger, reason: str) -> None:
        """A way of stepping under which nothing can be judged right: whoever acts refuses, the others fall silent."""
        self.given_up.add(ledger.index)
        self.afters[id(ledger.optimizer)].clear()
        ledger.opened = ledger.live = False
        ledger.before = None
        for callback in self.ours:
            callback.refuse(reason)

    def _unseen(self, ledger: Ledger, stepped: Optimizer) -> None:
        """A step of an optimizer's parameters that our hook was not called for."""
        # `Tuner.lr_find` inside of a fit puts other callbacks in the place of ours: its steps are none of our business.
        here = any(one is self.owner for one in self.trainer.callbacks)  # type: ignore[attr-defined]
        if here and ledger.index not in self.given_up:
            self._give_up(ledger, unseen_step(stepped, ledger.optimizer))

    def ledger(self, optimizer: Optimizer) -> Ledger | None:
        """The record of the optimizer that is stepped; None for one whose gradients cannot be judged."""
        known = id(optimizer) in self.ledgers
        if not known and any(one is optimizer for one in self.trainer.optimizers):
            self._replace()
        found = self.ledgers.get(id(optimizer))
        return None if found is None or found.index in self.given_up else found

    def _replace(self) -> None:
        """Optimizers have taken others' places in the middle of the fit: each takes over the memory of its place."""
        now = {id(one) for one in self.trainer.optimizers}
        gone = {ledger.index: ledger for key, ledger in self.ledgers.items() if key not in now}
        self.detach()
        for old in gone.values():
            del self.ledgers[id(old.optimizer)], self.afters[id(old.optimizer)]
        for optimizer in self.trainer.optimizers:
            ledger = self._add(optimizer) if id(optimizer) not in self.ledgers else None
            if ledger is None:
                continue
            if ledger.index in gone:
                old = gone[ledger.index]
                ledger.tally, ledger.backwards = self.settled(old), old.backwards
            for callback in self.ours:
                callback.lay(ledger)
        self.attach()

    @property
    def step(self) -> int:
        """The x of a row, as in Lightning's own monitors: batches that ended in a step, whatever stepped in them."""
        return self.trainer.fit_loop.epoch_loop._batches_that_stepped

    @property
    def due(self) -> bool:
        """Whether the row of the batch at hand is written."""
        return self.trainer.fast_dev_run or (self.period > 0 and (self.step + 1) % self.period == 0)  # type: ignore[attr-defined]

    def open(self, ledger: Ledger) -> None:
        """Begin an optimizer's step; what its last one left open is settled first."""
        ledger.visited = True
        self.unseen.announce(ledger)
        if ledger.opened and self.module.automatic_optimization:  # a batch takes one step, and has not ended
            self._give_up(ledger, several_closures(ledger.optimizer))
            return
        self.settle(ledger)
        passes, ledger.backwards = self.backwards - ledger.backwards, self.backwards
        fresh = passes > 0 or not self.module.automatic_optimization
        ledger.completion = self._completion(passes)
        if ledger.open():
            for callback in self.ours:
                callback.lay(ledger)
        if not fresh:
            # No backward pass since the last step (a `training_step` that returned None, or SWA's BatchNorm epoch):
            # whatever lies in `grad` is old. It passes through and is not recorded; nothing at all is a skipped step.
            ledger.opened, ledger.live = not ledger.live, False
        if self.due:
            ledger.note_rates()
        if ledger.live:
            ledger.before = ledger.total(ledger.reading())
            if self.dashboard is not None:
                self.dashboard.witness(ledger)
            for callback in sorted(self.ours, key=lambda one: not one.guards):  # a guard may have to read again
                callback.inspect(ledger)

    def _completion(self, passes: int) -> float:
        """Lightning divides every loss by the full number of micro-batches, also in a window that has fewer."""
        if passes == 0 or not self.module.automatic_optimization:
            return 1.0
        return max(1.0, self.trainer.accumulate_grad_batches / passes)

    def close(self, ledger: Ledger) -> None:
        """End of our part of the step: count it, and prepare to see what the optimizer makes of it."""
        if ledger.before is None:
            return
        tally = ledger.tally.add_overflow(ledger.before, scaled=self.scaler is not None, fused=ledger.fused)
        reduced = torch.zeros_like(ledger.before).bool()
        if ledger.live:
            reduced = torch.stack([reduced, *ledger.reduced]).any()
            if self.due or self.clip.how == "norm" or 2.0 in ledger.readings:
                ledger.final = ledger.total(ledger.reading())
            if ledger.final is not None and self.foreseeable:
                left, by_trainer = self._left(ledger, ledger.final)
                tally, reduced = tally.add_left(ledger.before, left, by_trainer), reduced | by_trainer
        ledger.tally = tally.add_step(ledger.before, reduced)
        for callback in self.ours:
            callback.observe(ledger)
        if self.due and ledger.live:
            self.afters[id(ledger.optimizer)].prepare()

    def _left(self, ledger: Ledger, final: Tensor) -> tuple[Tensor, Tensor]:
        if self.clip.how is None:
            return final, torch.zeros_like(final).bool()
        share = trainer_share(self.clip, final, ledger.completion)
        return final * share, (share < 1) & final.isfinite()

    def settle(self, ledger: Ledger) -> None:
        """After the step: a turn that came and was not taken was skipped."""
        ledger.tally, ledger.opened = self.settled(ledger), False

    def settled(self, ledger: Ledger) -> Tally:
        """Its counts with the step at hand, if that is over."""
        skipped = ledger.opened and not (ledger.live and ledger.stepped)
        return ledger.tally._replace(skipped=ledger.tally.skipped + skipped)

    @property
    def row_pending(self) -> bool:
        """Whether a step is over whose row is due and has not been written yet."""
        return self.due and self._over

    @property
    def _over(self) -> bool:
        """Whether torch has run each step whose turn it was; one that a GradScaler skips ends with the batch only."""
        waiting = [ledger.visited for ledger in self.ledgers.values() if ledger.opened]
        return bool(waiting) and not any(waiting)

    def tallies(self) -> dict[int, Tally]:
        """The counts by optimizer as a checkpoint wants them: as they will be when a pending row is written."""
        found = {one.index: self.settled(one) if self._over else one.tally for one in self.ledgers.values()}
        for one in self.ledgers.values():
            if self.row_pending and self.in_row(one, one.opened):
                found[one.index] = found[one.index].new_window()
        return found

    def in_row(self, ledger: Ledger, turn: bool) -> bool:
        """Whether it has a part in a row that is due: also, under manual optimization, if it rests in that batch."""
        return turn or (ledger.tally.window_steps > 0 and not self.module.automatic_optimization)

    def flush(self) -> None:
        """At the end of the batch: settle every optimizer and, if it is due, write the row."""
        self.unseen.end_batch()
        row: Row = {}
        for key, ledger in self.ledgers.items():
            ledger.turn = ledger.opened
            self.settle(ledger)
            if self.due and self.in_row(ledger, ledger.turn):
                mine = step_row(self, ledger, self.afters[key])
                row |= {tag + ledger.suffix: value for tag, value in mine.items()}
                if self.dashboard is not None:
                    self.dashboard.gather(ledger)
                self.afters[key].clear()
                ledger.tally = ledger.tally.new_window()
        if row:
            write(self.trainer, row, self.step, self.dashboard)

    def attach(self) -> None:
        """Hook into torch's own step: the only place where what the optimizer used can be seen."""
        self.unseen.attach()
        for after in self.afters.values():
            after.attach()
        for ledger in self.ledgers.values() if any(callback.controls_rates for callback in self.ours) else ():
            ledger.rates_in_step.attach()

    def detach(self) -> None:
        """Take the hooks away again."""
        self.unseen.detach()
        for key, after in self.afters.items():
            after.detach()
            self.ledgers[key].rates_in_step.detach()
