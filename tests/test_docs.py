"""What README and docs show has run: every block of code, every docstring example, every link and tag."""

import doctest
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages

import pytest
import yaml
from helpers.code_blocks import PAGES, ROOT, RUN, SHOWN, Block, blocks, programs
from helpers.shown_setting import given

import lightning_calib
from lightning_calib.tensorboard.contract import LOGGED

MODULES = [found.name for found in walk_packages(lightning_calib.__path__, "lightning_calib.")]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}:{block.language}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page))
]
PROGRAMS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}:{i}")
    for page in PAGES
    if page.name != "tutorial.md"  # test_tutorial.py runs it
    for i, code in enumerate(programs(page))
]
SIDES = [
    pytest.param(one.values[0], sign, id=f"{one.id}{sign}")
    for one in BLOCKS
    if one.values[0].language == "diff"
    for sign in "-+"
]


def skip_where_it_cannot_run(block: Block, sign: str) -> None:
    what, _, packages = block.remark.partition("needs: ")
    missing = [name for name in packages.split(", ") if name and find_spec(name) is None]
    if block.remark.startswith("not run: ") or (missing and (sign == "-" or what == "")):
        pytest.skip(block.remark)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_or_is_no_code_or_says_why_not(block: Block) -> None:
    assert block.language in RUN | SHOWN or block.remark.startswith("not run: ")


@pytest.mark.parametrize("code", PROGRAMS)
def test_a_program_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize(("block", "sign"), SIDES)
def test_both_sides_of_a_diff_run(block: Block, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_where_it_cannot_run(block, sign)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.side(sign), "block", "exec"), given())


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.values[0].language == "yaml"])
def test_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.code)


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
