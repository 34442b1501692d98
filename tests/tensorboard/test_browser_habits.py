"""The "Gradients" tab in company: links, keys, dark mode, other runs, hostile names, reloads, and nothing to show."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, browser, executable
from tab import Tab, served
from written import NAMES, norms, odd_names, run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS = 120
SPIKED = NAMES[len(NAMES) // 3]
HOSTILE = ["<img src=x onerror=alert(1)>.weight", '"><script>alert(2)</script>.bias', "=1+1.weight", *odd_names()]
BAD_RUN = "<img src=x onerror=alert(3)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def tab(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    logs = tmp_path_factory.mktemp("logs")
    run(logs / "plain", STEPS)
    run(logs / "other", STEPS - 20, every_hist=0)
    run(logs / "two", STEPS, optimizers=2)
    run(logs / BAD_RUN.replace("/", "_"), 30, HOSTILE, every_hist=0)
    with served(logs) as address:
        yield Tab(page, address)


def luminance(colour: str) -> float:
    red, green, blue = (float(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


def test_dark_mode_is_dark_and_follows_the_switch(tab: Tab) -> None:
    def colours() -> tuple[float, float]:
        style = "w.getComputedStyle(d.querySelector('.panel'))"
        return luminance(tab.js(f"{style}.backgroundColor")), luminance(tab.js(f"{style}.color"))

    tab.open(True, run="plain")
    ground, ink = colours()
    assert ground < 0.25 < 0.8 < ink
    tab.page.run("document.body.classList.remove('dark-mode')")
    tab.until("!d.documentElement.classList.contains('dark')")
    ground, ink = colours()
    assert ink < 0.25 < 0.9 < ground
    assert tab.complaints() == []


def test_a_link_restores_what_its_sender_saw(tab: Tab) -> None:
    chosen = {"run": "plain", "stat": "ratio", "layer": SPIKED, "step": 60, "filter": "encoder", "sort": "anomaly"}
    tab.open(**chosen, zoom="20-100", compare="other")
    assert {name: tab.choice(name) for name in chosen} == chosen
    assert tab.choice("zoom") == [20, 100]
    tab.until(f"d.querySelector('.drill h2').textContent === '{SPIKED}'")
    assert tab.text(".runs-button .text") == "plain"
    assert tab.js("[...d.querySelectorAll('[data-over]')].map((one) => one.dataset.over)") == ["other"]
    assert "in common with “other”" in tab.text(".heat .headline")
    tab.pick("stat", "weight")
    assert "p.lightning_calib.stat=weight" in tab.page.run("location.hash")
    assert "p.lightning_calib.zoom=20-100" in tab.page.run("location.hash")


def test_a_link_to_a_run_that_is_gone_says_so(tab: Tab) -> None:
    tab.open(run="gone")
    assert tab.text(".notice").startswith("There is no run “gone” here.")
    assert tab.rows


def test_keys_move_the_crosshair_and_zoom(tab: Tab) -> None:
    tab.open(run="plain", step=50)
    tab.js("d.querySelector('.stack').focus()")
    tab.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert tab.choice("step") == 51
    tab.page.press("ArrowRight", modifiers=8)
    tab.settle()
    assert tab.choice("step") == 61
    tab.press("+")
    first, last = tab.choice("zoom")
    assert 0 < first < 61 < last < STEPS - 1
    tab.press("Escape")
    assert (tab.choice("zoom"), tab.choice("step")) == (None, None)


def test_keys_walk_the_layers(tab: Tab) -> None:
    tab.open(run="plain", depth=0)
    tab.page.press("Tab")  # into the frame: from here on the keyboard alone
    tab.js("d.querySelector('.labels').focus()")
    tab.press("ArrowDown", "Enter")
    assert tab.choice("layer") == "encoder"
    assert tab.rows == ["embed.weight", *(f"encoder.{i}" for i in range(3)), "head"]
    tab.press("ArrowDown", "ArrowDown", "ArrowRight")
    assert "encoder.1.attn" in tab.rows
    tab.press("ArrowLeft")
    assert "encoder.1.attn" not in tab.rows
    active = tab.js("d.getElementById(d.activeElement.getAttribute('aria-activedescendant')).dataset.path")
    assert active == "encoder.1"
    assert tab.js("d.querySelectorAll('[role=row][aria-level][aria-selected]').length") == 6


def test_everything_can_be_reached_and_has_a_name(tab: Tab) -> None:
    tab.open(run="plain")
    nameless = tab.js(
        "[...d.querySelectorAll('button, select, input, [tabindex], canvas[role]')].filter((one) => !one.hidden && "
        "!one.ariaLabel && !one.title && !one.textContent.trim() && !one.closest('label')).map((one) => one.outerHTML)"
    )
    assert nameless == []
    tab.page.press("Tab")
    seen = set()
    for _ in range(32):
        tab.page.press("Tab")
        seen.add(tab.js("(d.activeElement.dataset.choice || d.activeElement.dataset.do || d.activeElement.className)"))
    assert {"run", "csv", "stack", "stat", "sort", "filter", "labels"} <= {str(name) for name in seen}


def test_names_are_inert(tab: Tab) -> None:
    tab.page.send("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.hurt = true; };")
    tab.open(run=BAD_RUN.replace("/", "_"))
    assert tab.rows == HOSTILE
    for name in HOSTILE[:2]:
        tab.open(run=BAD_RUN, layer=name)
        tab.until(f"d.querySelector('.drill h2').textContent === {json.dumps(name)}")
    tab.click("[data-plot=heat]", 50, 30)
    assert tab.js("d.querySelectorAll('img, .page script').length") == 0
    assert tab.js("w.hurt || w.parent.hurt || false") is False
    assert '"\'=1+1.weight",' in tab.js("w.__calib.csv()")  # no formula in a spreadsheet
    assert tab.complaints() == []
    assert tab.foreign() == []


def test_comparison_shows_ratios_on_common_steps(tab: Tab) -> None:
    tab.open(run="plain", compare="other")
    assert tab.js("w.__calib.steps.length") == STEPS - 20
    step, row = 30, 5
    ours, theirs = norms(NAMES, step, STEPS)[row, 0], norms(NAMES, step, STEPS - 20)[row, 0]
    said = tab.js(f"w.__calib.cell('{NAMES[row]}', {step})")
    assert said == f"\u00d7{float(f'{float(ours / theirs):.3g}'):g} of the other run"
    assert "multiple of “other”" in tab.text(".colourbar .unit")


def test_the_export_holds_what_is_on_show(tab: Tab) -> None:
    tab.open(run="plain", filter="head", zoom="30-60")
    table = list(csv.reader(io.StringIO(tab.js("w.__calib.csv()"))))
    assert table[0] == ["layer", *map(str, range(30, 61))]
    assert [line[0] for line in table[1:]] == ["head.weight", "head.bias"]
    assert set(table[2][1:]) == {"0"}
    wanted = [float(norms(NAMES, step, STEPS)[-2, 0]) for step in range(30, 61)]
    assert [float(cell) for cell in table[1][1:]] == pytest.approx(wanted, rel=1e-5)  # six digits


def test_the_export_is_a_file(tab: Tab, tmp_path: Path) -> None:
    tab.page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.open(run="plain", filter="head", zoom="30-60")
    tab.click("[data-do=csv]")
    tab.until("true")
    file = tmp_path / "gradients-plain-before.csv"
    for _ in range(100):
        if file.exists():
            break
        tab.js("new Promise((done) => setTimeout(done, 50))")
    assert file.read_text().startswith("layer,30,31,")
    assert tab.complaints() == []


def test_each_optimizer_has_its_own_layers(tab: Tab) -> None:
    tab.open(run="two")
    assert tab.rows == list(NAMES[::2])
    tab.pick("optimizer", "1")
    tab.until("w.__calib.rows.length && d.querySelector('.status').textContent.startsWith('SGD')")
    assert tab.rows == list(NAMES[1::2])


def test_without_histograms_it_says_what_draws_them(tab: Tab) -> None:
    tab.open(run="other")
    tab.until("d.querySelector('.drill').textContent.includes('GradientMonitor(histograms=True)')")
    assert tab.js("d.querySelector('canvas.spread').hidden")
    tab.open(run="plain")
    tab.until("!d.querySelector('canvas.spread').hidden")
