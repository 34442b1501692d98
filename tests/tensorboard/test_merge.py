"""What still stands of several tags, and the order of their rows: as the definitions say, without asking every pair."""

import time

import numpy as np
import pytest

from lightning_calib.tensorboard.about import About
from lightning_calib.tensorboard.merge import current, ordered
from lightning_calib.tensorboard.reading import Records

ABOUT = About("globals", 0, "SGD", names=["x"])


def records(steps: list[int], walls: list[float]) -> Records:
    values = [np.full(1, i, np.float32) for i in range(len(steps))]
    return Records(ABOUT, np.array(steps, np.int64), np.array(walls, np.float64), values, thinned=False)


def by_pairs(found: list[Records], clock: list[Records]) -> list[Records]:
    """The definition: a record is old if another tag's newest record at or before its step was written after it."""
    standing = []
    for mine in found:
        keep = []
        for i, (step, wall) in enumerate(zip(mine.steps, mine.walls, strict=True)):
            others = [other for other in (*found, *clock) if other is not mine]
            newest = [other.walls[other.steps <= step] for other in others]
            if not any(walls[-1] > wall for walls in newest if len(walls)):
                keep.append(i)
        if keep:
            values = [mine.values[i] for i in keep]
            standing.append(mine._replace(steps=mine.steps[keep], walls=mine.walls[keep], values=values))
    return sorted(standing, key=lambda each: float(each.walls[-1]))


def by_rebuilding(found: list[list[str]]) -> list[str]:
    """The definition: a name that the order lacks follows the one before it in its own list."""
    order: list[str] = []
    for names in found:
        known, before = set(order), None
        following: dict[str | None, list[str]] = {}
        for name in names:
            if name in known:
                before = name
            else:
                following.setdefault(before, []).append(name)
        order = [*following.get(None, []), *(each for name in order for each in (name, *following.get(name, [])))]
    return order


def tags(dice: np.random.Generator, count: int, orderly: bool) -> list[Records]:
    """Some tags with few steps and few times, so that ties, repeated steps and empty tags occur."""
    found = []
    for _ in range(count):
        size = int(dice.integers(0, 9))
        steps = np.sort(dice.integers(0, 12, size)).tolist()
        walls = dice.integers(-2, 12, size).astype(float)
        found.append(records(steps, (np.sort(walls) if orderly else walls).tolist()))
    return found


@pytest.mark.parametrize("orderly", [True, False])
def test_what_stands_is_what_all_pairs_leave(orderly: bool) -> None:
    dice = np.random.default_rng(0)
    dropped = left_out = 0
    for _ in range(1500):
        found, clock = tags(dice, int(dice.integers(0, 5)), orderly), tags(dice, int(dice.integers(0, 3)), orderly)
        mine, theirs = current(found, clock), by_pairs(found, clock)
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one.steps, other.steps)
            np.testing.assert_array_equal(one.walls, other.walls)
            assert [value.item() for value in one.values] == [value.item() for value in other.values]
        dropped += sum(len(each.steps) for each in found) - sum(len(each.steps) for each in mine)
        left_out += len(found) - len(mine)
    assert min(dropped, left_out) > 100  # both branches were visited


def test_names_are_in_the_order_that_rebuilding_gives() -> None:
    dice = np.random.default_rng(0)
    letters = list("abcdefgh")
    for _ in range(1500):
        found = [dice.permutation(letters)[: dice.integers(0, 9)].tolist() for _ in range(int(dice.integers(0, 5)))]
        assert ordered(found) == by_rebuilding(found)


def seconds(call: object, *arguments: object) -> float:
    start = time.perf_counter()
    call(*arguments)  # type: ignore[operator]
    return time.perf_counter() - start


def test_three_thousand_tags_are_no_matter_of_minutes() -> None:
    many = [records([i, i + 1], [float(i), i + 0.5]) for i in range(3000)]
    names = [[f"m{i}.weight", f"m{i}.bias"] for i in range(3000)]
    assert seconds(current, many) < 3.0  # 0.1 s on two shared cores; all pairs took 30
    assert seconds(ordered, names) < 1.0  # 0.02 s; rebuilding for each list took 5
