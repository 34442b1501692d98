"""What is refused, strategies, optimizers and ways of stepping: for whom, why, and the way out."""

from inspect import getclosurevars
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
from torch import nn
from torch.optim import LBFGS, Optimizer

from lightning_calib.fit.trainer_facts import engine_of
from lightning_calib.functional import fsdp1
from lightning_calib.functional.dtensor import why_not
from lightning_calib.functional.plan import tensors_of

Need = Literal["gradients", "steps", "rates", "forward"]
_KIND, _OWN = "{kind} is not supported", "{own} is not supported"


class Refused(NamedTuple):
    """One row of the table; its sentences begin with ``subject``, and go on with the reason and the remedy.

    Attributes:
        what: A class, the name of one whose library may not be installed, or a way of stepping.
        need: What a callback must need to be refused: to read the "gradients" once per step, to see the "steps"
            themselves, to scale learning "rates" within a step, or a "forward" pass outside training.
        reason: Why.
        remedy: The way out.
        subject: What it is; ``kind`` stands for the class in the table, ``own`` for that of the object.
    """

    what: type | str
    need: Need
    reason: str
    remedy: str
    subject: str

    def text(self, **names: str) -> str:
        """The sentences."""
        return f"{self.subject.format(**names)}: {self.reason}. {self.remedy}."


_NOT_WHOLE = (
    "outside its own forward the parameters are not whole",
    "Use FSDP2 (`ModelParallelStrategy`) or DDP",
)
_SEVERAL_CLOSURES = (
    "it evaluates the gradient several times per step, and each call would be judged as a step of its own"
)
_FIRST_ORDER = "Use another optimizer, a first-order one"
_READS_EARLY = "it reads the learning rate before the gradients are known"
_COPIES_EARLY = "it copies the learning rate before the gradients are known"

REFUSED = (
    # Strategies
    Refused(
        "DeepSpeedStrategy",
        "gradients",
        "DeepSpeed keeps the gradients to itself, and finds their norm when it takes the step",
        "Use `GradientMonitor`, which works, and counts the steps that DeepSpeed drops because their norm is not "
        "finite; `Trainer(gradient_clip_val=...)`, which Lightning makes DeepSpeed's own `gradient_clipping`; for "
        "anything else FSDP2 (`ModelParallelStrategy`)",
        _KIND,
    ),
    Refused(
        "DeepSpeedStrategy",
        "steps",
        "its model is no `deepspeed.DeepSpeedEngine`, which alone knows the norm of a step",
        "Use versions of Lightning and DeepSpeed that were tried, 2.6 and 0.19, or FSDP2 (`ModelParallelStrategy`)",
        _KIND,
    ),
    Refused("DeepSpeedStrategy", "forward", *_NOT_WHOLE, _KIND),
    # Optimizers
    Refused(LBFGS, "gradients", _SEVERAL_CLOSURES, _FIRST_ORDER, _OWN),
    Refused("Rprop", "rates", _READS_EARLY, "Use another optimizer", "{kind}"),
    Refused("ZeroRedundancyOptimizer", "rates", _COPIES_EARLY, "Use another optimizer", "{kind}"),
    # Ways of stepping
    Refused(
        "several closures",
        "gradients",
        _SEVERAL_CLOSURES,
        f"{_FIRST_ORDER}, or manual optimization with one `optimizer.step()` per gradient",
        _OWN,
    ),
    Refused(
        "no hooks",
        "steps",
        "its constructor skips that of `torch.optim.Optimizer`, so `step` runs none of torch's hooks, and what it does "
        "cannot be seen",
        "Use the optimizer that it wraps, or call `super().__init__(params, defaults)` in its constructor",
        _OWN,
    ),
    Refused(
        "past Lightning",
        "steps",
        "`self.optimizers(use_pl_optimizer=False)` gives torch's own optimizer, whose step no callback sees",
        "Use `self.optimizers()`",
        "An optimizer's step has gone past Lightning",
    ),
    Refused(
        "by another optimizer",
        "steps",
        "`on_before_optimizer_step` was not called, so no callback saw the gradient",
        "Use `optimizer.step()` of `self.optimizers()`, or clip with `lightning_calib.functional.clip_grad_` before "
        "the inner step",
        "{own} has stepped the parameters of {known} by itself, as sharpness-aware minimisation by `first_step` and "
        "`second_step` does",
    ),
)
_TABLE = {(row.what, row.need): row for row in REFUSED}


def refused(thing: object, need: Need) -> str | None:
    """Why a strategy or an optimizer is refused for its class or a base of it; None where it is not."""
    for kind in type(thing).__mro__:
        row = _TABLE.get((kind, need)) or _TABLE.get((kind.__name__, need))
        if row is not None:
            return row.text(kind=kind.__name__, own=type(thing).__name__)
    return None


def unsupported_strategy(trainer: "pl.Trainer") -> str | None:
    """Why gradients cannot be read under the Trainer's strategy, with the way out; None where they can."""
    return refused(trainer.strategy, "gradients")


def unsupported(trainer: "pl.Trainer", optimizer: Optimizer, module: nn.Module) -> str | None:
    """Why the steps of one of the Trainer's optimizers cannot be followed, with the way out; None where they can."""
    engine = engine_of(trainer)
    if engine is not None:
        return engine.why_not()
    return refused(getattr(trainer, "strategy", None), "steps") or unsupported_optimizer(optimizer, module)


def unsupported_optimizer(optimizer: Optimizer, module: nn.Module | None = None, *, hooks: bool = True) -> str | None:
    """Why this optimizer's gradients cannot be judged once per step, with the way out; None where they can.

    Args:
        optimizer: Any.
        module: What has its parameters.
        hooks: Whether its step has to be seen.
    """
    reason = refused(optimizer, "gradients")
    if reason is None and hooks and not _runs_hooks(optimizer):
        reason = _TABLE["no hooks", "steps"].text(own=type(optimizer).__name__)
    tensors = tensors_of(optimizer)
    return reason or why_not(tensors) or fsdp1.why_not(tensors, module)


def _runs_hooks(optimizer: Optimizer) -> bool:
    """Whether its ``step`` calls what is registered with it."""
    register = getattr(type(optimizer), "register_step_pre_hook", None)
    if register is not Optimizer.register_step_pre_hook:
        return register is not None  # a wrapper hands hooks on to the optimizer inside
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return False
    optimizer._patch_step_function()  # as torch does in `zero_grad` where a constructor has left it out
    step: Any = optimizer.step
    by_scheduler = hasattr(step, "_wrapped_by_lr_sched")  # and keeps the step that it found
    if by_scheduler and not hasattr(step, "hooked"):  # before torch 2.5 without what that one says of itself
        step = getclosurevars(step).nonlocals.get("func")
    return bool(getattr(step, "hooked", False)) or ("step" in vars(optimizer) and not by_scheduler)


def unseen_step(stepped: Optimizer, known: Optimizer) -> str:
    """Why a step that Lightning's hook did not announce cannot be judged, with the way out."""
    way = "past Lightning" if stepped is known else "by another optimizer"
    return _TABLE[way, "steps"].text(own=type(stepped).__name__, known=type(known).__name__)


def several_closures(optimizer: Optimizer) -> str:
    """Why an optimizer that evaluates its closure more than once per step cannot be judged, with the way out."""
    return _TABLE["several closures", "gradients"].text(own=type(optimizer).__name__)
