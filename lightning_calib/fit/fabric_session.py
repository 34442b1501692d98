"""Our callbacks in a Fabric loop, where nothing but the one hook is called: what acts acts, and nothing is logged."""

from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_calib.fit.messages import say
from lightning_calib.fit.trainer_facts import LIGHTNING, overrides
from lightning_calib.fit.unsupported import unsupported_optimizer, unsupported_strategy
from lightning_calib.steps.gradient_view import Ledger
from lightning_calib.steps.optimizer_facts import scale_within

if TYPE_CHECKING:
    from lightning_calib.callbacks.base import CalibratedCallback

_REMEDY = "Use a Trainer, or `lightning_calib.functional.clip_grad_`, which clips in any loop."

_MORE = f"It was called outside `Trainer.fit`, and needs more than this one hook. {_REMEDY}"
_LATE = "It was not among `trainer.callbacks` when training began. Pass it to `Trainer(callbacks=[...])`."
_NOT_STARTED = (
    "It is among `trainer.callbacks`, but its class overrides `on_train_start` without calling that of its base, which "
    "begins the reading. Call `super().on_train_start(trainer, pl_module)` there."
)
WRAPPED = (
    "`trainer.callbacks` does not hold it itself: something else, such as a wrapper or a proxy, calls its hooks, so "
    "its place among the callbacks is not known. Pass the callback itself to `Trainer(callbacks=[...])`."
)


class Loose:
    """What one callback needs of a session, without the others: the module, and a record of each optimizer.

    Optimizers are numbered in the order of their first steps, which a resumed run must keep.
    """

    def __init__(self, callback: "CalibratedCallback", fabric: Any, module: Any) -> None:
        self.callback, self.module, self.ours = callback, _bare(module), [callback]
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)
        self.ledgers: dict[int, Ledger] = {}

    def turn(self, optimizer: Optimizer) -> None:
        """Judge and rescale this step's gradients."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Fabric's wrapper knows the groups, but not the scaler
        ledger = self.ledgers.get(id(optimizer))
        if ledger is None:
            ledger = self._add(optimizer)
        elif ledger.open():
            self.callback.lay(ledger)
        ledger.scale = self._pending(optimizer)
        if ledger.live:
            self.callback.act(ledger)
            self.callback.observe(ledger)

    def _add(self, optimizer: Optimizer) -> Ledger:
        reason = unsupported_optimizer(optimizer, hooks=False)
        if reason is not None:
            self.callback.refuse(reason)
        units = self.callback.needs_units
        ledger = Ledger(len(self.ledgers), optimizer, self.module, suffix="", units=units, scaler=self.scaler)
        self.ledgers[id(optimizer)] = ledger
        note = self.callback.start(self)  # type: ignore[arg-type]  # it asks for no more of a session than this
        if note and len(self.ledgers) == 1:
            say(note)
        self.callback.lay(ledger)
        self.callback._losses.tell(self.callback.label)
        ledger.open()
        return ledger

    def _pending(self, optimizer: Optimizer) -> Any:
        """The scale that is still in the gradients: Fabric takes it out inside the step, or where the user asked."""
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        return scale_within(self.scaler, optimizer)


def loosely(callback: "CalibratedCallback", host: Any, module: nn.Module) -> Loose | None:
    """Begin such a loop, or say why it cannot be; None for a callback that only observes.

    Raises:
        MisconfigurationException: If the callback needs more than this hook, or the host is no Fabric.
    """
    reason = _in_trainer(callback, host) if hasattr(host, "fit_loop") else None if callback.works_loose else _MORE
    if reason is not None:
        callback.refuse(reason)
        callback._off = True
        return None
    if not hasattr(getattr(host, "strategy", None), "precision"):
        raise MisconfigurationException(
            f"{callback.label} was called outside `Trainer.fit` without a Fabric, so it does not know the precision. "
            f"Pass `trainer=fabric`. {_REMEDY}"
        )
    reason = unsupported_strategy(host)
    if reason is not None:
        callback.refuse(reason)
    return Loose(callback, host, module)


def _in_trainer(callback: "CalibratedCallback", trainer: Any) -> str:
    listed = any(one is callback for one in trainer.callbacks)
    return _NOT_STARTED if listed and overrides("on_train_start", callback, (*LIGHTNING, "lightning_calib")) else _LATE


def _bare(module: Any) -> Any:
    """The module without Fabric's wrapper, whose names are not the user's."""
    return module.module if type(module).__name__ == "_FabricModule" else module
