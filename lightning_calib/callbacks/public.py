"""The root of every callback: its arguments can be seen, and it refuses to be used as a class."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from itertools import product
from operator import attrgetter
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, overload

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

SHARED = ("scope", "norm_type", "rules", "dry_run", "name")  # after a method's own arguments, in this order
P = ParamSpec("P")
T = TypeVar("T")


def arguments_of(kind: Callable[..., Any]) -> dict[str, Parameter]:
    """The named arguments of a constructor."""
    found = signature(kind).parameters.items()
    return {name: one for name, one in found if one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)}


def refuses_classes(hook: Callable[P, None]) -> Callable[P, None]:
    """For the first hook of a run, and the one for exceptions: without an instance, Lightning's Trainer comes first."""

    @wraps(hook)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        if isinstance(args[0], PublicCallback):
            return hook(*args, **kwargs)
        if hook.__name__ == "on_exception":  # which was raised below
            return None
        every = args[0].callbacks  # type: ignore[attr-defined]
        kinds = [one for one in every if isinstance(one, type) and issubclass(one, PublicCallback)]
        for one, name in product(kinds, ("log", "log_dict")):  # methods of the module, put there by the Trainer
            if name in vars(one):
                delattr(one, name)
        kind = kinds[0]
        needed = [f"{name}=..." for name, one in arguments_of(kind).items() if one.default is Parameter.empty]
        raise TypeError(
            f"`callbacks` must be a list of instances, got the class {kind.__name__}. "
            f"Use callbacks=[{kind.__name__}({', '.join(needed)})]."
        )

    return checked


class PublicCallback(Callback):
    """A callback whose arguments are attributes of the same names."""

    def __repr__(self) -> str:
        """The constructor's call: a method's own arguments, and those of the shared ones that are not the default."""
        shown = []
        for name, one in arguments_of(type(self)).items():
            value = getattr(self, name, Parameter.empty)  # a subclass need not keep its arguments
            if value is not Parameter.empty and (name not in SHARED or (value and value != one.default)):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @refuses_classes
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Nothing to set up."""

    @refuses_classes
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Nothing to clean up."""


class OfPolicy(Generic[T]):
    """A recipe's argument, read where it is used: in the policy. It cannot be set."""

    def __init__(self, path: str) -> None:
        self._path, self._read = path, attrgetter(path)

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, one: None, kind: type) -> "OfPolicy[T]": ...

    @overload
    def __get__(self, one: object, kind: type) -> T: ...

    def __get__(self, one: Any, kind: type) -> Any:
        return self if one is None else self._read(one.policy)

    def __set__(self, one: object, value: T) -> NoReturn:
        kind = type(one).__name__
        raise AttributeError(
            f"`{self._name}` of {kind} must stay as it was made, got {value!r}. Make another: "
            f"{kind}({self._name}={value!r})."
        )


def renamed(package: str, names: dict[str, str]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Refuse another package's names of arguments, each with a sentence on what takes its place here."""

    def around(constructor: Callable[P, None]) -> Callable[P, None]:
        @wraps(constructor)
        def checked(*args: P.args, **kwargs: P.kwargs) -> None:
            theirs = next((name for name in kwargs if name in names), None)
            if theirs is not None:
                kind = type(args[0]).__name__
                raise TypeError(
                    f"`{theirs}` must be left out of {kind}: it is an argument of the package {package}, got "
                    f"{theirs}={kwargs[theirs]!r}. {names[theirs].format(kwargs[theirs])}"
                )
            constructor(*args, **kwargs)

        return checked

    return around


def check_names(ours: Sequence[PublicCallback]) -> None:
    """Refuse two that a checkpoint could not tell apart: Lightning's own check does not know `name`."""
    keys = [one.state_key for one in ours]
    twice = next((one for one in ours if keys.count(one.state_key) > 1), None)
    if twice is None:
        return
    kind, name = type(twice).__name__, getattr(twice, "name", None)
    label, remedy = f"{kind}({name})" if name else kind, "Keep one of them."
    if "name" in arguments_of(type(twice)):
        remedy = f"Give one of them another name, such as {kind}(..., name={(name or kind.lower()) + '_2'!r})."
    raise MisconfigurationException(f"`name` must tell callbacks apart: two of them are {label}. {remedy}")
