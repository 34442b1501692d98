"""What README and docs show has run: every Python block, every docstring example, every link and tag."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import lightning_calib
from lightning_calib.tensorboard.contract import LOGGED

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}:{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]
MODULES = [found.name for found in walk_packages(lightning_calib.__path__, "lightning_calib.")]


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_say(name: str) -> None:
    assert doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_of_tags_has_every_scalar_as_the_package_describes_it() -> None:
    page = (ROOT / "docs" / "logged.md").read_text()
    table = page.split("| tag | what it is | how to read it |\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = [(f"`calib/{one.name}`", one.meaning, one.reading) for one in LOGGED]
    assert table.splitlines() == ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
