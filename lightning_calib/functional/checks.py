"""Argument checks with one message form: the name, the rule, the value, and what to do instead."""

from collections.abc import Sequence
from math import inf, isfinite, isnan

_EXACT = 2**53  # whole numbers up to here are exact as floats, and fit the device's integers
_LARGEST = 3.4e38  # of float32, the type of norms
_LONG = 200  # characters


def message(name: str, rule: str, value: object, remedy: str) -> str:
    """The sentence that every refusal of an argument uses."""
    return f"`{name}` must be {rule}, got {told(value)}. {remedy}"


def told(value: object) -> str:
    """A value as a sentence has it: its ``repr``, as far as it is short."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]} ... {text[-_LONG // 4 :]}"


def check_number(
    name: str, value: object, remedy: str, low: float = -inf, high: float = inf, *, ends: str = "[]"
) -> None:
    """Accept a real number between ``low`` and ``high``; ``ends`` holds the two brackets of the interval.

    Raises:
        TypeError: If ``value`` is not an ``int`` or ``float``.
        ValueError: If it is not a number, lies outside the interval, or is finite and no float32 can hold it.
    """
    rule = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(message(name, f"a number {rule}", value, remedy))
    below = value < low or (ends[0] == "(" and value == low)
    above = value > high or (ends[1] == ")" and value == high)
    if below or above or (isinstance(value, float) and isnan(value)):
        raise ValueError(message(name, rule, value, remedy))
    if isinstance(value, int) and abs(value) > _EXACT:
        raise ValueError(message(name, f"{rule}, and a float beyond 2**53", value, remedy))
    if isfinite(value) and abs(value) > _LARGEST:
        raise ValueError(message(name, f"{rule}, and at most {_LARGEST:g} where it is finite", value, remedy))


def check_count(name: str, value: object, remedy: str, low: int = 0, high: int = _EXACT) -> None:
    """Accept a whole number of at least ``low`` and at most ``high``.

    Raises:
        TypeError: If ``value`` is not an ``int``.
        ValueError: If it is smaller or larger.
    """
    rule = f"a whole number >= {low}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(name, rule, value, remedy))
    if value < low:
        raise ValueError(message(name, rule, value, remedy))
    if value > high:
        raise ValueError(message(name, f"{rule} and <= {high}", value, remedy))


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
    if not (isinstance(value, str) and value in choices):
        raise ValueError(message(name, "one of " + ", ".join(map(repr, choices)), value, remedy))
