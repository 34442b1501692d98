"""The gradients of one optimizer: the only object that reads and writes ``.grad``."""

from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from lightning_calib.functional.deepspeed import Engine
from lightning_calib.functional.fsdp1 import any_reached, given
from lightning_calib.functional.norms import Reading, measure
from lightning_calib.functional.plan import Plan, tensors_of
from lightning_calib.functional.rescale import rescale_
from lightning_calib.steps.optimizer_facts import pending_scale


class GradientView:
    """What all callbacks of a fit see of one optimizer's gradients, and the way in which they change them.

    Norms are read once per step and norm type, and kept up by arithmetic when the gradients are rescaled.

    Args:
        index: Of the optimizer in ``trainer.optimizers``.
        optimizer: torch's own.
        module: Gives the parameters their names.
        suffix: Of the tags: "" with one optimizer, "/0", "/1", ... with several.
        units: Whether the norms of units must be measured in the one pass.
        scaler: The GradScaler, if there is one.
        engine: What keeps the gradients to itself; None where they are in ``.grad``.

    Attributes:
        plan: The parameters, checked and labelled once.
        gradients: Of the plan's tensors, as they were when last looked at; None for a missing one. Empty when a step is
            over: held until the next one, they would lie in memory beside those of its backward pass.
        scale: The GradScaler's scale, while it is still in the gradients.
        window_scale: Multiplies the norms of a short window of micro-batches; 1 but there.
    """

    index: int
    optimizer: Optimizer
    module: Module
    suffix: str
    units: bool
    scaler: Any
    engine: Engine | None
    acts: bool
    window_scale: float
    plan: Plan
    gradients: list[Tensor | None]

    def __init__(
        self,
        index: int,
        optimizer: Optimizer,
        module: Module,
        *,
        suffix: str,
        units: bool,
        scaler: Any,
        engine: Engine | None = None,
        acts: bool = True,
    ) -> None:
        self.index, self.optimizer, self.module, self.suffix = index, optimizer, module, suffix
        self.units, self.scaler, self.engine, self.acts = units, scaler, engine, acts
        self.window_scale = 1.0
        self._reached = True  # whether there can be a gradient
        self._brought: list[bool] = []  # which gradients an engine has brought together
        self._on_host: tuple[Reading, float] | None = None  # the norm of a reading, once it was brought there
        self._lay_plan()

    @property
    def label(self) -> str:
        """How sentences call the optimizer: its class and, where there are several, its index."""
        return f"{type(self.optimizer).__name__}{self.suffix}"

    @property
    def fused(self) -> bool:
        """Whether the optimizer divides the GradScaler's scale out by itself, and skips by itself."""
        return self.scaler is not None and bool(getattr(self.optimizer, "_step_supports_amp_scaling", False))

    @property
    def has_gradient(self) -> bool:
        """Whether there was any gradient when last looked at, on whatever process: all of them know the same."""
        return self._reached and (self.plan.cut or any(gradient is not None for gradient in self.gradients))

    def given(self) -> list[bool]:
        """Which of the plan's tensors had one."""
        if self.engine is not None:
            return list(self._brought)
        if not self.plan.cut:
            return [gradient is not None for gradient in self.gradients]
        if not self._reached:
            return [False] * len(self.gradients)
        return given(self.plan.flat, self.plan.tensors, self.gradients)

    def has_gradient_left(self) -> bool:
        """Whether there is any now; where FSDP1 has cut tensors, all processes must come to ask each other."""
        here = any(tensor.grad is not None for tensor in self.plan.tensors)
        return here if self.plan.shards is None or not self.plan.cut else self.plan.shards.anywhere(here)

    def _lay_plan(self) -> None:
        if self.engine is None:
            self.plan = Plan.of_optimizer(self.optimizer, self.module)
        else:
            self.plan = Plan.of_groups(self.engine.groups(self.module), self.module)

    def begin_step(self, window_scale: float = 1.0, *, fresh: bool = True) -> bool:
        """Look at the gradients of a new step. True if the parameters have changed and the plan was laid anew.

        Args:
            window_scale: See above.
            fresh: Whether a backward pass came since the last step.
        """
        changed = not self.plan.holds(tensors_of(self.optimizer))
        if changed:
            self._lay_plan()
        self.window_scale, self._reached = window_scale, True
        self._read_scaled = False  # whether an overflow of the norm was seen in this step
        self.look_again()
        if self.plan.cut:
            known = (self.plan.flat, self.plan.tensors, self.gradients)
            self._reached = any_reached(*known) if fresh else self.has_gradient_left()
        return changed

    def look_behind_foreign(self) -> None:
        """Somebody else may have changed the gradients, or taken them away."""
        self.look_again()
        self._reached = self.has_gradient_left()

    def look_again(self) -> None:
        """The gradients may have changed: what was read of them holds no longer."""
        self.gradients = self.plan.gradients(to_write=self.acts) if self.engine is None else []
        self.scale = pending_scale(self.scaler, self.optimizer)
        self.readings: dict[float, Reading] = {}
        self.aside: dict[tuple[float, bool], Reading] = {}  # see `read_aside`

    def begin_step_of_engine(self, *, read: bool) -> None:
        """An engine's step: the norms are those of its tensors, if they are read, and cannot be known else."""
        self.window_scale = 1.0
        self.look_again()
        if self.engine is not None and read:
            pieces, self._brought = self.engine.norms(self.plan.tensors, self.plan.dtype)
            self.readings = {2.0: Reading(self.plan, 2.0, pieces)}

    @property
    def knows_tensors(self) -> bool:
        """Whether the norms of the tensors are known in this step, or can be read."""
        return self.engine is None or 2.0 in self.readings

    def reading(self, norm_type: float = 2.0) -> Reading:
        """The norms as the gradients are now: unscaled, of a whole window."""
        if norm_type not in self.readings:
            aside = self.aside.get((norm_type, self.units))
            self.readings[norm_type] = self.measure(norm_type) if aside is None else aside
        return self.readings[norm_type]

    def read_aside(self, norm_type: float, *, units: bool) -> Reading:
        """The same for what only observes, which must change no bit of what those that act read later in this step.

        Norms folded from those of units, and norms kept up through a rescale, have other last bits than norms read from
        the gradients. So what nobody who acts has asked for is kept apart, and only until the next rescale. With
        ``units`` the norms of units are read.
        """
        key = (norm_type, units or self.units)
        if key[1] == self.units and norm_type in self.readings:
            return self.readings[norm_type]
        if key not in self.aside:
            self.aside[key] = self.measure(norm_type, units=key[1])
        return self.aside[key]

    def norm(self) -> Tensor:
        """The 2-norm of the whole gradient as it is now, 0-d."""
        return self.reading().norm

    def measure(self, norm_type: float = 2.0, *, units: bool = False) -> Reading:
        """Read the gradients, as those of a whole window: Lightning divides those of a short one by as many parts.

        Args:
            norm_type: The p of the p-norm.
            units: Whether units must be measured although no callback needs them.
        """
        found = measure(self.plan, self.gradients, norm_type, self.units or units, self._read_scaled)
        if self.window_scale != 1.0:
            found = found.rescaled(found.pieces.new_full((1,), self.window_scale))
        if self.scale is None:
            return found
        return found.rescaled(self.scale.reciprocal().to(found.pieces).reshape(1))

    def read_used(self) -> Reading:
        """Read what the optimizer uses, when nobody changes it any more; what is known of the step stays."""
        self.gradients = self.plan.gradients(to_write=False)
        return self.measure()

    def let_go(self) -> None:
        """Nobody looks at the gradients any more in this step; what was read of them stays."""
        self.gradients = []

    def is_finite(self) -> bool:
        """Whether the norm is; waits for the device. One that has only overflowed is read again first, scaled."""
        finite = isfinite(self.on_host()[0])
        if finite or self.readings[2.0].scaled:
            return finite
        self._read_scaled, self.readings, self.aside = True, {}, {}
        return isfinite(self.on_host()[0])

    def on_host(self, *beside: Tensor) -> list[float]:
        """The norm, and numbers of one element beside it, with one wait for the device; none where the norm is known.

        A callback that wants numbers brought beside the norm must be the first that asks in a step.
        """
        reading = self.reading()
        if self._on_host is not None and self._on_host[0] is reading and not beside:
            return [self._on_host[1]]
        if reading.norm.device.type == "cpu" or not beside:
            values = [reading.norm.item(), *(one.item() for one in beside)]
        else:
            norm = reading.norm
            values = torch.stack([norm, *(one.reshape(()).to(norm) for one in beside)]).tolist()
        self._on_host = reading, values[0]
        return values

    def drop(self) -> None:
        """Drop the step: without gradients the optimizer changes nothing, neither parameters nor state."""
        for tensor in self.plan.tensors:
            tensor.grad = None
        self.look_again()
        self._reached = False

    def unscale(self) -> None:
        """Take the GradScaler's scale out of the gradients before they are changed, once per step."""
        if self.scale is not None:
            self.scaler.unscale_(self.optimizer)
            self.scale = None

    def rescale(self, factors: Tensor) -> None:
        """Multiply the gradients, and the readings with them."""
        self.unscale()
        if factors.device.type == "cpu" and not _changes(factors):
            return
        rescale_(self.plan, self.gradients, factors)
        self.readings = {kind: reading.rescaled(factors) for kind, reading in self.readings.items()}
        self.aside = {}


def _changes(factors: Tensor) -> bool:
    """Whether a rescale by these factors, on the host, changes anything."""
    return factors.item() != 1.0 if factors.numel() == 1 else bool((factors != 1.0).any())
