"""The shared base: when our callbacks begin and end, how they take turns, and what goes into a checkpoint."""

from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from lightning_calib.callbacks.observing import never_ends_a_run
from lightning_calib.fit.fabric_session import WRAPPED, Loose, loosely
from lightning_calib.fit.messages import say, warn
from lightning_calib.fit.scalar_row import Row
from lightning_calib.fit.session import Session
from lightning_calib.fit.start_line import start_line, warn_of_two_clippers
from lightning_calib.fit.unsupported import unsupported_optimizer, unsupported_strategy
from lightning_calib.steps.counts import Count, windowless
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.saved_state import Losses, loaded, of_optimizer, to_host

VERSION = 1


class CalibratedCallback(Callback):
    """A callback that reads gradients through the record that all of ours share.

    A kind of callback fills in `start`, `lay`, `inspect`, `act`, `observe`, `row` and `finish`. What it keeps about an
    optimizer goes into ``self._books[index]``, whose ``saved()`` is what a checkpoint holds.
    """

    acts: bool = True  # whether it may change gradients
    clips: bool = False  # whether it reports how often it reduced them
    how: Literal["fixed", "adaptive", "normalise"] = "adaptive"  # what it clips by, for the summary
    guards: bool = False  # whether it looks for gradients that are not finite
    controls_rates: bool = False  # whether it scales learning rates
    works_loose: bool = False  # whether the hook before the step is all that it needs
    watches: bool = False  # whether the full row is wanted
    needs_units: bool = False  # whether the norms of units must be measured
    norm_types: tuple[float, ...] = (2.0,)  # each further one costs a reading
    extra_reading: str = ""  # why else the gradients are read again, for the start line
    every_n_steps: int | None = None
    name: str | None = None
    _transient: ClassVar[tuple[str, ...]] = ("log", "log_dict")  # bound methods of the module, put here by the Trainer

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._session: Session | None = None
        self._loose: Loose | None = None
        self._off = False
        self._saved: dict[str, Any] = {}
        self._books: dict[int, Any] = {}
        self._losses = Losses()

    @property
    def label(self) -> str:
        """How sentences call it."""
        return f"{type(self).__name__}({self.name})" if self.name else type(self).__name__

    # What the kinds of callbacks fill in

    def start(self, session: Session) -> str | None:
        """Once per fit, before `lay`; the text, if any, goes into the start line."""

    def lay(self, ledger: Ledger) -> None:
        """Prepare for an optimizer's plan: at the start, and again when the plan has changed."""

    def inspect(self, ledger: Ledger) -> None:
        """Look at a step before any of ours acts."""

    def look_again(self, ledger: Ledger) -> None:
        """Look at a step that a foreign callback may have changed after `inspect`."""

    def act(self, ledger: Ledger) -> None:
        """Change the gradients of this step, if that is what it does."""

    def observe(self, ledger: Ledger) -> None:
        """Look at a step when all of ours have acted."""

    def row(self, ledger: Ledger) -> Row:
        """What it adds to a logged row: tag without suffix, value."""
        return {}

    def count(self, ledger: Ledger) -> Count:
        """How often it reduced this optimizer's gradients; of callbacks that clip."""
        count: Count = self._books[ledger.index].count
        return count

    def finish(self, session: Session) -> None:
        """The fit is over, or broken off."""

    # Lightning's hooks, the same for all

    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Start afresh for a new fit; refuse a strategy under which gradients cannot be read."""
        if stage != "fit":
            return
        self._reset()
        reason = unsupported_strategy(trainer)
        if reason is not None:
            self.refuse(reason)
            self._off = True

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Join the session; the first of ours that is told makes it for all."""
        if self._off or self._session is not None:
            return
        # By the type, not by `isinstance`: a proxy says that it is an instance, and is not the callback itself.
        ours = [one for one in trainer.callbacks if issubclass(type(one), CalibratedCallback) and not one._off]  # type: ignore[attr-defined]
        if all(one is not self for one in ours):
            self.refuse(WRAPPED)
            self._off = True
            return
        for optimizer in trainer.optimizers:
            reason = unsupported_optimizer(optimizer)
            for one in ours if reason is not None else ():
                one.refuse(str(reason))
        session = Session(trainer, pl_module, ours)
        notes = [one._join(session) for one in ours]
        kept = [(one._saved, one._losses) for one in ours]
        for ledger in session.ledgers.values():
            ledger.tally = ledger.tally.restored(kept, ledger.index)
        session.attach()
        say(start_line(session, [note for note in notes if note]))
        warn_of_two_clippers(session)
        for one in ours:
            one._losses.tell(one.label)

    def _join(self, session: Session) -> str | None:
        self._session = session
        note = self.start(session)
        for ledger in session.ledgers.values():
            self.lay(ledger)
        return note

    def refuse(self, reason: str) -> None:
        """Raise if it acts; else say why it stays silent."""
        if self.acts:
            raise MisconfigurationException(f"{self.label} cannot act here. {reason}")
        warn(f"{self.label} stays silent. {reason}")

    def on_after_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Note that there are new gradients."""
        if self._session is not None and self is self._session.owner:
            self._session.backwards += 1

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Take a turn: the first of ours measures, each acts, the last closes the step."""
        if self._session is None:
            self._loose = self._loose or (None if self._off else loosely(self, trainer, pl_module))
            if self._loose is not None:
                self._loose.turn(optimizer)
        elif (ledger := self._session.ledger(optimizer)) is not None:
            self._turn(self._session, ledger)

    @never_ends_a_run
    def _turn(self, session: Session, ledger: Ledger) -> None:
        if self is session.owner:
            session.open(ledger)
        elif self in session.behind_foreign:
            ledger.forget()
            for one in session.ours if ledger.live else ():
                one.look_again(ledger)
        if ledger.live:
            self.act(ledger)
        if self is session.last:
            session.close(ledger)

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row, if one is due."""
        if self._session is not None and self is self._session.owner:
            self._session.flush()

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Leave the session."""
        self._leave()

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Leave the session: no hook of ours may stay behind, and no trouble of ours may hide the exception."""
        try:
            self._leave()
        except Exception as trouble:
            warn(f"{self.label} could not keep what it knew when training broke off: {trouble!r}")

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Leave the session, if that has not happened yet."""
        self._leave()

    def _leave(self) -> None:
        """The first of ours that is told ends the session for all: what one of them sums up may be another's count."""
        session = self._session
        if session is None:
            return
        session.detach()
        try:
            for one in session.ours:
                one.finish(session)
            for one in session.ours:
                one._saved = one.state_dict()
        finally:
            for one in session.ours:
                one._session, one._books = None, {}

    # Checkpoints

    @property
    def state_key(self) -> str:
        """The class, and the name where one was given: two callbacks of a class need two names."""
        return f"{type(self).__qualname__}.{self.name}" if self.name else type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Builtins and CPU tensors only: it loads with ``weights_only=True`` and without this package."""
        if self._session is None and self._loose is None:
            return {"version": VERSION, **self._saved}
        books = {str(index): book.saved() for index, book in self._books.items()}
        if self._session is None:
            return {"version": VERSION, "optimizers": books}
        if self._session.row_pending:  # it will be written, but by this run: to the one that resumes it is history
            for book in books.values():
                book.update({"count": windowless(book["count"])} if "count" in book else {})
        # Each of ours keeps the shared counts, so that they outlive the removal of any other.
        tallies = {str(index): to_host(tally._asdict()) for index, tally in self._session.tallies().items()}
        return {"version": VERSION, "optimizers": books, "tally": tallies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the optimizers exist."""
        self._saved = loaded(state_dict, VERSION, self.label, self._losses)

    def keep(self, ledger: Ledger, book: Any) -> None:
        """Keep a book about this optimizer, with what is known from before: from the plan before, or a checkpoint."""
        saved, old = None, self._books.get(ledger.index)
        with self._losses.of("what it remembered of this optimizer"):
            saved = of_optimizer(self._saved, "optimizers", ledger.index) if old is None else old.saved()
        if saved is not None and not book.restore(saved, f"optimizers.{ledger.index}", self._losses):
            warn(f"{self.label}: the saved state is of other parameters or another method; it starts afresh.")
        self._books[ledger.index] = book

    def __getstate__(self) -> dict[str, Any]:
        """For pickling and copying: the arguments and the state, without the Trainer and the module."""
        kept = {key: value for key, value in self.__dict__.items() if key not in self._transient}
        return {**kept, "_session": None, "_loose": None, "_books": {}, "_saved": self.state_dict()}
