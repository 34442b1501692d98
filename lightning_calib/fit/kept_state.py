"""Everything that a fit changes, so that a fit can be undone: module, data loaders, Trainer, random states.

What is kept is found by walking from the roots through attributes and containers of Lightning's and torch's objects,
and, from the module, of others. Everything is put back in place: an optimizer or a list that somebody else holds stays
the same object. Callbacks, loggers and launchers are left alone, and so are data sets: one that streams is advanced.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from torch import Tensor, cuda, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_calib.fit.trainer_facts import LIGHTNING

_LEFT = (Callback, Logger, _Launcher, ClusterEnvironment, Dataset, Enum, type, FunctionType, MethodType, ModuleType)
_TORCHS = (nn.Module, Optimizer, LRScheduler, DataLoader, Sampler, GradScaler)
_NOT_OURS = {*sys.stdlib_module_names, "builtins", "numpy", "torch", "pandas"}
_DATA = (DataLoader, pl.LightningDataModule)


class KeptState:
    """A copy of what the roots hold, on the devices where it is.

    Args:
        roots: The Trainer, the module, the data.
    """

    def __init__(self, *roots: Any) -> None:
        self._random = _collect_rng_states(include_cuda=cuda.is_initialized())  # type: ignore[no-untyped-call]
        self._undo: list[Callable[[], None]] = []
        self._seen: dict[int, Any] = {}  # which keeps them alive, so that no other gets the same id
        waiting = [(root, True) for root in reversed(roots)]
        while waiting:
            one, values = waiting.pop()
            if id(one) not in self._seen:
                self._seen[id(one)] = one
                waiting += [(part, values and not isinstance(one, _DATA)) for part in self._keep(one, values)]

    def put_back(self) -> None:
        """Undo what has happened since."""
        with torch.no_grad():
            for undo in self._undo:
                undo()
        _set_rng_states(self._random)

    def _keep(self, one: Any, values: bool) -> Iterable[Any]:
        """Keep one object; its parts are next. Tensors and arrays below data are not copied."""
        kind = type(one)  # a weak proxy says in isinstance that it is what it stands for
        if issubclass(kind, Tensor):
            return self._keep_tensor(one) if values else ()
        if issubclass(kind, np.ndarray):
            content = one.copy() if values else None
            self._undo += [] if content is None else [lambda: np.copyto(one, content)]
            return ()
        if issubclass(kind, (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)):
            self._undo.append(_random_state(one))
            return ()
        if issubclass(kind, tuple):
            return list(one)
        parts: list[Any] = []
        if issubclass(kind, (list, deque, set, dict)):
            parts += self._keep_content(one)
        if _walked(kind, values) and hasattr(one, "__dict__"):
            attributes = dict(vars(one))
            self._undo.append(lambda: (vars(one).clear(), vars(one).update(attributes))[0])
            parts += attributes.values()
        if issubclass(kind, nn.Module):
            parts += [*one.parameters(), *one.buffers()]  # a scripted module's are not among its attributes
        return parts

    def _keep_content(self, one: Any) -> Iterable[Any]:
        content: Any = dict(one) if isinstance(one, dict) else list(one)
        fill = one.extend if isinstance(one, (list, deque)) else one.update
        self._undo.append(lambda: (one.clear(), fill(content))[0])
        return list(content.values() if isinstance(one, dict) else content)

    def _keep_tensor(self, one: Tensor) -> Iterable[Any]:
        """Its values, where they lie, its gradient and whether it wants one."""
        if one.layout != torch.strided or one.is_meta or nn.parameter.is_lazy(one):
            return ()
        leaf, wanted, gradient = one.is_leaf, one.requires_grad, one.grad if one.is_leaf else None
        data, content = one.data, one.detach().clone()

        def undo() -> None:
            if not torch.equal(data, content):
                data.copy_(content)
            if (one.dtype, one.device) != (data.dtype, data.device) or one.data_ptr() != data.data_ptr():
                one.data = data
            if leaf:
                one.requires_grad_(wanted)
                one.grad = gradient

        self._undo.append(undo)
        return () if gradient is None else (gradient,)


def _walked(kind: type, values: bool) -> bool:
    """Whether an object's attributes are kept."""
    if issubclass(kind, _LEFT):
        return False
    homes = {each.__module__.split(".")[0] for each in kind.__mro__}
    own = kind.__module__.split(".")[0] not in _NOT_OURS
    return issubclass(kind, _TORCHS) or bool(homes & set(LIGHTNING)) or (values and own)


def _random_state(one: Any) -> Callable[[], None]:
    """What sets a generator back."""
    if isinstance(one, random.Random):
        state: Any = one.getstate()
        return lambda: one.setstate(state)
    if isinstance(one, np.random.Generator):
        state = one.bit_generator.state
        return lambda: setattr(one.bit_generator, "state", state)
    if isinstance(one, np.random.RandomState):
        state = one.get_state()
        return lambda: one.set_state(state)
    state = one.get_state().clone()
    return lambda: one.set_state(state) and None
