"""The shared base: how a callback follows Lightning's hooks, and what it keeps in a checkpoint."""

from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from lightning_calib.callbacks.public import PublicCallback, check_names, refuses_classes
from lightning_calib.fit.fabric_session import WRAPPED, FabricSession, fabric_session
from lightning_calib.fit.messages import say, warn
from lightning_calib.fit.participant import Participant
from lightning_calib.fit.session import Session
from lightning_calib.fit.start_line import start_line, warn_of_two_clippers
from lightning_calib.fit.trainer_facts import root_of
from lightning_calib.fit.unsupported import unsupported, unsupported_strategy
from lightning_calib.functional.saved_state import check_saved, entry, restored
from lightning_calib.steps.counts import ClipCounts
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.saved_state import Losses, MethodMemory, of_optimizer, to_host

VERSION = 1


class CalibratedCallback(PublicCallback, Participant):
    """A callback that takes part in a session, which all of ours share.

    A kind of callback declares its `_needs` and fills in what `Participant` names. What its own method remembers of an
    optimizer it makes in `_lay`; it is found in ``self._own[index]`` and saved with the rest.
    """

    _transient: ClassVar[tuple[str, ...]] = ("log", "log_dict")  # bound methods of the module, put here by the Trainer

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._session: Session | None = None
        self._fabric: FabricSession | None = None
        self._off = False
        self._saved: dict[str, Any] = {}
        self._own: dict[int, Any] = {}  # by the optimizer's index: a `MethodMemory`, or None
        self._losses = Losses()

    @property
    def _label(self) -> str:
        """How sentences call it."""
        name = getattr(self, "name", None)
        return f"{type(self).__name__}({name})" if name else type(self).__name__

    def _lay(self, view: GradientView) -> MethodMemory | None:
        """What its method remembers of an optimizer, fresh; None for nothing."""

    def _judges(self, own: Any) -> bool:
        """Whether its rules leave it anything to do with the optimizer of which it remembers this."""
        return True

    def _finish(self) -> None:
        """The fit is over, or broken off."""

    # Lightning's hooks, the same for all

    @refuses_classes
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Start afresh for a new fit; refuse a strategy under which gradients cannot be read."""
        if stage != "fit":
            return
        self._reset()
        reason = None if self._needs.after_step else unsupported_strategy(trainer)
        if reason is not None:
            self._refuse(reason)
            self._off = True

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Join the session; the first callback to get here makes it for all."""
        if self._off or self._session is not None:
            return
        # By the type, not by `isinstance`: a proxy says that it is an instance, and is not the callback itself.
        ours = [one for one in trainer.callbacks if issubclass(type(one), CalibratedCallback) and not one._off]  # type: ignore[attr-defined]
        if all(one is not self for one in ours):
            self._refuse(WRAPPED)
            self._off = True
            return
        check_names(ours)
        for optimizer in trainer.optimizers:
            reason = unsupported(trainer, optimizer, root_of(trainer, pl_module))
            for one in ours if reason is not None else ():
                one._refuse(str(reason))
        session, notes = Session(trainer, pl_module, ours), []
        for one in ours:
            one._session = session
            notes.append(one._start(session.start()))
        session.prepare_all()
        kept = [(one._saved, one._losses) for one in ours]
        for run in session.runs.values():
            run.memory = run.memory._replace(steps=run.memory.steps.restored(kept, run.view.index))
        session.ready = True
        session.attach()
        say(start_line(trainer, session.facts, ours, [note for note in notes if note]))
        warn_of_two_clippers(session.facts, ours)
        for one in ours:
            one._warn_of_losses()

    def _refuse(self, reason: str) -> None:
        """Raise if it acts; else say why it stays silent."""
        if self._needs.acts:
            raise MisconfigurationException(f"{self._label} cannot act here. {reason}")
        warn(f"{self._label} stays silent. {reason}")

    def on_after_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Note that there are new gradients."""
        if self._session is not None and self is self._session.first:
            self._session.backwards += 1

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Take a turn: the first callback measures, each acts, the last closes the step."""
        if self._session is not None:
            self._session.turn(self, optimizer)
        elif not self._off:
            self._fabric = self._fabric or fabric_session(self, trainer, pl_module)
            self._off = self._fabric is None
            if self._fabric is not None:
                with torch.no_grad():
                    self._fabric.turn(optimizer)
                self._warn_of_losses()

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row, if one is due."""
        if self._session is not None and self is self._session.first:
            self._session.end_batch(outputs)

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Leave the session."""
        self._leave()

    @refuses_classes
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Leave the session: no hook of ours may stay behind, and no trouble of ours may hide the exception."""
        try:
            self._leave()
        except Exception as trouble:
            warn(f"{self._label} could not keep what it knew when training broke off: {trouble!r}")

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Leave the session, if that has not happened yet."""
        self._leave()

    def _leave(self) -> None:
        """The first callback to get an end hook finishes all of them, because summaries read each other's counts."""
        session = self._session
        if session is None:
            return
        session.detach()
        ours = [one for one in session.participants if isinstance(one, CalibratedCallback)]
        try:
            for one in ours:
                one._finish()
            for one in ours if session.ready else ():
                one._saved = one.state_dict()
        finally:
            for one in ours:
                one._session, one._own = None, {}
                if one._recorder is not None:
                    one._recorder = None  # it knows the module and its gradients

    # Checkpoints

    @property
    def state_key(self) -> str:
        """The class, and the name where one was given: two callbacks of a class need two names."""
        name = getattr(self, "name", None)
        return f"{type(self).__qualname__}.{name}" if name else type(self).__qualname__

    def _prepare(self, view: GradientView, memory: OptimizerMemory) -> OptimizerMemory:
        """Prepare for an optimizer's plan: take up what the plan before, or a checkpoint, has left."""
        key, old = f"optimizers.{view.index}", self._own.get(view.index)
        saved = self._saved_of(view.index) if old is None else old.saved()
        own = self._lay(view)
        if self._needs.clips:
            others = {name: counts for name, counts in memory.clips.items() if name != self.state_key}
            counts = memory.clips.get(self.state_key) or self._counts(view, saved if old is None else None, key)
            memory = memory._replace(clips={**others, self.state_key: counts} if self._judges(own) else others)
        if own is not None and saved is not None and not own.restore(saved, key, self._losses):
            warn(f"{self._label}: the saved state is of other parameters or another method; it starts afresh.")
        self._own[view.index] = own
        return memory

    def _saved_of(self, index: int) -> dict[str, Any] | None:
        with self._losses.of("what it remembered of this optimizer"):
            return of_optimizer(self._saved, "optimizers", index)
        return None

    def _counts(self, view: GradientView, saved: dict[str, Any] | None, key: str) -> ClipCounts:
        counts = ClipCounts.empty(view.plan.device)
        with self._losses.of("how often it reduced gradients"):
            return counts if saved is None else restored(entry(saved, "count", key), counts, f"{key}.count")
        return counts

    def _remembered(self, index: int, memory: OptimizerMemory) -> dict[str, Any]:
        """What a checkpoint holds of one optimizer, beside the counts of steps."""
        own = self._own.get(index)
        counted = memory.clips.get(self.state_key, ClipCounts.empty())
        counts = {"count": to_host(counted._asdict())} if self._needs.clips else {}
        return {**(own.saved() if own is not None else {}), **counts}

    def state_dict(self) -> dict[str, Any]:
        """Builtins and CPU tensors only: it loads with ``weights_only=True`` and without this package."""
        host = self._session or self._fabric
        if host is None or not host.ready:
            return {"version": VERSION, **self._saved}
        memories = host.memories_to_save()
        own = {str(i): self._remembered(i, memory) for i, memory in memories.items() if i in self._own}
        if self._session is None:
            return {"version": VERSION, "optimizers": own}
        # Each of ours keeps the shared counts, so that they outlive the removal of any other.
        steps = {str(index): to_host(memory.steps._asdict()) for index, memory in memories.items()}
        return {"version": VERSION, "optimizers": own, "tally": steps, **self._more_state(memories)}

    def _more_state(self, memories: dict[int, OptimizerMemory]) -> dict[str, Any]:
        """What else goes into the checkpoint of a callback in a session."""
        return {}

    state_dict.__wrapped__ = PublicCallback.state_dict  # type: ignore[attr-defined]  # `check_names` speaks, not Lightning

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the optimizers exist."""
        self._saved = {}
        with self._losses.of("all that it remembered"):
            found = entry(state_dict, "version", "state")
            check_saved(found, VERSION, "version")
            if found == VERSION:
                self._saved = dict(state_dict)
            else:
                warn(f"{self._label}: a state of version {found} cannot be read; starting afresh.")

    def _warn_of_losses(self) -> None:
        sentence = self._losses.sentence(self._label)
        if sentence:
            warn(sentence)

    def __getstate__(self) -> dict[str, Any]:
        """For pickling and copying: the arguments and the state, without the Trainer and the module."""
        kept = {key: value for key, value in self.__dict__.items() if key not in self._transient}
        return {**kept, "_session": None, "_fabric": None, "_own": {}, "_saved": self.state_dict()}
