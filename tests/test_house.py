"""Which part may import which, what is public, and that nothing public lacks a sentence."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lightning_calib

PACKAGE = Path(lightning_calib.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Arrows point down: each part, and the parts and libraries that it may import besides itself.
MAY_IMPORT = {
    "functional": {"torch"},
    "policies": {"torch", "functional"},
    "schedules": {"torch", "functional", "policies"},
    "report": {"functional"},
    "steps": {"torch", "functional", "policies", "schedules"},
    "fit": {"torch", "lightning", "functional", "schedules", "steps"},
    "incidents": {"torch", "functional", "steps", "fit"},
    "dashboard": {"torch", "tensorboard", "functional", "report", "steps", "fit"},
    "tensorboard": {"numpy", "tensorboard", "werkzeug", "report"},
    "callbacks": {
        "torch",
        "lightning",
        "functional",
        "policies",
        "schedules",
        "report",
        "steps",
        "fit",
        "incidents",
        "dashboard",
    },
}
STANDARD = set(sys.stdlib_module_names)
PUBLIC = [name for name in lightning_calib.__all__ if name != "functional"]


def imports(path: Path) -> set[str]:
    """Top-level libraries and own parts that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [str(node.module)]
        for name in names:
            parts = name.split(".")
            own = parts[0] == "lightning_calib" and len(parts) > 1
            found.add(parts[1] if own else parts[0])
    return found - STANDARD


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0]
    if part == "__init__.py":
        return  # lazy: checked by test_nothing_is_loaded_before_it_is_asked_for
    assert imports(path) <= MAY_IMPORT[part] | {part}


def test_only_the_callbacks_say_lightning() -> None:
    saying = {path.relative_to(PACKAGE).parts[0] for path in MODULES if "lightning" in imports(path)}
    assert saying == {"callbacks"}


def test_no_file_is_called_utils_and_none_is_long() -> None:
    assert not [path for path in MODULES if "util" in path.name]
    assert [path for path in MODULES if len(path.read_text().splitlines()) > 300] == []


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import sys, lightning_calib; print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ZClipp'"):
        _ = lightning_calib.ZClipp  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    thing = getattr(lightning_calib, name)
    text = inspect.getdoc(thing) or ""
    assert name in dir(lightning_calib)
    assert text
    if isinstance(thing, type) and issubclass(thing, Exception):
        return
    assert ">>>" in text, f"{name}: no example"
    assert "Raises:" in text, f"{name}: no `Raises`"
    for argument in inspect.signature(thing).parameters:
        assert f"{argument}:" in text, f"{name}: `{argument}` is not explained"
    if import_module("lightning_calib.callbacks").__dict__.get(name) is thing:
        assert "Logged:" in text, f"{name}: no `Logged`"
        assert "Checkpoint:" in text, f"{name}: no `Checkpoint`"
