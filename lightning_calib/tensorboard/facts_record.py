"""What a record of facts says, checked: an event file may come from anywhere."""

import json
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_calib.report.run import Clipper, Facts, Group
from lightning_calib.tensorboard.refused import Refused, require, shown

SCHEMA = 1
T = TypeVar("T")


class LayerFacts(NamedTuple):
    """What stays the same of each tensor; lists of one length.

    Attributes:
        names: Of the parameters.
        sizes: Number of elements.
        group_of: Index of each one's parameter group.
        trainable: Whether a gradient is to be expected.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    group_of: tuple[int, ...] = ()
    trainable: tuple[bool, ...] = ()


class FactsRecord(NamedTuple):
    """What stays the same for a fit, of one optimizer.

    Attributes:
        facts: Of the fit.
        layers: Of its tensors.
        clippers: Who reduces gradients; the rates are in the rows.
    """

    facts: Facts
    layers: LayerFacts
    clippers: tuple[Clipper, ...]


def parse_facts(text: Any) -> FactsRecord:
    """A record of facts from its JSON.

    Raises:
        Refused: With the key, the rule and the value.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        raise Refused("a record of facts must be JSON, and is not") from None
    require(isinstance(found, dict), "facts", "an object", found)
    require(found.get("schema") == SCHEMA, "schema of facts", f"{SCHEMA}", found.get("schema"))
    layers = _record(LayerFacts, found.get("layers"), "layers")
    require(len({len(each) for each in layers}) == 1, "layers of facts", "lists of one length", found.get("layers"))
    clippers = found.get("clippers")
    require(isinstance(clippers, list), "clippers", "a list", clippers)
    facts = _record(Facts, found.get("facts"), "facts")
    named = tuple(_record(Clipper, {"clip_rate": None, **_object(one, "clipper")}, "clipper") for one in clippers)
    return FactsRecord(facts, layers, named)


def _object(found: Any, name: str) -> dict[str, Any]:
    require(isinstance(found, dict), name, "an object", found)
    return dict(found)


def _record(kind: type[T], found: Any, name: str) -> T:
    """A NamedTuple from an object; what the object says beyond it is of a later version, and left out."""
    hints, said = get_type_hints(kind), _object(found, name)
    optional: dict[str, Any] = getattr(kind, "_field_defaults", {})
    for key in hints:
        if key not in said and key not in optional:
            raise Refused(f"`{name}` must have `{key}`, got {shown(found)}")
    return kind(**{key: _fit(said[key], hint, f"{name}.{key}") for key, hint in hints.items() if key in said})


def _fit(value: Any, hint: Any, name: str) -> Any:
    """The value as the field's type has it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return None if value is None else _fit(value, next(one for one in inner if one is not NoneType), name)
    if origin is Literal:
        require(value in inner, name, f"one of {', '.join(map(str, inner))}", value)
        return value
    if origin is tuple:
        require(isinstance(value, list), name, "a list", value)
        return tuple(_fit(one, inner[0], name) for one in value)
    if hint is Group:
        return _record(Group, value, name)
    if hint is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
        require(right, name, "a number", value)
        return float(value)
    require(type(value) is hint, name, f"a {hint.__name__}", value)
    return value
