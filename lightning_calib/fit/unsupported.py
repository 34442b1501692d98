"""Kinds of runs in which gradients cannot be read right: why, and the way out."""

import lightning.pytorch as pl
from torch.optim import LBFGS, Optimizer

from lightning_calib.functional.dtensor import why_not
from lightning_calib.functional.plan import tensors_of

# Strategies whose gradients are shards without a shape, or are not there at all when the hook runs.
_STRATEGIES = {
    "DeepSpeedStrategy": (
        "DeepSpeed keeps the gradients to itself, so that the hook sees none",
        "Set `gradient_clipping` in DeepSpeed's own configuration, or use FSDP2 (`ModelParallelStrategy`)",
    ),
    "FSDPStrategy": (
        "FSDP1 shows each rank a flat shard, whose norms are not the tensors' norms",
        "Use FSDP2 (`ModelParallelStrategy`, with `fully_shard` in `configure_model`), DDP, or in a hook of yours the "
        "root module's own `clip_grad_norm_`",
    ),
}


def unsupported_strategy(trainer: "pl.Trainer") -> str | None:
    """Why gradients cannot be read under the Trainer's strategy, with the way out; None where they can."""
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in _STRATEGIES:
            reason, remedy = _STRATEGIES[kind.__name__]
            return f"{kind.__name__} is not supported: {reason}. {remedy}."
    return None


def unsupported_optimizer(optimizer: Optimizer, *, hooks: bool = True) -> str | None:
    """Why this optimizer's gradients cannot be judged once per step, with the way out; None where they can.

    Args:
        optimizer: Any.
        hooks: Whether its step has to be seen.
    """
    if isinstance(optimizer, LBFGS):
        return several_closures(optimizer)
    if hooks and not _runs_hooks(optimizer):
        return (
            f"{type(optimizer).__name__} is not supported: its constructor skips that of `torch.optim.Optimizer`, so "
            "`step` runs none of torch's hooks, and what it does cannot be seen. Use the optimizer that it wraps, or "
            "call `super().__init__(params, defaults)` in its constructor."
        )
    return why_not(tensors_of(optimizer))


def _runs_hooks(optimizer: Optimizer) -> bool:
    """Whether its ``step`` calls what is registered with it."""
    register = getattr(type(optimizer), "register_step_pre_hook", None)
    if register is not Optimizer.register_step_pre_hook:
        return register is not None  # a wrapper hands hooks on to the optimizer inside
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return False
    optimizer._patch_step_function()  # as torch does in `zero_grad` where a constructor has left it out
    by_scheduler = hasattr(optimizer.step, "_wrapped_by_lr_sched")  # and keeps the step that it found
    return bool(getattr(optimizer.step, "hooked", False)) or ("step" in vars(optimizer) and not by_scheduler)


def unseen_step(stepped: Optimizer, known: Optimizer) -> str:
    """Why a step that Lightning's hook did not announce cannot be judged, with the way out."""
    if stepped is known:
        return (
            "An optimizer's step has gone past Lightning: `self.optimizers(use_pl_optimizer=False)` gives torch's own "
            "optimizer, whose step no callback sees. Use `self.optimizers()`."
        )
    return (
        f"{type(stepped).__name__} has stepped the parameters of {type(known).__name__} by itself, as sharpness-aware "
        "minimisation by `first_step` and `second_step` does: `on_before_optimizer_step` was not called, so no "
        "callback saw the gradient. Use `optimizer.step()` of `self.optimizers()`, or clip with "
        "`lightning_calib.functional.clip_grad_` before the inner step."
    )


def several_closures(optimizer: Optimizer) -> str:
    """Why an optimizer that evaluates its closure more than once per step cannot be judged, with the way out."""
    return (
        f"{type(optimizer).__name__} is not supported: it evaluates the gradient several times per step, and each call "
        "would be judged as a step of its own. Use another optimizer, a first-order one, or manual "
        "optimization with one `optimizer.step()` per gradient."
    )
