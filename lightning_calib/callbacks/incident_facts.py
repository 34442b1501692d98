"""What a fit knows of a step whose gradient is not finite, for its sentence."""

from collections.abc import Sequence

from lightning_calib.fit.session import Session
from lightning_calib.functional.finiteness import Bad
from lightning_calib.functional.plan import Plan
from lightning_calib.incidents.culprit import Culprit, neighbours
from lightning_calib.report.incident import Incident
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.scaled_rates import rate_of


def where(session: Session, batch: int) -> str:
    """Step, epoch and batch, as sentences name them."""
    return f"step {session.step} (epoch {session.trainer.current_epoch}, batch {batch})"


def facts_of(
    session: Session, view: GradientView, bad: Sequence[Bad], found: Culprit, batch: int, unscale: float
) -> Incident:
    """The tensors, and what is known of loss, data and rate; ``unscale`` makes the loss what the module returned."""
    order = {name: i for i, name in enumerate(Plan.of(view.module).names)}
    rate = rate_of(view.optimizer.param_groups[0])
    deepest = max(bad, key=lambda one: order.get(one.name, -1))
    return Incident(
        bad=len(bad),
        tensors=len(view.plan.tensors),
        deepest=deepest.name,
        counts=str(deepest).removeprefix(f"{deepest.name} "),
        around=neighbours(order, view.plan.names, view.gradients, bad),
        infinite=any(one.inf for one in bad),
        lost=found.lost,
        rate=None if rate is None else float(rate),
        origin=found.text,
        data=found.data,
        looked=found.looked,
        precision=str(session.trainer.precision),
        where=where(session, batch),
        loss=None if found.loss is None else found.loss * unscale,
    )
