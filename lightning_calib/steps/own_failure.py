"""Training needs nothing of what only observes: an error of its own ends it, and not the run."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def ends_only_itself(method: Callable[P, R]) -> Callable[P, R | None]:
    """Any error sets ``off`` and calls ``tell_the_end``, once; from then on the object does nothing."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        owner: Any = args[0]
        if owner.off:
            return None
        try:
            return method(*args, **kwargs)
        except Exception as trouble:
            owner.off = True
            owner.tell_the_end(trouble)
            return None

    return guarded
