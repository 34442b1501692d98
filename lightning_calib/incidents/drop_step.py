"""Drop a step exactly, with and without a GradScaler, and keep the counters right."""

from lightning_calib.steps.gradient_view import Ledger


def seen_by_scaler(ledger: Ledger) -> bool:
    """Whether the GradScaler knows that this gradient is bad: it then skips the step by itself, and backs off.

    It does not know of what came into the gradient after it had taken the scale out.
    """
    if ledger.scaler is None:
        return False
    if ledger.scale is not None:  # a fused optimizer: it looks when the step is taken
        return True
    found = ledger.scaler._per_optimizer_states[id(ledger.optimizer)]["found_inf_per_device"]
    return any(bool(one) for one in found.values())


def drop(ledger: Ledger, *, routine: bool) -> None:
    """Let nothing of this step reach the weights, the optimizer's state or our other callbacks.

    A routine overflow stays in place, because the GradScaler skips it by itself. But a fused optimizer that has no
    state yet would make one on the way, and torch's SGD would take its momentum from memory that nobody has written.
    Unscaling first lets the scaler see what is dropped, so that it backs off.
    """
    stateless = ledger.fused and not all(ledger.optimizer.state.get(tensor) for tensor in ledger.plan.tensors)
    if stateless or not routine:
        ledger.unscale()
        ledger.drop()


def count(ledger: Ledger, *, incident: bool) -> None:
    """Correct what the session counts by the norm as the first of ours saw it.

    It takes a bad norm under a GradScaler for routine, and for a step that a fused optimizer skips by itself; and it
    does not see what a foreign callback has brought in since.
    """
    late = ledger.before is not None and bool(ledger.before.isfinite())
    by_itself = ledger.fused and ledger.live and seen_by_scaler(ledger)
    tally = ledger.tally
    ledger.tally = tally._replace(
        nonfinite=tally.nonfinite + int(incident and (late or ledger.scaler is not None)),
        kernel_skipped=tally.kernel_skipped + int(by_itself) - int(ledger.fused and not late),
    )
