"""What a callback adds to a step of a whole fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks import peers, variants
from benchmarks.interleave import FIRST, compare, fired
from benchmarks.models import Given, Shapes, gpt2, resnet50, small
from benchmarks.variants import Variant, plain, trainers_clip

TENSORS = (10, 100, 1000)
Tables = list[dict[str, Any]]
NAMED: dict[str, Callable[[], Shapes]] = {"ResNet-50": resnet50, "GPT-2 small": gpt2}


class Length(NamedTuple):
    """How long one fit is, in steps, and all of them, in seconds."""

    steps: int
    seconds: float


SMALL = {10: Length(260, 120), 100: Length(80, 100), 1000: Length(16, 120)}
LARGE = {"ResNet-50": Length(8, 100), "GPT-2 small": Length(3, 150)}
LOGGED = {10: Length(60, 20), 100: Length(30, 20), 1000: Length(10, 60)}


def unlogged(
    tensors: Sequence[int] = TENSORS, models: Iterable[str] = NAMED, rounds: int = 1000, quick: bool = False
) -> list[dict[str, Any]]:
    """One table per model of steps of which nothing is logged."""
    rows = [plain(), trainers_clip(), *variants.unlogged(), *peers.unlogged()]
    shares = {one.title: fired(Given(small(10)), one, FIRST + (5 if quick else 40)) for one in rows if one.side}
    large = [one for one in rows if one.large]
    found = []
    for count in tensors:
        length = SMALL.get(count, Length(max(6, 20_000 // count), 120))
        found.append(_table(f"{count:,} small tensors", small(count), rows, length, shares, rounds, quick))
    for name in models:
        found.append(_table(name, NAMED[name](), large, LARGE[name], shares, rounds, quick))
    return found


def logged(tensors: Sequence[int] = TENSORS, rounds: int = 1000, quick: bool = False) -> Tables:
    """The same of steps that are logged, each of them."""
    rows = [plain(tab=True), trainers_clip(tab=True), *variants.logged(), *peers.logged()]
    found = []
    for count in tensors:
        length = LOGGED.get(count, Length(8, 60))
        found.append(_table(f"{count:,} small tensors", small(count), rows, length, {}, rounds, quick, every=1))
    return found


def _table(
    title: str,
    shapes: Shapes,
    rows: list[Variant],
    length: Length,
    shares: dict[str, float],
    rounds: int,
    quick: bool,
    every: int = 10**9,
) -> dict[str, Any]:
    model = Given(shapes)
    steps = FIRST + (2 if quick else length.steps)
    done, spent, step = compare(model, rows, steps, length.seconds, every, 1 if quick else rounds)
    base = spent[rows[1].title].extra
    return {
        "title": title,
        "tensors": len(model.flat),
        "elements": sum(one.numel() for one in model.flat),
        "steps": steps - FIRST,
        "rounds": done,
        "plain_us": _us(step),
        "rows": [
            {
                "name": one.name,
                "side": one.side,
                "whose": one.whose,
                "extra_us": _us(spent[one.title].extra),
                "low_us": _us(spent[one.title].low),
                "high_us": _us(spent[one.title].high),
                "ratio": round(spent[one.title].extra / base, 3),
                "of_plain": round(1 + spent[one.title].extra / step, 3),
                "fired": shares.get(one.title),
            }
            for one in rows[1:]
        ],
    }


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 1)
