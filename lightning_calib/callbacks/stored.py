"""Between live state and what a checkpoint holds: builtins and CPU tensors."""

from typing import Any

from torch import Tensor

from lightning_calib.functional.judge import State
from lightning_calib.functional.segments import Segments


def to_host(state: dict[str, Any]) -> dict[str, Any]:
    """The same with every tensor copied to the CPU."""
    return {key: value.detach().cpu().clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def on_device(saved: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Copies of the saved values where their counterparts in ``like`` live, and of their types."""
    return {key: _placed(saved[key], value) for key, value in like.items()}


def _placed(value: Any, like: Any) -> Any:
    return value.to(like.device, like.dtype, copy=True) if isinstance(like, Tensor) else value


def put_away(kind: str, segments: Segments, state: State) -> dict[str, Any]:
    """A method's state as a checkpoint holds it, with what it must be of to be taken up again."""
    return {"version": 1, "kind": kind, "segments": segments.digest, "state": to_host(_fields(state))}


def taken_up(saved: dict[str, Any], kind: str, segments: Segments, now: State) -> State | None:
    """A state like ``now`` from what was put away; None if it is of another kind or of other segments."""
    fields = _fields(now)
    told = (saved.get("version"), saved.get("kind"), saved.get("segments"))
    if told != (1, kind, segments.digest) or saved.get("state", {}).keys() != fields.keys():
        return None
    return type(now)(**on_device(saved["state"], fields))


def _fields(state: State) -> dict[str, Any]:
    return dict(state._asdict())  # type: ignore[attr-defined]
