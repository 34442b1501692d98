"""The arithmetic of the back end against plain loops."""

import itertools
import math
import random

import numpy as np
import pytest
from board import Frame

from lightning_calib.tensorboard.about import About
from lightning_calib.tensorboard.folding import fold, fold_histograms, members
from lightning_calib.tensorboard.frames import frame
from lightning_calib.tensorboard.lists import natural
from lightning_calib.tensorboard.merge import Table, current, ordered, union
from lightning_calib.tensorboard.reading import Records

KINDS = (-1.0, 0.0, 2.0, 1e30, math.inf, math.nan)
CASES = np.array(list(itertools.product(KINDS, repeat=3)), np.float32)


def folded(values: list[float], how: str) -> float:
    present = [value for value in values if value != -1.0]
    if not present:
        return -1.0
    if any(math.isnan(value) for value in present):
        return math.nan
    return math.sqrt(sum(value * value for value in present)) if how == "l2" else max(present)


@pytest.mark.parametrize("how", ["l2", "max"])
def test_folds_are_the_loops(how: str) -> None:
    expected = [folded(row.tolist(), how) for row in CASES]
    np.testing.assert_allclose(fold(CASES, how), np.array(expected, np.float32), rtol=1e-6)  # float32's last bits


def test_l2_folds_in_any_order_to_the_same() -> None:
    values = np.random.default_rng(0).lognormal(0.0, 5.0, (7, 12)).astype(np.float32)
    halves = np.stack([fold(values[:, :5], "l2"), fold(values[:, 5:], "l2")], axis=1)
    np.testing.assert_allclose(fold(halves, "l2"), fold(values, "l2"), rtol=3e-7)  # each rounds to float32


def test_what_is_too_large_for_float32_is_infinite() -> None:
    assert fold(np.full((1, 9), 3e38, np.float32), "l2")[0] == math.inf


def test_histograms_sum_but_for_the_largest_exponent_and_absent_rows_do_not_count() -> None:
    rows = np.array([[5, 1, -3, 7, 8], [-1, -1, -1, -1, -1], [2, 0, 4, 1, 1], [0, 0, -9999, 0, 0]], np.float32)
    assert fold_histograms(rows).tolist() == [7, 1, 4, 8, 9]
    assert fold_histograms(rows[1:2]).tolist() == [-1] * 5
    assert fold_histograms(rows[[1, 3]]).tolist() == [0, 0, -9999, 0, 0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", [0, 1, 2, 3]),
        ("a", [0, 1, 3]),
        ("a.1", [0]),
        ("a.1.weight", [0]),
        ("a.10", [1]),
        ("a.", []),
        ("b", [3]),
        ("b.c", [3]),
        ("ab", [2]),
        (".", []),
    ],
)
def test_members_of_a_path_are_below_it_or_owned_below_it(path: str, expected: list[int]) -> None:
    names, owners = ["a.1.weight", "a.10.weight", "ab.weight", "a.shared"], ["a.1", "a.10", "ab", "b.c"]
    assert members(path, names, owners) == expected


def test_natural_order() -> None:
    names = [".", "a/layer2", "a/layer10", "a/layer10/x", "b", "run 007", "run 7b", "v" + "9" * 5000]
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=natural) == names


def test_names_are_ordered_by_the_first_list_and_the_others_fill_in() -> None:
    assert ordered([["b", "c", "d"], ["a", "b", "x", "y", "d"]]) == ["a", "b", "x", "y", "c", "d"]
    assert ordered([["", "b"], ["new", "", "c"]]) == ["new", "", "c", "b"]
    assert ordered([]) == []


def records(steps: list[int], walls: list[float]) -> Records:
    values = [np.full(1, wall, np.float32) for wall in walls]
    return Records(About("globals", 0, "SGD", names=["x"]), np.array(steps), np.array(walls), values, thinned=False)


def test_what_a_resumed_run_wrote_again_stands_instead() -> None:
    first = records([0, 1, 2, 3, 8, 9], [0.0, 1.0, 2.0, 3.0, 28.0, 29.0])  # and once more from 8 on
    second = records([2, 3, 4, 7, 8], [12.0, 13.0, 14.0, 17.0, 18.0])
    for found in (current([first, second]), current([second, first])):
        assert [each.steps.tolist() for each in found] == [[2, 3, 4, 7], [0, 1, 8, 9]]  # the one written last is last
        assert [value.item() for value in found[1].values] == [0.0, 1.0, 28.0, 29.0]


def test_a_clock_tells_what_was_written_again_in_other_tags() -> None:
    mine, clock = records([0, 10, 20], [0.0, 1.0, 2.0]), records([0, 5, 15, 20], [0.0, 0.5, 8.0, 9.0])
    assert [each.steps.tolist() for each in current([mine], [clock])] == [[0, 10]]
    assert current([records([20], [2.0])], [clock]) == []


def test_a_union_has_every_step_and_label() -> None:
    old = Table(["a", "b"], np.array([0, 1]), np.array([0.0, 1.0]), np.array([[1, 2], [3, 4]], np.float32))
    new = Table(["b", "c"], np.array([1, 5]), np.array([7.0, 8.0]), np.array([[5, 6], [7, 8]], np.float32))
    found = union([old, new])
    assert (found.labels, found.steps.tolist(), found.walls.tolist()) == (["a", "b", "c"], [0, 1, 5], [0.0, 7.0, 8.0])
    assert found.values.tolist() == [[1, 2, -1], [3, 5, 6], [-1, 7, 8]]


def test_numbers_of_a_frame_start_at_a_multiple_of_four() -> None:
    for size in range(5):
        data = frame({"name": "ü" + "x" * size}, np.array([[1.5, np.nan]], np.float32))
        found = Frame.read(data)
        assert found.header == {"name": "ü" + "x" * size, "shape": [1, 2]}
        np.testing.assert_array_equal(found.values, np.array([[1.5, np.nan]], np.float32))
