"""The site leaves nothing out: every page in a table of contents, every public name and method with its place."""

import re
from pathlib import Path

import pytest
from helpers.code_blocks import ROOT

import lightning_calib
from lightning_calib import callbacks, policies, schedules

DOCS = ROOT / "docs"
PUBLIC = set(lightning_calib.__all__)
FOLDERS = {one for part in (callbacks, policies, schedules) for one in vars(part)}
NO_METHODS = {"LearningRateRule", "Measurement"}  # what methods are made of


def listed(page: Path) -> set[Path]:
    """The pages in the tables of contents of a page."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.M | re.S)
    names = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    return {(page.parent / f"{name}.md").resolve() for name in names}


def test_every_page_is_in_a_table_of_contents() -> None:
    found, open_pages = set(), {DOCS / "index.md"}
    while open_pages:
        page = open_pages.pop()
        found.add(page)
        open_pages |= listed(page) - found
    assert found == set(DOCS.rglob("*.md"))


def test_every_public_name_has_one_place_in_the_reference() -> None:
    text = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    names = re.findall(r"^\.\. auto(?:class|exception|function|module):: (?:lightning_calib\.)?(\w+)$", text, re.M)
    assert sorted(names) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC & FOLDERS - NO_METHODS | {"MaxNorm", "refine_schedule"}))
def test_every_method_has_a_card(name: str) -> None:
    [card] = re.findall(
        rf"^\| `{name}` \| [^|]+ \| \[[^]]+\]\(([^)]+)\) \|$", (DOCS / "methods" / "index.md").read_text(), re.M
    )
    assert name in (DOCS / "methods" / card).read_text()


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_every_card_has_the_same_sections(page: Path) -> None:
    if page.name == "index.md":
        return
    sections = re.findall(r"^## (.+)$", page.read_text(), re.M)
    assert sections == [
        "What it does",
        "How to use",
        "Defaults and where each number comes from",
        "What is logged",
        "What is saved in the checkpoint",
        "Differs from the paper",
        "Known limits",
        "Cost",
        "References",
    ]
