"""What kind of run this is: precision, strategy, who else clips; and which kinds cannot be right."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Literal, NamedTuple, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_calib.functional.plan import tensors_of
from lightning_calib.functional.sharding import why_not

C = TypeVar("C", bound=Callback)
LIGHTNING = ("lightning", "pytorch_lightning")

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


class TrainerClip(NamedTuple):
    """What the Trainer, or the module in its place, does to the gradient after our callbacks."""

    how: Literal["norm", "value", "module"] | None
    value: float

    def __str__(self) -> str:
        """As the user wrote it."""
        if self.how == "module":
            return "`configure_gradient_clipping`"
        algorithm = ", gradient_clip_algorithm='value'" if self.how == "value" else ""
        return f"Trainer(gradient_clip_val={self.value:g}{algorithm})"


def trainer_clip(trainer: "pl.Trainer", module: "pl.LightningModule") -> TrainerClip:
    """Find out who clips after our callbacks."""
    value = float(trainer.gradient_clip_val or 0.0)
    if overrides("configure_gradient_clipping", module):
        return TrainerClip("module", value)
    if value <= 0:
        return TrainerClip(None, 0.0)
    by_value = str(getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm)) == "value"
    return TrainerClip("value" if by_value else "norm", value)


def grad_scaler(trainer: "pl.Trainer") -> Any | None:
    """The enabled GradScaler of a 16-mixed run."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def pending_scale(scaler: Any | None, optimizer: Optimizer) -> Tensor | None:
    """The scale that is still in the gradients: fused optimizers divide it out inside their step."""
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    return scale_within(scaler, optimizer)


def scale_within(scaler: Any, optimizer: Optimizer) -> Tensor | None:
    """The scale, unless the GradScaler has taken it out of this step's gradients."""
    stage = scaler._per_optimizer_states[id(optimizer)]["stage"]
    scale: Tensor | None = scaler._scale if stage.name == "READY" else None
    return scale


def overrides(hook: str, instance: object, packages: tuple[str, ...] = LIGHTNING) -> bool:
    """Whether a module or a callback has code of its own for a hook.

    That of the ``packages`` does not count. It is told by where it is defined: there are two packages of Lightning, and
    neither's classes are the other's. What has no class with that hook (a mock, a proxy) has code of its own if it
    answers to the hook's name.
    """
    if hook in getattr(instance, "__dict__", {}):
        return True
    owner = next((kind for kind in type(instance).__mro__ if hook in vars(kind)), None)
    if owner is None:
        return callable(getattr(instance, hook, None))
    return owner.__module__.split(".")[0] not in packages


def foreign_between(callbacks: Sequence[Callback], ours: Sequence[C]) -> tuple[set[C], bool]:
    """Where foreign code may change the gradients between ours, by the order of the callbacks.

    Returns the ones of ours with such a callback between them and the one of ours before, and whether there is one
    behind the last of ours.
    """
    behind, foreign, met = set(), False, False
    for callback in callbacks:
        mine = next((one for one in ours if one is callback), None)
        if mine is None:
            foreign = foreign or (met and overrides("on_before_optimizer_step", callback))
        elif foreign:
            behind.add(mine)
            foreign = False
        met = met or mine is not None
    return behind, foreign


class LeftInGrad(Enum):
    """What an optimizer's step leaves in ``grad``."""

    USED = auto()
    OTHER = auto()
    NOTHING = auto()
    UNKNOWN = auto()


def left_in_grad(optimizer: Optimizer) -> LeftInGrad:
    """Whether the step leaves in ``grad`` what it used, by trying it on a copy; unknown if a small matrix fails."""
    if type(optimizer).__module__.startswith("torch.optim") and not isinstance(optimizer, torch.optim.SGD):
        return LeftInGrad.USED  # all of torch's were tried: only SGD, with nesterov and foreach, leaves another
    devices = {tensor.device for group in optimizer.param_groups for tensor in group["params"]}
    cuda = [device for device in devices if device.type == "cuda"]
    # `isolate_rng` for the generators of Python and NumPy, which some optimizers draw from.
    with isolate_rng(include_cuda=False), torch.random.fork_rng(cuda), torch.enable_grad():
        found = [_try(optimizer, group) for group in optimizer.param_groups if group["params"]]
    return max(found, key=lambda one: one.value, default=LeftInGrad.USED)


def _try(optimizer: Optimizer, group: dict[str, Any]) -> LeftInGrad:
    like = group["params"][0]
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=like.dtype, device=like.device))
    weight.grad = given = torch.full_like(weight, 0.5)
    options = {key: _own(value) for key, value in group.items() if key != "params"}
    try:
        make: Any = type(optimizer)
        make([{"params": [weight], **options}], **({"lr": options["lr"]} if "lr" in options else {})).step()
    except Exception:
        return LeftInGrad.UNKNOWN
    if weight.grad is None:
        return LeftInGrad.NOTHING
    kept = weight.grad is given and torch.equal(given, torch.full_like(given, 0.5))
    return LeftInGrad.USED if kept else LeftInGrad.OTHER


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
