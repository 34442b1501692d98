"""DeepSpeed's engine with ZeRO: the norm that it has found, whether it took the step, and each gradient, whole.

It partitions gradients as they arise, and frees them in its own step. Only this file knows DeepSpeed's names; `why_not`
looks whether they are as known.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_OF_ENGINE = (
    "fp16_enabled",
    "get_global_grad_norm",
    "global_steps",
    "is_gradient_accumulation_boundary",
    "was_step_applied",
    "zero_optimization_stage",
)
_OF_OPTIMIZER = ("clip_grad", "optimizer")
_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")  # of stages 1 and 2, of bfloat16's own optimizer, of stage 3
_OWN = "Use FSDP2 (`ModelParallelStrategy`) or DDP"


def engine_in(model: object) -> "Engine | None":
    """DeepSpeed's engine, if that is what trains; where nobody has imported DeepSpeed there is none."""
    kind = getattr(sys.modules.get("deepspeed"), "DeepSpeedEngine", None)
    return Engine(model) if kind is not None and isinstance(model, kind) else None


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of a parameter over all processes: outside its own forward one of ZeRO-3 is empty here."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def cut_by_zero(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has cut the parameter, so that each process holds a part."""
    return hasattr(tensor, "ds_tensor")


def part_here(tensor: Any) -> Tensor:
    """What this process holds of such a parameter, flat, without what it is padded with."""
    size = int(tensor.ds_tensor.ds_numel)
    first = size * torch.distributed.get_rank(tensor.ds_process_group)
    part: Tensor = tensor.ds_tensor.detach().flatten()
    return part[: max(0, min(size, tensor.ds_numel - first))]


def total_of_parts(values: Tensor, tensor: Any) -> Tensor:
    """The sum over the processes that hold parts of the parameter; all of them must come here."""
    torch.distributed.all_reduce(values, group=tensor.ds_process_group)
    return values


class Engine:
    """What is asked of the engine. Its own are the hyper-parameters, the accumulation, the clip and the skipping.

    Args:
        engine: DeepSpeed's.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __str__(self) -> str:
        return f"DeepSpeed ZeRO-{self._engine.zero_optimization_stage()}"

    def why_not(self) -> str | None:
        """Why its steps cannot be followed, with the way out; None where they can."""
        unknown = next(self._unknown(), None)
        if unknown is not None:
            version = getattr(sys.modules.get("deepspeed"), "__version__", "")
            return f"DeepSpeed {version} is built in another way than is known here: there is no {unknown}. {_OWN}."
        if self._engine.zero_optimization_stage() not in (1, 2, 3):
            return f"DeepSpeed without ZeRO finds no norm that can be asked for. Use `stage=1`, 2 or 3. {_OWN}."
        if getattr(self._engine, "has_moe_layers", False):
            return f"DeepSpeed averages the norms of experts, which is not the norm of the gradient. {_OWN}."
        if not getattr(self._optimizer, "compute_grad_norm", True):
            return f"`compute_grad_norm` is False, so that DeepSpeed finds no norm. Leave it out. {_OWN}."
        return None

    @property
    def finds_tensors(self) -> bool:
        """Whether it can bring gradients together; in the order of ``round_robin_gradients`` 0.19.8 takes others."""
        cut_elsewhere = int(self._engine.zero_optimization_stage()) < 3
        return not (cut_elsewhere and getattr(self._optimizer, "round_robin_gradients", False))

    def _unknown(self) -> Iterator[str]:
        """The names that are missing."""
        yield from (f"`DeepSpeedEngine.{name}`" for name in _OF_ENGINE if not hasattr(self._engine, name))
        if self._engine.zero_optimization_stage() in (1, 2, 3):
            kind = type(self._optimizer).__name__
            yield from (f"`{kind}.{name}`" for name in _OF_OPTIMIZER if not hasattr(self._optimizer, name))
            if not any(hasattr(self._optimizer, name) for name in _GROUPS):
                yield f"`{kind}.{_GROUPS[0]}`"
        if not hasattr(sys.modules["deepspeed"].utils, "safe_get_full_grad"):
            yield "`deepspeed.utils.safe_get_full_grad`"

    @property
    def _optimizer(self) -> Any:
        """DeepSpeed's own, which holds the user's."""
        return self._engine.optimizer

    @property
    def optimizer(self) -> Optimizer:
        """The user's, whose groups have the learning rates; it steps flat parts of the parameters."""
        found: Optimizer = self._optimizer.optimizer
        return found

    def groups(self, module: nn.Module) -> list[list[Tensor]]:
        """The trainable parameters in the optimizer's groups, each in the order of the module."""
        parts = next(getattr(self._optimizer, name) for name in _GROUPS if hasattr(self._optimizer, name))
        # Stage 3 cuts large groups into several parts.
        whose = getattr(self._optimizer, "sub_group_to_group_id", None) or range(len(parts))
        of = {id(tensor): whose[i] for i, part in enumerate(parts) for tensor in part}
        found: list[list[Tensor]] = [[] for _ in self.optimizer.param_groups]
        for tensor in module.parameters():
            if id(tensor) in of:
                found[of[id(tensor)]].append(tensor)
        return found

    @cached_property
    def scaled(self) -> bool:
        """Whether the losses are scaled, so that steps that overflow are a part of its work."""
        return bool(self._engine.fp16_enabled())

    @property
    def loss_scale(self) -> float:
        """What the gradients are multiplied by."""
        return float(self._optimizer.loss_scale) if self.scaled else 1.0

    def keeps_weights(self, module: nn.Module) -> bool:
        """Whether the processes hold the weights between steps, and not a disk."""
        parts: list[Any] = [getattr(tensor, "ds_tensor", None) for tensor in module.parameters()]
        return all(part is None or part.numel() == part.ds_numel for part in parts)

    @property
    def clip(self) -> float:
        """The norm that it clips to, in torch's own formula; 0 for no clip."""
        return float(self._optimizer.clip_grad or 0.0)

    @property
    def ends_window(self) -> bool:
        """Whether the micro-batch at hand is the last one before a step."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    @property
    def steps(self) -> int:
        """How many it has come to, taken or not."""
        return int(self._engine.global_steps)

    @property
    def took_step(self) -> bool:
        """Whether the last one was taken: it drops those whose norm is not finite, but for some in bfloat16."""
        return bool(self._engine.was_step_applied())

    @property
    def norm(self) -> float:
        """The 2-norm of the whole gradient of the last step, before the clip; inf for any that is not finite."""
        found = float(self._engine.get_global_grad_norm())
        return found if isfinite(found) and found >= 0 else float("inf")

    @torch.no_grad()
    def norms(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[bool]]:
        """The 2-norm of each gradient of the step that comes, shape (T,), and which there are.

        Every process must come here, after the backward pass of a micro-batch that `ends_window` and before the step:
        the gradients are brought together one after the other, and each is let go at once.
        """
        read: Any = sys.modules["deepspeed"].utils.safe_get_full_grad
        found = [tensor.new_zeros((), dtype=dtype) for tensor in tensors]
        given = [False] * len(found)
        for i, tensor in enumerate(tensors):
            gradient = read(tensor)
            if gradient is not None:
                found[i], given[i] = torch.linalg.vector_norm(gradient, dtype=dtype), True
        return torch.stack(found) / self.loss_scale, given
