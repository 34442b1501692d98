"""The page is what the table says, and the table leaves nobody out."""

from __future__ import annotations

from modes.expected import GROUPS, MODES
from modes.laws import CASES
from modes.table import PAGE, render

import lightning_calib
from lightning_calib import callbacks


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == render(), "run `make compatibility`"


def test_every_public_callback_has_a_column() -> None:
    assert {column.split("(")[0] for column in CASES} == {
        one for one in lightning_calib.__all__ if one in vars(callbacks)
    }


def test_no_mode_is_listed_twice_and_no_column_is_unknown() -> None:
    titles = [mode.title for mode in MODES]
    assert len(titles) == len(set(titles))
    assert all({*mode.refuses, *mode.silent, *mode.absent} <= set(CASES) for mode in MODES)
    assert all(GROUPS.values())
