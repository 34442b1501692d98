"""Argument checks with one message form: the name, the rule, the value, and what to do instead."""

from collections.abc import Sequence
from math import inf, isnan


def message(name: str, rule: str, value: object, remedy: str) -> str:
    """The sentence that every refusal of an argument uses."""
    return f"`{name}` must be {rule}, got {value!r}. {remedy}"


def check_number(
    name: str, value: object, remedy: str, low: float = -inf, high: float = inf, *, ends: str = "[]"
) -> None:
    """Accept a real number between ``low`` and ``high``; ``ends`` holds the two brackets of the interval.

    Raises:
        TypeError: If ``value`` is not an ``int`` or ``float``.
        ValueError: If it is not a number or lies outside the interval.
    """
    rule = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(message(name, f"a number {rule}", value, remedy))
    below = value < low or (ends[0] == "(" and value == low)
    above = value > high or (ends[1] == ")" and value == high)
    if isnan(value) or below or above:
        raise ValueError(message(name, rule, value, remedy))


def check_count(name: str, value: object, remedy: str, low: int = 0) -> None:
    """Accept a whole number of at least ``low``.

    Raises:
        TypeError: If ``value`` is not an ``int``.
        ValueError: If it is smaller than ``low``.
    """
    rule = f"a whole number >= {low}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(name, rule, value, remedy))
    if value < low:
        raise ValueError(message(name, rule, value, remedy))


def check_flag(name: str, value: object, remedy: str) -> None:
    """Accept ``True`` or ``False`` only.

    Raises:
        TypeError: If ``value`` is not a ``bool``.
    """
    if not isinstance(value, bool):
        raise TypeError(message(name, "True or False", value, remedy))


def check_choice(name: str, value: object, choices: Sequence[str], remedy: str) -> None:
    """Accept one of ``choices``.

    Raises:
        ValueError: If ``value`` is none of them.
    """
    if value not in choices:
        raise ValueError(message(name, "one of " + ", ".join(map(repr, choices)), value, remedy))
