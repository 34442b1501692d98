"""The front end's files, without a browser: small, connected, and free of what a name could turn into code."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from lightning_calib.report.codes import CODES
from lightning_calib.tensorboard.assets import FOLDER

FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
# Ways in which a text becomes markup or code, and ways out of the origin.
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|new Function"
    r"|new Worker|https?://(?!www\.w3\.org/2000/svg\"; // the name)|\bon[a-z]+=|javascript:|@import"
)


def imported(script: Path) -> set[str]:
    """The files that a script imports or exports from, by name or as a whole, at the start or when it needs them."""
    return set(re.findall(r"""\b(?:from|import)\s*\(?\s*["'`]\./([\w.]+)["'`]""", script.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_short_and_free_of_markup_from_text(path) -> None:
    text = path.read_text()
    assert 5 < len(text.splitlines()) <= 250
    assert max(map(len, text.splitlines())) <= 120
    assert FORBIDDEN.findall(text) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_is_and_imports_what_is_there(path) -> None:
    text = path.read_text()
    assert text.startswith("// ") or path.name == "tree.js"
    for names, file in re.findall(r"import \{([^}]*)\} from \"\./([\w.]+)\"", text):
        exported = (FOLDER / file).read_text()
        for name in re.findall(r"\w+", names):
            assert re.search(rf"export (?:async )?(?:function\*? |const |class |\{{ ?){name}\b", exported), (file, name)
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is not used"


def test_every_script_is_reached_from_the_tab_or_the_page() -> None:
    reached, waiting = set(), ["index.js", "page.js"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += imported(FOLDER / name) - reached
    assert reached == {path.name for path in SCRIPTS}


def test_no_scripts_import_each_other_in_a_circle() -> None:
    imports = {path.name: imported(path) for path in SCRIPTS}
    assert imports["toolbar.js"], "imports are found"
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_first_exports_what_tensorboard_calls() -> None:
    text = (FOLDER / "index.js").read_text()
    assert "export async function render()" in text
    for name in re.findall(r"\[((?:\"\w+\",? ?)+)\]\.map\(styleSheet\)", text)[0].replace('"', "").split(", "):
        assert (FOLDER / f"{name}.css").exists()


def test_what_a_finding_means_is_said_as_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    wanted = {}
    for code, section in re.findall(r"^## ([a-z-]+)\n(.*?)(?=^## )", page, re.M | re.S):
        text = " ".join(re.search(r"\*\*What it means\.\*\* (.*?)(?=\n\n)", section, re.S)[1].split())
        wanted[code] = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`|\*\*", "", text))
    script = (FOLDER / "meanings.js").read_text()
    texts = re.findall(r'^  "?([a-z-]+)"?:\s+((?:"(?:[^"\\]|\\.)*"[ +\n]*)+),$', script, re.M)
    found = {code: "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', text)).replace('\\"', '"') for code, text in texts}
    assert set(found) == set(CODES)
    assert found == wanted


def test_the_kinds_of_events_are_those_of_the_contract() -> None:
    from lightning_calib.tensorboard.contract import EVENT_KINDS, STATISTICS

    kinds = set(re.findall(r'key: "(\w+)"', (FOLDER / "kinds.js").read_text()))
    assert kinds == {*EVENT_KINDS, "clip"} - {"summary"}
    parts = set(
        re.findall(r'"(\w+)"', " ".join(re.findall(r"parts: \[(.*?)\]", (FOLDER / "statistics.js").read_text())))
    )
    assert parts == set(STATISTICS)
