"""The tensors of a batch, by their places in it, and those of them that are not finite."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DEPTH = 8
_SAMPLES = 3  # that are told


class BadInput(NamedTuple):
    """Tensors of a batch that are not finite.

    Attributes:
        text: The first of them, for a sentence; empty if there is none.
        nan: How many NaN there are in all.
        inf: How many Inf.
    """

    text: str = ""
    nan: int = 0
    inf: int = 0


def tensors_of(value: Any, place: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Tensor]]:
    """Tensors in lists, tuples, mappings and dataclasses, with their places, such as ``["x"][0]``."""
    if isinstance(value, Tensor):
        yield place, value
    elif depth:
        for key, one in _parts(value):
            yield from tensors_of(one, f"{place}{key}", depth - 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", one) for key, one in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{i}]", one) for i, one in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{one.name}", getattr(value, one.name)) for one in fields(value))


@torch.no_grad()
def bad_input(batches: list[Any]) -> BadInput:
    """What is not finite in micro-batches; a mask of 0 and -Inf is as it should be. It waits for the device."""
    found = BadInput()
    for place, value in (one for batch in batches for one in tensors_of(batch)):
        try:
            nan, inf = _counts(value)
        except (RuntimeError, NotImplementedError):  # a kind of tensor that cannot be asked
            continue
        if nan or inf:
            text = f"batch{place}: {nan:,} NaN and {inf:,} Inf of {value.numel():,} elements{_rows(value)}"
            found = BadInput(found.text or text, found.nan + nan, found.inf + inf)
    return found


def _counts(value: Tensor) -> tuple[int, int]:
    """Of NaN and Inf."""
    if value.layout != torch.strided or not (value.is_floating_point() or value.is_complex()):
        return 0, 0
    nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
    return (0, 0) if inf and not nan and _is_mask(value) else (nan, inf)


def _is_mask(value: Tensor) -> bool:
    return not value.is_complex() and bool(((value == 0) | (value == -torch.inf)).all())


def _rows(value: Tensor) -> str:
    if value.ndim < 2:
        return ""
    rows = (~value.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    more = f" and {len(rows) - _SAMPLES} more" if len(rows) > _SAMPLES else ""
    return f", in sample{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:_SAMPLES]))}{more}"
