"""The report that is one file, in a browser: opened from the disk, the panels of the tab, and asking nobody."""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, browser, executable
from helpers.made_runs import column, grads, healthy
from tab import Tab, served
from written import NAMES, owner, run

from lightning_calib.cli import main
from lightning_calib.report import Report
from lightning_calib.report.bad_step import BadStep

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS = 60
HOSTILE = ("</script><img src=x onerror=alert(1)>.weight", "__proto__", "<b>" + "n" * 10_000, '"&lt;.\u2028\x01', "a.w")
PANELS = ("norms", "heat", "lanes", "drill", "alerts")


class File:
    """A page on the disk in a browser."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page, self.folder = page, folder

    def open(self, name: str, hash_: str = "") -> "File":
        self.page.events.clear()
        self.page.open((self.folder / name).as_uri() + hash_)
        self.page.until("window.__calib?.ready && !document.querySelector('[aria-busy=true]')")
        self.page.until("document.querySelector('.verdict .sentence').textContent.length > 40")
        return self

    def text(self, selector: str) -> str:
        return str(self.page.run(f"document.querySelector({selector!r}).textContent"))

    def click(self, selector: str) -> None:
        self.page.run(f"document.querySelector({selector!r}).click()")

    def saved(self, what: str) -> bytes:
        """What a button gives the reader to keep."""
        self.page.run(
            "(URL.createObjectURL = ((old) => (blob) => (window.__saved = blob, old.call(URL, blob)))"
            "(window.__old ??= URL.createObjectURL), window.__saved = null)"
        )
        self.click(f"[data-do={what}]")
        self.page.until("window.__saved !== null", 20)
        read = "new Promise((done) => { const r = new FileReader(); r.onload = () => done(r.result); "
        return base64.b64decode(self.page.run(f"{read} r.readAsDataURL(window.__saved); }})").partition(",")[2])

    def foreign(self) -> list[str]:
        return [url for url in self.page.requests() if not url.startswith(("file:", "data:", "about:", "blob:"))]


PIXELS = """async (text, places) => {
  const image = new Image();
  image.src = `data:image/png;base64,${text}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return places.map(([x, y]) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3));
}"""


def look(value: bytes) -> tuple[int, int]:
    """Width and height of a PNG."""
    assert value[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", value[16:24])


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    run(folder / "plain", STEPS)
    run(folder / "two & <b>", STEPS, optimizers=2, every_hist=0)
    return folder


@pytest.fixture(scope="module")
def folder(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    assert main(["report", str(logs), "--format", "html", "--output", str(folder / "files.html")]) == 0
    spiky = healthy("sgd")
    grads(spiky, "net.2.weight", 1 + 1000.0 * (spiky.layers.step == spiky.layers.step[30])[:])
    bad = (BadStep(int(spiky.layers.step[30]), "spike", "net.2.weight"),)
    Report([spiky._replace(bad_steps=bad)]).to_html(folder / "live.html")
    hostile = healthy("sgd", names=HOSTILE)
    for name in HOSTILE[:3]:
        column(hostile, "before", name)[:] = float("inf")
    Report([hostile]).to_html(folder / "hostile.html")
    Report([]).to_html(folder / "empty.html")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def file(page: Page, folder: Path) -> File:
    page.size(1280, 900)
    return File(page, folder)


def shown(look: Any, state: str) -> dict[str, Any]:
    """Words and colours of the panels that are drawn."""
    chosen = (
        ".verdict .sentence, .verdict .more, .chip, .panel:not(.drill) h2, .panel .headline, .panel .legend, "
        ".alerts td, .summary p"
    )
    asked = f"[...document.querySelectorAll('{chosen}')].map((one) => one.textContent), {state}"
    return look(f"[{asked}]")


def test_a_file_shows_what_the_tab_shows(file: File, logs: Path) -> None:
    cells = f"w.__calib.rows.map((row) => [row, w.__calib.cell(row.path, {STEPS // 2})]), w.__calib.steps.length"
    file.open("files.html", "#p.lightning_calib.run=plain")
    mine = shown(file.page.run, f"((w) => [{cells}])(window)")
    with served(logs) as address:
        tab = Tab(file.page, address).open(run="plain")
        tab.until("d.querySelectorAll('.chip').length > 0")
        tab.settle()
        its = tab.js(shown(lambda code: code.replace("document.", "d."), f"[{cells}]"))
    (words, (cells_, steps)), (its_words, (its_cells, its_steps)) = mine, its
    assert (words, steps) == (its_words, its_steps)
    assert len(words) > 20
    assert [row for row, _ in cells_] == [row for row, _ in its_cells]
    for (_, value), (_, its_value) in zip(cells_, its_cells, strict=True):
        try:
            assert float(value) == pytest.approx(float(its_value), rel=0.01)  # rounded by 0.4 %, then to three digits
        except ValueError:  # a word, such as "not logged"
            assert value == its_value


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1366, 768), (1920, 1080), (760, 900)], ids=str)
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_from_the_disk_at_every_size_and_asks_nobody(file: File, size: tuple[int, int], dark: bool) -> None:
    file.page.size(*size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    file.page.send("Emulation.setEmulatedMedia", features=scheme)
    for name in ("files.html", "live.html"):
        file.open(name)
        assert file.page.run("document.documentElement.classList.contains('dark')") == dark
        assert file.page.run("document.documentElement.scrollWidth <= innerWidth")
        top = file.page.run("document.querySelector('.verdict .sentence').getBoundingClientRect().top")
        assert top < 200
        assert "One file without a server" in file.text("footer.held")
        assert (file.page.complaints(), file.foreign()) == ([], [])
    file.page.send("Emulation.setEmulatedMedia", features=[])


@pytest.mark.slow
def test_a_layer_its_link_another_run_and_the_table(file: File) -> None:
    file.open("files.html", f"#p.lightning_calib.run=plain&p.lightning_calib.layer={owner(NAMES[5])}")
    file.page.until(f"document.querySelector('.drill h2').textContent === {owner(NAMES[5])!r}")
    file.page.until("document.querySelector('.drill .facts').textContent === '1 tensor.'")
    assert "Distributions are left out of this file" in file.text(".drill")
    assert file.saved("csv").decode().count("\r\n") == len(file.page.run("__calib.rows.filter((one) => !one.open)")) + 1
    file.click("[data-choice=run]")
    file.page.until("document.querySelectorAll('.run-name').length === 2")
    file.page.run("[...document.querySelectorAll('.run-name')].find((one) => one.textContent.includes('two')).click()")
    file.page.until("__calib.choices.run === 'two & <b>' && document.querySelector('h1').textContent.includes('two')")
    assert "run=two" in file.page.run("location.hash")
    file.open("files.html", "#p.lightning_calib.layer=nothing.there")
    assert file.page.complaints() == []


@pytest.mark.slow
def test_a_live_run_shows_its_spike_and_claims_nothing_that_it_has_not(file: File) -> None:
    file.open("live.html")
    assert "A guard found a spike" in file.text(".alerts")
    assert "so far" not in file.text(".norms")
    assert file.text(".drill .facts").startswith("7 tensors.")


def test_names_and_numbers_from_anywhere_are_inert(file: File) -> None:
    file.open("hostile.html")
    assert file.page.run("document.querySelectorAll('img, b b').length") == 0
    file.page.until("document.querySelector('.drill .facts').textContent.startsWith('5 tensors.')")
    assert {row["path"] for row in file.page.run("__calib.rows") if row["leaf"]} == set(HOSTILE)
    for name in ("all", "heat", "worst"):
        look(file.saved(f"png-{name}"))
    assert file.text(".notice") == ""
    assert (file.page.complaints(), file.foreign()) == ([], [])


@pytest.mark.slow
def test_without_a_row_the_words_are_the_page(file: File) -> None:
    file.page.events.clear()
    file.page.open((file.folder / "empty.html").as_uri())
    file.page.until("document.readyState === 'complete'")
    assert "No optimizer step has been seen yet." in file.text("body")
    assert file.page.complaints() == []


@pytest.mark.slow
def test_a_browser_that_cannot_unpack_says_so_beside_the_verdict(file: File) -> None:
    off = file.page.send("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    file.open("files.html")
    assert "This browser is too old" in file.text(".notice")
    file.page.send("Page.removeScriptToEvaluateOnNewDocument", identifier=off["identifier"])


@pytest.mark.parametrize("name", ["all", *PANELS])
def test_a_panel_and_the_page_are_saved_as_png(file: File, name: str) -> None:
    file.open("files.html", "#p.lightning_calib.run=plain")
    node = ".page" if name == "all" else f".panel.{name}"
    box = file.page.run(f"document.querySelector('{node}').getBoundingClientRect().toJSON()")
    picture = file.saved(f"png-{name}")
    width, height = look(picture)
    assert width == pytest.approx(2 * box["width"], abs=2)
    assert height == pytest.approx(2 * box["height"], abs=2)
    if name in ("all", "heat"):  # the colours of the layers lie where they lie on the page
        place = file.page.run("document.querySelector('[data-plot=heat]').getBoundingClientRect().toJSON()")
        at = [(place["x"] - box["x"] + x, place["y"] - box["y"] + 30) for x in range(5, int(place["width"]) - 5, 7)]
        found = file.page.run(f"({PIXELS})('{base64.b64encode(picture).decode()}', {[[2 * x, 2 * y] for x, y in at]})")
        canvas = "document.querySelector('[data-plot=heat]')"
        drawn = [[x - place["x"] + box["x"], y - place["y"] + box["y"]] for x, y in at]
        its = file.page.run(
            f"{drawn}.map(([x, y]) => [...{canvas}.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3))"
        )
        near = [
            max(abs(one - other) for one, other in zip(*pair, strict=True)) <= 40
            for pair in zip(found, its, strict=True)
        ]
        assert sum(near) > 0.9 * len(near)  # at an edge the picture, which is twice as large, may mix two


def test_a_picture_that_cannot_be_drawn_is_told(file: File) -> None:
    file.open("files.html")
    refuse = "HTMLCanvasElement.prototype.toBlob"
    file.page.run(f"{refuse} = () => {{ throw new Error('Tainted canvases may not be exported.') }}, 0")
    file.click("[data-do=png-norms]")
    file.page.until("document.querySelector('.notice').textContent === 'No PNG: Tainted canvases may not be exported.'")
    file.page.run(f"{refuse} = (done) => done(null), 0")
    file.click("[data-do=png-norms]")
    file.page.until("document.querySelector('.notice').textContent.startsWith('No PNG: this browser cannot draw')")


@pytest.mark.slow
def test_the_tab_saves_pictures_as_well(file: File, logs: Path) -> None:
    with served(logs) as address:
        tab = Tab(file.page, address).open(run="plain")
        tab.js("(w.URL.createObjectURL = (blob) => (w.__saved = blob, 'data:,'), 0)")
        tab.js("d.querySelector('[data-do=png-norms]').click()")
        tab.until("w.__saved?.type === 'image/png' && w.__saved.size > 5000")
        assert tab.text(".notice") == ""
        assert (tab.complaints(), tab.foreign()) == ([], [])
