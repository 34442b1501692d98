"""What becomes of a step that could not be measured, where our callbacks only observe."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from lightning_calib.steps.gradient_view import Ledger

Ours = TypeVar("Ours")


def never_ends_a_run(turn: Callable[[Ours, Any, Ledger], None]) -> Callable[[Ours, Any, Ledger], None]:
    """A turn in a session's step whose failure is told, and ends what we tell of that optimizer, but not the run.

    It is raised where one of ours acts, because a clip that stops in silence is worse than a run that ends; and where
    the other processes would wait for this one in a collective, because parameters are sharded or a guard asks all of
    them whose loss was bad.
    """

    @wraps(turn)
    def guarded(callback: Ours, session: Any, ledger: Ledger) -> None:
        try:
            turn(callback, session, ledger)
        except Exception as trouble:
            asked = session.trainer.world_size > 1 and any(one.guards for one in session.ours)
            if any(one.acts for one in session.ours) or asked or ledger.plan.shards is not None:
                raise
            session._give_up(ledger, f"The gradients of {ledger.label} could not be measured: {trouble!r}.")

    return guarded
