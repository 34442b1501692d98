"""What kind of optimizer this is, and what else happens to its gradients: a loss scale, a clip of the Trainer's."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer


class TrainerClip(NamedTuple):
    """What the Trainer, or the module or an engine in its place, does to the gradient after our callbacks."""

    how: Literal["norm", "value", "module"] | None
    value: float
    by_engine: bool = False

    def __str__(self) -> str:
        """As the user wrote it."""
        if self.by_engine:
            return f"DeepSpeed's gradient_clipping={self.value:g}"
        if self.how == "module":
            return "`configure_gradient_clipping`"
        algorithm = ", gradient_clip_algorithm='value'" if self.how == "value" else ""
        return f"Trainer(gradient_clip_val={self.value:g}{algorithm})"

    def share(self, norm: Tensor, window_scale: float) -> Tensor:
        """What the Trainer's norm clip multiplies a gradient by, in torch's own formula.

        It sees the gradient as it is; ``norm`` is that of a whole window, and ``window_scale`` the ratio of the two.
        """
        norm = norm if window_scale == 1.0 else norm / window_scale
        return (self.value / (norm + 1e-6)).clamp(max=1)


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
    with _random_states_kept(cuda), torch.enable_grad():
        found = [_try(optimizer, group) for group in optimizer.param_groups if group["params"]]
    return max(found, key=lambda one: one.value, default=LeftInGrad.USED)


@contextmanager
def _random_states_kept(devices: list[torch.device]) -> Iterator[None]:
    """Torch's generators, and those of Python and NumPy, which some optimizers draw from."""
    numpy, python = sys.modules.get("numpy"), random.getstate()
    numbers = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numbers)


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
