"""Saved values against fresh ones: what does not fit is refused before anybody computes with it."""

from collections.abc import Collection, Mapping
from math import isfinite, isnan
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from lightning_calib.functional.checks import told


class _Fields(Protocol):
    def _asdict(self) -> dict[str, Any]: ...


S = TypeVar("S", bound=_Fields)
_RULES = {bool: "True or False", float: "a finite number", str: "a text", dict: "a dictionary", list: "a list"}


class DamagedStateError(ValueError):
    """A saved value that cannot be taken up; the text names its key, the rule and the value."""


class OrNone(NamedTuple):
    """In the place of a fresh value: None, or a value like this one."""

    like: Any


class ListOf(NamedTuple):
    """In the place of a fresh value: a list of at most ``most`` values like this one."""

    like: Any
    most: int = 2**31


def check_saved(saved: Any, like: Any, key: str) -> None:
    """Accept what has the form of the fresh value ``like``.

    Dictionaries have the same keys, lists the same length, tensors the same shape and kind of number. Whole numbers are
    counts: not below zero, unless the fresh one is. Numbers are finite: but where a fresh value is inf, one may be inf
    (an empty slot), and where a fresh value is nan, anything.

    Raises:
        DamagedStateError: If something does not fit, with the key of the first such value.
    """
    if isinstance(like, OrNone):
        if saved is not None:
            check_saved(saved, like.like, key)
    elif isinstance(like, Tensor):
        _check_tensor(saved, like, key)
    elif isinstance(like, dict):
        check_keys(saved, like, key)
        for name, one in like.items():
            check_saved(saved[name], one, f"{key}.{name}")
    elif isinstance(like, (list, ListOf)):
        _check_list(saved, like, key)
    else:
        _check_builtin(saved, like, key)


def check_kind(saved: Any, kind: type, key: str) -> None:
    """Accept a ``dict``, or a ``list``; raises DamagedStateError otherwise."""
    if not isinstance(saved, kind):
        raise _refused(saved, _RULES[kind], key)


def check_keys(saved: Any, names: Collection[str], key: str) -> None:
    """Accept a dictionary with these keys and no others; raises DamagedStateError otherwise."""
    check_kind(saved, dict, key)
    for name in names:
        entry(saved, name, key)
    more = [name for name in saved if name not in names]
    if more:
        raise DamagedStateError(f"`{key}` has the unknown key {told(more[0])}")


def entry(saved: Any, name: str, key: str) -> Any:
    """What a saved dictionary has under this name; raises DamagedStateError if it has nothing, or is no dictionary."""
    check_kind(saved, dict, key)
    if name not in saved:
        raise DamagedStateError(f"`{key}.{name}` is missing")
    return saved[name]


def restored(saved: Any, fresh: S, key: str) -> S:
    """A NamedTuple of tensors and counts with the saved numbers, where those of ``fresh`` live and of their types.

    Its type may say more: ``grows`` names tensors whose last dimension gets longer in time, ``later`` has what
    stands for tensors that earlier versions did not save, ``flaw()`` tells why its numbers contradict one another.

    Raises:
        DamagedStateError: If something does not fit.
    """
    likes = fresh._asdict()
    check_kind(saved, dict, key)
    saved = {**getattr(fresh, "later", {}), **saved}
    check_keys(saved, likes, key)
    for name in getattr(fresh, "grows", ()):
        if tensor_fits(saved[name], likes[name], grows=True):
            likes[name] = likes[name][..., :1].expand(saved[name].shape)
    check_saved(saved, likes, key)
    found: S = cast(Any, type(fresh))(**on_device(saved, likes))
    flaw = found.flaw() if hasattr(found, "flaw") else ""
    if flaw:
        raise DamagedStateError(f"`{key}` contradicts itself: {flaw}")
    return found


def on_device(saved: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the saved values where their counterparts in ``like`` live, and of their types."""
    return {key: _placed(saved[key], value) for key, value in like.items()}


def tensor_fits(saved: Any, like: Tensor, *, grows: bool = False) -> bool:
    """Whether it is a tensor of the same shape and kind of number; looks at no number."""
    if not isinstance(saved, Tensor) or saved.layout != torch.strided or saved.is_quantized:
        return False
    longer = grows and saved.ndim == like.ndim and saved.shape[-1] > like.shape[-1]
    same = saved.shape[:-1] == like.shape[:-1] if longer else saved.shape == like.shape
    return same and _kind(saved.dtype) == _kind(like.dtype)


def _placed(value: Any, like: Any) -> Any:
    return value.detach().to(like.device, like.dtype, copy=True) if isinstance(like, Tensor) else value


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return "numbers" if dtype.is_floating_point else "complex numbers"
    return "True or False" if dtype == torch.bool else "whole numbers"


def _refused(saved: Any, rule: str, key: str) -> DamagedStateError:
    if isinstance(saved, Tensor):
        found = f"a tensor of {str(saved.dtype).removeprefix('torch.')}, shape {tuple(saved.shape)}"
    else:
        found = " ".join(told(saved).split())
    return DamagedStateError(f"`{key}` must be {rule}, got {found}")


def _check_tensor(saved: Any, like: Tensor, key: str) -> None:
    kind = _kind(like.dtype)
    if not tensor_fits(saved, like) or saved.is_meta:
        raise _refused(saved, f"a tensor of {kind}, shape {tuple(like.shape)}", key)
    if kind == "whole numbers":
        if bool((saved < 0).any()) and not _any(like < 0):
            raise DamagedStateError(f"`{key}` must hold whole numbers >= 0, got {int(saved.min())}")
    elif kind != "True or False" and not _any(like.isnan()):
        found = saved.detach().to(like.dtype)
        bad = ~found.isfinite() & ~((found == torch.inf) & _any(like == torch.inf))
        if bool(bad.any()):
            raise DamagedStateError(
                f"`{key}` must hold finite numbers, got {int(bad.sum())} of {bad.numel()} that are not"
            )


def _any(mask: Tensor) -> bool:
    return not mask.is_meta and bool(mask.any())


def _check_list(saved: Any, like: "list[Any] | ListOf", key: str) -> None:
    check_kind(saved, list, key)
    if isinstance(like, ListOf):
        if len(saved) > like.most:
            raise DamagedStateError(f"`{key}` must have at most {like.most} entries, got {len(saved)}")
        like = [like.like] * len(saved)
    if len(saved) != len(like):
        raise DamagedStateError(f"`{key}` must have {len(like)} entries, got {len(saved)}")
    for i, (one, other) in enumerate(zip(saved, like, strict=True)):
        check_saved(one, other, f"{key}.{i}")


def _check_builtin(saved: Any, like: Any, key: str) -> None:
    fits = type(saved) is type(like)
    if isinstance(like, int) and not isinstance(like, bool):
        low = min(0, like)
        if not (fits and low <= saved < 2**63):
            raise _refused(saved, f"a whole number >= {low}", key)
    elif not fits or (isinstance(like, float) and not isnan(like) and not isfinite(saved)):
        raise _refused(saved, "a number" if isinstance(like, float) and isnan(like) else _RULES[type(like)], key)
