"""Run one training step under hooks, and say which module and operation was the first that was not finite."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_calib.incidents.backward_operations import BackwardOperations, BackwardOrigin
from lightning_calib.incidents.batch_values import tensors_of
from lightning_calib.incidents.forward_operations import ForwardOperations, Operation, Origin
from lightning_calib.incidents.value_range import ValueRange

_INPUTS = 3  # of an operation that are told


class Traced(NamedTuple):
    """What a re-run has shown.

    Attributes:
        text: As part of a sentence.
        found: Whether a place is named.
        place: "forward", "backward", "value" (it came from outside: a weight, the batch), or empty.
        module: Path of the module; empty for `training_step` itself.
        operation: torch's name of the operation, or of the node of the backward pass.
    """

    text: str
    found: bool = False
    place: str = ""
    module: str = ""
    operation: str = ""


def trace(step: Callable[[], Any], module: nn.Module, batch: Any, scale: float) -> Traced:
    """Run a training step once, forward and backward, and look at every operation.

    Whoever calls puts back what a training step changes; no gradient is touched here.

    Args:
        step: The training step of one micro-batch: returns the loss, a mapping with ``"loss"``, or None.
        module: Gives modules, weights and buffers their names.
        batch: What the step reads.
        scale: What the loss is multiplied with in training: 1 / accumulation, times a GradScaler's scale.
    """
    operations = ForwardOperations(module, {f"batch{name}": value for name, value in tensors_of(batch)})
    with operations.following():
        output = step()
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        return Traced("the batch gave no loss when it was run again")
    if not bool(loss.isfinite().all()):
        return _forward(operations.origin_of(loss), module)
    if loss.grad_fn is None:
        return Traced("the loss does not depend on any parameter when the batch is run again")
    parameters = [one for one in module.parameters() if one.requires_grad]
    origin, bad = BackwardOperations(loss, operations.by_node).run(parameters, scale)
    if origin is not None:
        return _backward(origin, module)
    if bad:
        return Traced("the gradient was bad again when the batch was run once more, but the operation cannot be told")
    return Traced(
        "the gradient was finite when the batch was run again: it became bad after the backward pass (a hook, another "
        "callback, the sum of micro-batches or ranks), or the step depends on something that is not put back"
    )


def _forward(origin: Origin | None, module: nn.Module) -> Traced:
    if origin is None:
        return Traced("the loss was not finite when the batch was run again, but the operation cannot be told")
    operation, where = origin.operation, _where(origin.operation.module, module)
    if origin.value:
        text = f"{origin.value} is not finite, and {where} reads it (operation {operation.name})"
        return Traced(f"the first in the forward pass: {text}", True, "value", operation.module, operation.name)
    text = f"the first in the forward pass is operation {operation.name} in {where}{_ranges(operation.inputs)}"
    return Traced(text, True, "forward", operation.module, operation.name)


def _backward(origin: BackwardOrigin, module: nn.Module) -> Traced:
    made = origin.operation or Operation("", "", ())
    where = _where(made.module, module) if origin.operation is not None else "a module that is not known"
    what = f"{origin.node} in {where}"
    if origin.arrived:
        text = f"what arrives at {what} is not finite, though each part of it was when it left (a hook, or a sum)"
    else:
        arriving = f"; the gradient that arrives at it: {_listed(origin.incoming)}" if origin.incoming else ""
        text = f"{what}{_ranges(made.inputs)}{arriving}"
    return Traced(f"the first in the backward pass is {text}", True, "backward", made.module, origin.node)


def _where(path: str, module: nn.Module) -> str:
    if not path:
        return f"{type(module).__name__} itself"
    kind = next((type(one).__name__ for name, one in module.named_modules() if _plain(name) == path), "")
    return f"{path} ({kind})" if kind else path


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _ranges(inputs: tuple[ValueRange, ...]) -> str:
    return f", which read {_listed(inputs)}" if inputs else ""


def _listed(ranges: tuple[ValueRange, ...]) -> str:
    more = f" and {len(ranges) - _INPUTS} more" if len(ranges) > _INPUTS else ""
    return " and ".join(map(str, ranges[:_INPUTS])) + more
