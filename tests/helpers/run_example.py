"""The files of examples/ as modules, and how each of them must refuse what it cannot use."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """A file of examples/, imported as a script there would import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module(name)


def refused(module: ModuleType, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Status 2, nothing but one line on stderr: that line."""
    with pytest.raises(SystemExit) as stopped:
        module.main(arguments)
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err
