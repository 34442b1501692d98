"""Follow a backward pass node by node: which one made a gradient that is not finite of one that was."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_calib.incidents.forward_operations import Operation
from lightning_calib.incidents.value_range import ValueRange


class BackwardOrigin(NamedTuple):
    """The node of the autograd graph where gradients stop being finite.

    Attributes:
        node: Its name, such as "SqrtBackward0".
        operation: The operation of the forward pass that made it; None where it is not known.
        incoming: The ranges of the gradients that arrive at it.
        arrived: Whether what arrives is bad already, though every part of it was finite when it left.
    """

    node: str
    operation: Operation | None
    incoming: tuple[ValueRange, ...]
    arrived: bool


class BackwardOperations:
    """Looks at what goes into and comes out of every node; that is slow, and only for incidents.

    Args:
        loss: The root of the graph.
        by_node: The forward operations, by the sequence number of their nodes.
    """

    def __init__(self, loss: Tensor, by_node: Mapping[int, Operation]) -> None:
        self._loss, self._by_node = loss, by_node
        self._nodes = _nodes_of(loss)
        self._fed: set[Node] = set()  # a gradient that is not finite has been handed to them
        self._feeds: dict[Node, list[Node]] = {}
        self._origins: list[tuple[Node, BackwardOrigin]] = []

    def run(self, parameters: Sequence[nn.Parameter], scale: float) -> tuple[BackwardOrigin | None, bool]:
        """Run the backward pass, without touching ``grad``.

        Args:
            parameters: Whose gradients are wanted.
            scale: The gradient of the loss itself.

        Returns:
            Where gradients stop being finite, the first such place that a parameter's gradient is bad for; and whether
            any of these is.
        """
        hooks = [node.register_hook(partial(self._look, node)) for node in self._nodes]
        try:
            start = torch.full_like(self._loss, scale)
            found = torch.autograd.grad(self._loss, list(parameters), start, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        bad = not all(one is None or _finite(one) for one in found)
        reaching = [origin for node, origin in self._origins if self._reaches_a_leaf(node)]
        return (reaching[0] if bad and reaching else None), bad

    def _look(self, node: Node, left: Sequence[Tensor | None], arrived: Sequence[Tensor | None]) -> None:
        bad = [one is not None and not _finite(one) for one in left]
        arrived_bad = not all(one is None or _finite(one) for one in arrived)
        after = [to for (to, _), one in zip(node.next_functions, bad, strict=False) if one and to is not None]
        self._fed.update(after)
        self._feeds[node] = after
        if any(bad) and not (arrived_bad and node in self._fed):
            incoming = tuple(found for one in arrived if one is not None and (found := ValueRange.of(one)) is not None)
            operation = self._by_node.get(node._sequence_nr())
            self._origins.append((node, BackwardOrigin(node.name(), operation, incoming, arrived_bad)))

    def _reaches_a_leaf(self, node: Node) -> bool:
        seen, waiting = {node}, [node]
        while waiting:
            for after in self._feeds.get(waiting.pop(), ()):
                if hasattr(after, "variable"):
                    return True
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return False


def _nodes_of(loss: Tensor) -> list[Node]:
    """All nodes but the leaves."""
    first: Any = loss.grad_fn
    found, waiting = {first}, [first]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in found and not hasattr(node, "variable"):
                found.add(node)
                waiting.append(node)
    return list(found)


def _finite(value: Tensor) -> bool:
    held = value.coalesce().values() if value.is_sparse else value
    return bool(held.isfinite().all())
