"""What is asked of DeepSpeed's engine, in one process and without DeepSpeed: accumulation, the clip, dropped steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class DeepSpeedEngine:
    """Accumulates gradients where nobody sees them, and finds their norm in its own step."""

    has_moe_layers = False

    def __init__(
        self, module: nn.Module, *, stage: int = 2, window: int = 1, clip: float = 0.0, half: bool = False
    ) -> None:
        self.module, self.stage, self.window, self.half = module, stage, window, half
        self.kept = [torch.zeros_like(tensor) for tensor in module.parameters()]
        # As in DeepSpeed the user's optimizer has flat copies, and the parameters are in DeepSpeed's own.
        own = torch.optim.SGD(
            [nn.Parameter(torch.cat([one.detach().flatten() for one in module.parameters()]))], lr=0.1
        )
        self.optimizer: Any = SimpleNamespace(
            optimizer=own, bit16_groups=[list(module.parameters())], clip_grad=clip, loss_scale=4.0 if half else 1.0
        )
        self.micro_steps = self.global_steps = 0
        self._norm: float | None = None
        self._applied = False

    def backward(self, value: float) -> None:
        """The same gradient in every element."""
        for one in self.kept:
            one += value / self.window * self.optimizer.loss_scale

    def step(self) -> None:
        self._applied = False
        if self.is_gradient_accumulation_boundary():
            norm = float(torch.stack([one.norm() for one in self.kept]).norm()) / self.optimizer.loss_scale
            self._applied = norm < float("inf")
            self._norm, self.global_steps = norm if self._applied else -1.0, self.global_steps + 1
            clip = self.optimizer.clip_grad
            share = (min(1.0, clip / (norm + 1e-6)) if clip else 1.0) / self.optimizer.loss_scale
            for tensor, one in zip(self.module.parameters(), self.kept, strict=True):
                if self._applied:
                    tensor.data -= self.optimizer.optimizer.param_groups[0]["lr"] * share * one
                one.zero_()
        self.micro_steps += 1

    def get_global_grad_norm(self) -> float | None:
        return self._norm

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self.micro_steps + 1) % self.window == 0

    def was_step_applied(self) -> bool:
        return self._applied

    def zero_optimization_stage(self) -> int:
        return self.stage

    def fp16_enabled(self) -> bool:
        return self.half


def module_of(engine: DeepSpeedEngine) -> Any:
    """What stands in ``sys.modules["deepspeed"]``."""

    def safe_get_full_grad(tensor: Tensor) -> Tensor | None:
        place = next(i for i, one in enumerate(engine.module.parameters()) if one is tensor)
        return engine.kept[place].clone() if tensor.requires_grad else None

    found: Any = SimpleNamespace(__version__="0.0.1", DeepSpeedEngine=DeepSpeedEngine)
    found.utils = SimpleNamespace(safe_get_full_grad=safe_get_full_grad)
    return found
