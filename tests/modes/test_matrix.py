"""Every public callback in every mode: right to the element, or an honest refusal."""

from __future__ import annotations

import pytest
from helpers.tiny_modules import different, same_bits, weights
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from modes.expected import MODES
from modes.laws import CASES
from modes.matrix import Mode, check_works, run

CELLS = [pytest.param(mode, column, id=f"{mode.title} - {column}") for mode in MODES for column in CASES]


def cells(outcome: str) -> list:
    return [cell for cell in CELLS if cell.values[0].outcome(cell.values[1]) == outcome]


@pytest.mark.parametrize(("mode", "column"), cells("works"))
def test_works(mode: Mode, column: str) -> None:
    (mode.check or check_works)(mode, column)


@pytest.mark.parametrize(("mode", "column"), cells("refuses"))
def test_refuses(mode: Mode, column: str) -> None:
    with pytest.raises(MisconfigurationException) as error:
        mode.check(mode, column) if mode.check else run(mode, CASES[column])
    message = str(error.value)
    assert message.endswith(mode.refuses[column]), "the page has it to the end"
    assert column.split("(")[0] in message, "who refuses"
    assert any(word in message for word in ("Use ", "Pass ", "Set ", "List ", "Clip ", "call ")), "the way out"


@pytest.mark.parametrize(("mode", "column"), cells("silent"))
def test_falls_silent(mode: Mode, column: str, said) -> None:
    found = mode.check(mode, column) if mode.check else run(mode, CASES[column])
    assert len([line for line in said() if line.endswith(mode.silent[column]) and column.split("(")[0] in line]) == 1
    if found is None:
        return
    with different("it trains"):
        same_bits(weights(found.module), weights(mode.make()))
    assert not [tag for tag in found.rows.tags if "norm" in tag or "clip" in tag or "update" in tag]
    same_bits(weights(found.module), weights(run(mode, CASES[column], ours=[]).module))
