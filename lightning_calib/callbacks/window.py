"""The micro-batches since the last optimizer step: their losses, and, where asked, the batches themselves."""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """One micro-batch; its losses stay on the device until somebody asks."""

    index: int
    batch: Any = None
    rng: dict[str, Any] | None = None
    losses: list[Tensor] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Whether one of its losses was not finite."""
        return any(not bool(loss.isfinite().all()) for loss in self.losses)


def rng_state() -> dict[str, Any]:
    """The random generators' states, as builtins and tensors."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def plain(value: Any) -> Any:
    """A batch as builtins and CPU tensors, so that it loads with ``weights_only=True``; anything else by its repr."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, float, bool, bytes)) else repr(value)
