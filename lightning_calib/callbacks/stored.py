"""Between live state and what a checkpoint holds: builtins and CPU tensors."""

from typing import Any

from torch import Tensor


def to_host(state: dict[str, Any]) -> dict[str, Any]:
    """The same with every tensor copied to the CPU."""
    return {key: value.detach().cpu().clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def on_device(saved: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Copies of the saved values where their counterparts in ``like`` live, and of their types."""
    return {key: _placed(saved[key], value) for key, value in like.items()}


def _placed(value: Any, like: Any) -> Any:
    return value.to(like.device, like.dtype, copy=True) if isinstance(like, Tensor) else value
