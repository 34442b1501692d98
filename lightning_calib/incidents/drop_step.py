"""Drop a step exactly, with and without a GradScaler."""

from lightning_calib.steps.gradient_view import GradientView


def seen_by_scaler(view: GradientView) -> bool:
    """Whether the GradScaler knows that this gradient is bad: it then skips the step by itself, and backs off.

    It does not know of what came into the gradient after it had taken the scale out.
    """
    if view.scaler is None:
        return False
    if view.scale is not None:  # a fused optimizer: it looks when the step is taken
        return True
    found = view.scaler._per_optimizer_states[id(view.optimizer)]["found_inf_per_device"]
    return any(bool(one) for one in found.values())


def drop(view: GradientView, *, routine: bool) -> None:
    """Let nothing of this step reach the weights, the optimizer's state or our other callbacks.

    A routine overflow stays in place, because the GradScaler skips it by itself. But a fused optimizer that has no
    state yet would make one on the way, and torch's SGD would take its momentum from memory that nobody has written.
    Unscaling first lets the scaler see what is dropped, so that it backs off.
    """
    stateless = view.fused and not all(view.optimizer.state.get(tensor) for tensor in view.plan.tensors)
    if view.fused and view.plan.cut and view.plan.shards is not None:  # a process has no state of what it holds nothing
        stateless = view.plan.shards.anywhere(stateless)
    if stateless or not routine:
        view.unscale()
        view.drop()
