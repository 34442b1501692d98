"""The files that keep the evidence of an incident."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_calib.incidents.micro_batches import MicroBatch

_MOST_FILES = 10
_BUILTIN = (str, int, float, bool, bytes, complex)


class BatchFiles:
    """Writes one file per incident, at most ten; a full disk never fails the run."""

    written: int
    last: tuple[int, int]

    def __init__(self, folder: str | Path | None) -> None:
        self.folder: Path | None = Path(folder) if folder is not None else None
        self.written = 0
        self.last = (-1, 0)  # the step of the last incident, and how many it had

    def save(self, sentence: str, micros: list[MicroBatch], rank: int, step: int) -> str:
        """Write the micro-batches; returns what to say about it."""
        if self.folder is None or self.written >= _MOST_FILES:
            return ""
        if not micros:
            return f"Each rank whose loss was not finite saves its batch to {self.folder}."
        self.last = (step, self.last[1] + 1 if self.last[0] == step else 1)
        number = f"-{self.last[1]}" if self.last[1] > 1 else ""  # one batch may take several steps
        path = self.folder / f"step{step:08d}-rank{rank}{number}.pt"
        try:
            batches = [{"batch_idx": one.index, "batch": plain(one.batch), "rng": one.rng} for one in micros]
            content = {"version": 1, "incident": sentence, "step": step, "rank": rank, "batches": batches}
            memory = BytesIO()  # torch's own writer leaves half a file behind on a full disk
            torch.save(content, memory)
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(memory.getbuffer())
        except Exception as error:
            return f"The batch could not be saved to {path} ({error})."
        self.written += 1
        return f"Batch saved to {path}."


def plain(value: Any) -> Any:
    """A batch as builtins and CPU tensors, so that it loads with ``weights_only=True``; anything else by its repr."""
    if isinstance(value, Tensor):
        found = value.detach()
        return (found if type(found) is Tensor else found.as_subclass(Tensor)).cpu().clone()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key if type(key) in (str, int) else str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return _from_array(value)
    return _builtin(value)


def _from_array(value: Any) -> Any:
    try:
        return torch.tensor(value)
    except (TypeError, ValueError):  # an array of objects or texts
        return plain(value.tolist())


def _builtin(value: Any) -> Any:
    """A subclass of a builtin, such as an enum, does not load either."""
    if value is None or type(value) in _BUILTIN:
        return value
    kind = next((kind for kind in (int, float, str, bytes) if isinstance(value, kind)), repr)
    return kind(value)
