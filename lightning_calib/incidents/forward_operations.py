"""Follow a forward pass operation by operation: which one made the values that are not finite."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_calib.incidents.value_range import ValueRange

_OVERWRITES = {"copy_", "fill_", "zero_", "uniform_", "normal_", "bernoulli_", "random_", "exponential_"}


class Operation(NamedTuple):
    """One operation of the forward pass.

    Attributes:
        name: torch's, such as "div".
        module: The innermost module that was running; empty outside of all.
        inputs: The ranges of its tensors, as they were before it.
    """

    name: str
    module: str
    inputs: tuple[ValueRange, ...]


class Origin(NamedTuple):
    """Where values that are not finite come from.

    Attributes:
        operation: The one that made them; where they come from outside, the first one that reads them.
        value: What came from outside: a weight, a buffer, a part of the batch; empty where an operation made them.
        meant: Whether they look as if they were meant: an operation that was told to write Inf, or -Inf alone from
            outside, as masks have it. They count only where they reach the loss.
    """

    operation: Operation
    value: str = ""
    meant: bool = False


class ForwardOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While `following`, every operation is looked at; that is slow, and only for incidents.

    Values that are not finite are followed through the operations that pass them on. An Inf that an operation is told
    to write, such as a mask of -Inf, is no fault; what makes a NaN of it is.

    Args:
        module: Gives the modules, weights and buffers their names.
        outside: More values that come from outside, by name: those of the batch.

    Attributes:
        by_node: The first operation that ran for each autograd node, by the node's sequence number.
    """

    def __init__(self, module: nn.Module, outside: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root = module
        self._names: dict[int, str] = {
            id(one): str(name).replace("_orig_mod.", "") for name, one in module.named_modules()
        }
        named = [*module.named_parameters(), *module.named_buffers(), *outside.items()]
        self._outside = {_storage(value): name for name, value in named if _storage(value) is not None}
        self._origins: dict[int, Origin] = {}
        self._held: list[Any] = []  # storages, so that no address is used a second time
        self._garbage: set[int] = set()  # memory that nobody has written yet
        self._stack: list[nn.Module] = []
        self.by_node: dict[int, Operation] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Look at every operation, and at the modules that are entered."""
        hooks = []
        for one in self._root.modules():
            hooks.append(one.register_forward_pre_hook(lambda module, _: self._stack.append(module), prepend=True))
            hooks.append(one.register_forward_hook(lambda module, *_: self._leave(module), always_call=True))
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self, module: nn.Module) -> None:
        while self._stack and self._stack.pop() is not module:
            pass

    @property
    def _module(self) -> str:
        if not self._stack:
            return ""
        return self._names[id(self._stack[-1])].replace("_orig_mod.", "")

    def origin_of(self, value: Tensor) -> Origin | None:
        """Where the values of a tensor that is not finite come from; None if nothing is known of it."""
        return self._origins.get(_storage(value) or -1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, and look at what goes in and what comes out."""
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        returned = [one.alias_info for one in func._schema.returns]
        view = any(one is not None and not one.is_write for one in returned)
        made_of = [args[1:], kwargs] if name in _OVERWRITES else [args, kwargs]
        leaves = tree_leaves(made_of)
        inputs = [(one, ValueRange.of(one)) for one in leaves if isinstance(one, Tensor)] if not view else []
        operation = Operation(name, self._module, tuple(found for _, found in inputs if found is not None))
        self.by_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, operation)
        result = func(*args, **kwargs)
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        if name.startswith(("empty", "new_empty")):
            for one in outputs:
                self._remember(one, self._garbage.add)
        elif not view:
            self._look(operation, leaves, inputs, outputs)
        return result

    def _look(
        self,
        operation: Operation,
        leaves: list[Any],
        inputs: list[tuple[Tensor, ValueRange | None]],
        outputs: list[Tensor],
    ) -> None:
        found = [(one, ValueRange.of(one)) for one in outputs if one.is_floating_point() or one.is_complex()]
        bad = [(one, values) for one, values in found if values is not None and not values.finite]
        if not bad:
            return
        origin = self._origin(operation, leaves, inputs, nan=any(values.nan for _, values in bad))
        for one, _ in bad:
            self._remember(one, lambda key: self._origins.__setitem__(key, origin))

    def _origin(
        self, operation: Operation, leaves: list[Any], inputs: list[tuple[Tensor, ValueRange | None]], *, nan: bool
    ) -> Origin:
        sources = [self._source(one, values, operation) for one, values in inputs if values and not values.finite]
        known = [one for one in sources if one is not None]
        told = any(isinstance(one, float) and not isfinite(one) for one in leaves)
        blamed = next((one for one in known if not one.meant), None)
        if blamed is not None:
            return blamed
        if nan or not (known or told):
            return Origin(operation)
        return known[0] if known else Origin(operation, meant=True)

    def _source(self, value: Tensor, values: ValueRange, operation: Operation) -> Origin | None:
        key = _storage(value)
        if key in self._origins:
            return self._origins[key]
        if key in self._garbage:
            return None
        name = self._outside.get(key, "a tensor that was there before")
        return Origin(operation, name, meant=not values.nan and values.highest < torch.inf)

    def _remember(self, value: Tensor, keep: Callable[[int], None]) -> None:
        key = _storage(value)
        if key is not None:
            self._held.append(value.untyped_storage())
            keep(key)


def _storage(value: Tensor) -> int | None:
    """What views of a tensor share; None where there is no such thing."""
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
