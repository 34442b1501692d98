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
ENGINE = {"torch", "functional", "policies", "schedules", "steps"}
MAY_IMPORT = {
    "functional": {"torch"},
    "policies": {"torch", "functional"},
    "schedules": {"torch", "functional", "policies"},
    "report": {"numpy"},
    "tensorboard": {"numpy", "tensorboard", "werkzeug", "report"},
    "steps": ENGINE,
    "fit": ENGINE | {"lightning", "numpy", "report"},
    "incidents": ENGINE,
    "dashboard": ENGINE | {"tensorboard", "report"},
    "commands": {"report", "tensorboard"},
    "cli.py": {"commands", "report", "tensorboard", "schedules", "doctor"},
    "doctor.py": set(),
    "__main__.py": {"cli"},
    "callbacks": ENGINE | {"lightning", "report", "fit", "incidents", "dashboard"},
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


def test_only_two_parts_say_lightning() -> None:
    saying = {path.relative_to(PACKAGE).parts[0] for path in MODULES if "lightning" in imports(path)}
    assert saying == {"callbacks", "fit"}


def test_of_tensorboards_part_dashboard_knows_the_contract_only() -> None:
    known = {module for path in (PACKAGE / "dashboard").glob("*.py") for module in modules(path)}
    assert {one for one in known if one.startswith("lightning_calib.tensorboard")} == {
        "lightning_calib.tensorboard.contract"
    }


def modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            inside = {f"{module}.{alias.name}" for alias in node.names}
            found |= (inside & KNOWN) or {module}
    return {module for module in found if module.startswith("lightning_calib.")}


def name_of(path: Path) -> str:
    parts = ("lightning_calib", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {name_of(path) for path in MODULES}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself; empty without one."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        found = next((one for after in graph.get(module, ()) if (one := visit(after, [*way, module]))), [])
        done.add(module)
        return found

    return next((found for module in graph if (found := visit(module, []))), [])


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name_of(path): modules(path) for path in MODULES if path != PACKAGE / "__init__.py"}
    assert circle(graph) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_import_within_the_package_is_for_types_alone() -> None:
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                inner = [one for one in ast.walk(node) if isinstance(one, (ast.Import, ast.ImportFrom))]
                found += [path for one in inner if "lightning_calib" in ast.dump(one)]
    assert set(found) == {PACKAGE / "__init__.py"}


def test_the_two_lists_of_public_names_are_equal() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    homes = {name: f"lightning_calib.{home}" for name, home in lightning_calib._HOME_OF.items()}
    assert typed == homes | {"functional": "lightning_calib"}


def test_a_public_name_is_listed_in_one_other_place() -> None:
    listed = [
        alias.name
        for path in MODULES
        if path.name == "__init__.py" and path.parent != PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(listed) == sorted(set(listed))
    homes_are_files = {"NonFiniteGradientError", "SpikeError", "read_events", "clip_find", "ClipSuggestion"}
    assert set(listed) >= set(PUBLIC) - homes_are_files


def test_no_file_is_called_utils_and_none_is_long() -> None:
    assert not [path for path in MODULES if "util" in path.name]
    assert [path for path in MODULES if len(path.read_text().splitlines()) > 250] == []


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
    assert "Raises:" in text or issubclass(thing, tuple), f"{name}: no `Raises`"  # a record refuses nothing
    for argument in inspect.signature(thing).parameters:
        assert f"{argument}:" in text, f"{name}: `{argument}` is not explained"
    if import_module("lightning_calib.callbacks").__dict__.get(name) is thing:
        assert "Logged:" in text, f"{name}: no `Logged`"
        assert "Checkpoint:" in text, f"{name}: no `Checkpoint`"
