"""Snapshots of a training state in host memory, and the way back to one of them."""

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_calib.functional.dtensor import held
from lightning_calib.steps.gradient_view import GradientView

_GB = 2**30


class Kept(NamedTuple):
    """A tensor's numbers (of a DTensor those that this process holds) and the device that they came from."""

    host: Tensor
    device: torch.device


class TrainingState:
    """What a step moves: weights and state of one optimizer, the module's buffers, the GradScaler."""

    module: nn.Module
    view: GradientView

    def __init__(self, module: nn.Module, view: GradientView) -> None:
        self.module, self.view = module, view

    def tree(self) -> dict[str, Any]:
        """The live tensors, and the optimizer's own dictionary."""
        scaler = self.view.scaler
        return {
            "weights": dict(enumerate(self.view.plan.tensors)),
            "buffers": {name: owner._buffers[key] for name, owner, key in self._buffers()},
            "optimizer": self.view.optimizer.state,
            "scaler": {} if scaler is None else {key: getattr(scaler, key) for key in ("_scale", "_growth_tracker")},
        }

    def expected_bytes(self) -> int:
        """Of one snapshot; an optimizer that has no state yet is taken to make two numbers for each weight."""
        tree = self.tree()
        weights = [held(one) for one in self.view.plan.tensors]
        state = _size(tree["optimizer"]) or 2 * sum(one.nbytes for one in weights)
        return sum(one.nbytes for one in weights) + _size(tree["buffers"]) + state

    def _buffers(self) -> list[tuple[str, nn.Module, str]]:
        return [
            (f"{path}.{key}", owner, key)
            for path, owner in self.module.named_modules()
            for key, value in owner._buffers.items()
            if value is not None and value.layout == torch.strided
        ]

    def set_buffers(self, found: dict[str, Tensor]) -> None:
        """Buffers that were replaced since, by one of another shape."""
        for name, owner, key in self._buffers():
            if name in found and found[name] is not owner._buffers[key]:
                owner._buffers[key] = found[name]


class Snapshot:
    """A copy of a training state; its memory is used again when it is taken again.

    On CUDA the host memory is pinned and nothing waits: copies there and back stand in the stream of the steps.

    Attributes:
        step: When it was taken, on the clock of its taker.
        taken: How many steps had been taken then.
    """

    step: int
    taken: int

    def __init__(self) -> None:
        self.step, self.taken, self._tree = -1, 0, dict[str, Any]()

    @torch.no_grad()
    def take(self, state: TrainingState, step: int, taken: int) -> "Snapshot":
        """Copy what is there now."""
        pairs: list[tuple[Tensor, Tensor]] = []
        self.step, self.taken = step, taken
        self._tree = _copied(state.tree(), self._tree, pairs)
        _copy(pairs)
        return self

    @torch.no_grad()
    def put_back(self, state: TrainingState) -> None:
        """Write it over what is there now, in place; the optimizer's state that is newer than the snapshot goes."""
        pairs: list[tuple[Tensor, Tensor]] = []
        found = _restored(state.tree(), self._tree, pairs)
        _copy(pairs)
        state.set_buffers(found["buffers"])

    @property
    def nbytes(self) -> int:
        """Of host memory."""
        return _size(self._tree)


class Snapshots:
    """The last few snapshots, and what a rewind on trial would take back.

    Args:
        state: Of what.
        most: How many there are in all, at least 2.
    """

    state: TrainingState
    most: int
    current: int

    def __init__(self, state: TrainingState, most: int) -> None:
        self.state, self.most = state, most
        self.kept: list[Snapshot] = []  # the oldest first
        self.spare: list[Snapshot] = []  # memory to be used again
        self.undo: Snapshot | None = None
        self.current = 0  # the step of the snapshot that was put back last

    def take(self, step: int, taken: int) -> Snapshot:
        """A new one, in the memory of the oldest."""
        one = self._room(0)
        self.kept.append(one.take(self.state, step, taken))
        return one

    def _room(self, least: int) -> Snapshot:
        """Memory for one: what is spare, or new, or that of one that is kept."""
        if self.spare:
            return self.spare.pop()
        return self.kept.pop(least) if len(self.kept) >= self.most else Snapshot()

    def before(self, step: int, used: int) -> Snapshot | None:
        """The youngest from before ``step`` that comes after ``used`` younger ones; the oldest where there is none."""
        old = [one for one in reversed(self.kept) if one.step <= step] or self.kept[:1]
        return old[min(used, len(old) - 1)] if old else None

    def rewind(self, snapshot: Snapshot, step: int, taken: int) -> None:
        """Go back, and keep what is there now until it is known whether that helps."""
        young = self.kept[-1] is not snapshot  # taken when the trouble was about to begin: of no use any more
        self.undo = self._room(-1 if young else 0).take(self.state, step, taken)
        snapshot.put_back(self.state)
        self.current = snapshot.step

    def keep_rewind(self) -> None:
        """A rewind stands: what it has replaced is let go, and the snapshots on the way to it."""
        left = [one for one in self.kept if one.step > self.current]
        self.kept = [one for one in self.kept if one.step <= self.current]
        self._let_go(left)

    def _let_go(self, left: list[Snapshot]) -> None:
        self.spare += left if self.undo is None else [*left, self.undo]
        self.undo = None

    def take_back(self) -> bool:
        """Undo a rewind; False where it cannot be, because the run was resumed since."""
        undo = self.undo
        if undo is not None:
            undo.put_back(self.state)
        self._let_go([])
        return undo is not None


def too_large(nbytes: int, count: int, limit: float) -> str:
    """Why so many snapshots of this size cannot be kept, with the way out; empty if they can. The limit is in GB."""
    size = nbytes / _GB
    if size * count <= limit:
        return ""
    return (
        f"`max_snapshot_gb` must be at least what {count} snapshots take, {size:.3g} GB each and {size * count:.3g} GB "
        f'in all, got {limit:g}. Raise it, lower `max_rewinds`, or leave "rewind" out of `ladder`.'
    )


def told_size(nbytes: int) -> str:
    """As a sentence has it."""
    return f"{nbytes / _GB:.3g} GB" if nbytes >= _GB else f"{nbytes / 2**20:.3g} MB"


def _copied(value: Any, old: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        source = held(value.detach())
        fits = isinstance(old, Kept) and (old.host.shape, old.host.dtype) == (source.shape, source.dtype)
        kept = old if fits else Kept(_room_for(source), source.device)
        pairs.append((kept.host, source))
        return kept
    if isinstance(value, dict):
        known = old if isinstance(old, dict) else {}
        return {key: _copied(one, known.get(key), pairs) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(one, None, pairs) for one in value)
    return deepcopy(value)


def _restored(live: Any, kept: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    if isinstance(kept, Kept):
        target = held(live.detach()) if isinstance(live, Tensor) else None
        if target is None or (target.shape, target.dtype) != (kept.host.shape, kept.host.dtype):
            return kept.host.to(kept.device, copy=True)
        pairs.append((target, kept.host))
        return live
    if isinstance(kept, dict):
        found = live if isinstance(live, dict) else {}
        for key in [key for key in found if key not in kept]:
            del found[key]
        for key, one in kept.items():
            found[key] = _restored(found.get(key), one, pairs)
        return found
    if type(kept) in (list, tuple):
        there = live if type(live) is type(kept) and len(live) == len(kept) else [None] * len(kept)
        return type(kept)(_restored(a, b, pairs) for a, b in zip(there, kept, strict=True))
    return deepcopy(kept)


def _room_for(source: Tensor) -> Tensor:
    device = source.device if source.is_meta else torch.device("cpu")
    return torch.empty_like(source, device=device, pin_memory=source.is_cuda)


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        targets, sources = zip(*pairs, strict=True)
        torch._foreach_copy_(list(targets), list(sources), non_blocking=True)


def _size(tree: Any) -> int:
    if isinstance(tree, (Tensor, Kept)):
        return (tree.host if isinstance(tree, Kept) else held(tree)).nbytes
    if isinstance(tree, dict):
        return sum(map(_size, tree.values()))
    return sum(map(_size, tree)) if type(tree) in (list, tuple) else 0
