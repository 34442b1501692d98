"""Policies that were judged and never applied, in the tab: their table, and their thresholds above the norms."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from chromium import browser, executable
from tab import Tab, served, shown
from written import ABSENT, NAMES, layers, norms, run, shadows, totals, whole, writer

from lightning_calib.cli import main

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS = 120
FAR = 1e6  # a threshold far above every norm, so that its line alone moves the axis
JUDGED = ("AGC()", "MaxNorm(1e6)", "ZScore()", "<b>bold</b>")
PICTURE = "d.querySelector('[data-plot=norms]').toDataURL()"


def judged(folder: Path, names: Sequence[str], optimizers: int = 1, steps: int = STEPS) -> None:
    """The last optimizer has shadows: the first two are there from the start, the third after its warm-up."""
    with writer(folder) as out:
        for step in range(steps):
            records = []
            for k in range(optimizers):
                which = {"suffix": f"/{k}" if optimizers > 1 else "", "optimizer": k}
                value = norms(NAMES[k::optimizers], 3, steps)
                records += [layers(NAMES[k::optimizers], value, **which), totals(whole(value, 3, steps), **which)]
            row = [0.25, 0.9, 0.5, FAR, 0.95, 0.75, 0.25, step + 1.0]
            value = torch.tensor([row] * len(names))
            value[2:, 3] = 2.5 if step >= 30 else ABSENT
            value[0, 5] = ABSENT
            out.write([*records, shadows(names, value, **which)], step)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    judged(logs / "judged", JUDGED)
    judged(logs / "two", JUDGED[:3], optimizers=2)
    judged(logs / "many", [f"MaxNorm({i}.5)" for i in range(200)], steps=30)
    run(logs / "plain", STEPS, every_hist=0)
    return logs


@pytest.fixture(scope="module")
def tab(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with served(logs) as address, browser(tmp_path_factory.mktemp("profile")) as page:
        yield Tab(page, address)


def cells(tab: Tab, name: str) -> list[str]:
    row = f"[...d.querySelectorAll('.shadows tbody')].find((one) => one.dataset.shadow === {json.dumps(name)})"
    return tab.js(f"[...{row}.querySelectorAll('th, td')].map((one) => one.textContent)")


def lines(tab: Tab) -> str:
    return str(tab.js("d.querySelector('[data-plot=norms]').ariaLabel"))


def test_a_run_without_shadows_shows_nothing_of_them(tab: Tab) -> None:
    shown(tab, run="plain", shadows="ZScore()")
    assert tab.js("d.querySelector('.shadows').hidden")
    assert tab.js("d.querySelector('[data-do=shadows]').hidden")
    assert "not applied" not in lines(tab)
    assert tab.complaints() == []


def test_what_each_would_have_done_stands_in_a_table(tab: Tab) -> None:
    shown(tab, run="judged")
    assert not tab.js("d.querySelector('.shadows').hidden")
    assert cells(tab, "ZScore()") == ["ZScore()", "25 %", "0.9", "2.5", "95 %", "75 %"]
    assert cells(tab, "AGC()") == ["AGC()by layer", "25 %", "0.9", "1e6", "95 %", "\u2013"]
    assert "had one of them acted" in tab.text(".shadows .how")
    assert tab.js("d.querySelector('.shadows b')") is None  # names are inert
    assert tab.complaints() == []


def test_no_line_is_drawn_until_one_is_asked_for(tab: Tab) -> None:
    shown(tab, run="judged")
    assert "not applied" not in lines(tab)
    before = tab.js(PICTURE)
    tab.click("[data-shadow='MaxNorm(1e6)'] input")
    assert "MaxNorm(1e6), not applied" in lines(tab)
    assert "MaxNorm(1e6), not applied" in tab.text(".norms .legend")
    assert tab.js(PICTURE) != before
    assert tab.choice("shadows") == "MaxNorm(1e6)"
    tab.click("[data-shadow='MaxNorm(1e6)'] input")
    assert tab.js(PICTURE) == before
    assert tab.choice("shadows") == ""


def test_a_link_restores_the_lines_of_its_sender(tab: Tab) -> None:
    shown(tab, run="judged")
    tab.click("[data-shadow='ZScore()'] input")
    tab.click("[data-shadow='<b>bold</b>'] input")
    link, before = tab.page.run("decodeURIComponent(location.hash)"), tab.js(PICTURE)
    shown(tab, run="plain")
    shown(tab, run="judged", shadows="ZScore()\n<b>bold</b>")
    assert tab.page.run("decodeURIComponent(location.hash)") == link
    assert tab.js(PICTURE) == before
    assert tab.js("[...d.querySelectorAll('.shadows input')].map((one) => one.checked)") == [False, False, True, True]


def test_the_switch_beside_the_chart_turns_all_on_and_off(tab: Tab) -> None:
    shown(tab, run="judged")
    button = "d.querySelector('[data-do=shadows]')"
    assert tab.text("[data-do=shadows]") == "4 shadows"
    assert tab.js(f"{button}.getAttribute('aria-pressed')") == "false"
    tab.click("[data-do=shadows]")
    assert tab.js(f"{button}.getAttribute('aria-pressed')") == "true"
    assert all(f"{name}, not applied" in lines(tab) for name in JUDGED)
    tab.click("[data-do=shadows]")
    assert "not applied" not in lines(tab)


def test_keys_alone_switch_a_line(tab: Tab) -> None:
    shown(tab, run="judged")
    tab.js("d.querySelector('.shadows input').focus()")
    tab.press(" ")
    assert tab.choice("shadows") == "AGC()"
    tab.press("Tab", " ")
    assert tab.choice("shadows") == "AGC()\nMaxNorm(1e6)"
    named = tab.js("[...d.querySelectorAll('.shadows input')].map((one) => one.labels[0].textContent)")
    assert named == ["AGC()", *JUDGED[1:]]


def test_only_the_optimizer_on_show_has_its_shadows(tab: Tab) -> None:
    shown(tab, run="two", optimizer=1, shadows="ZScore()")
    assert "ZScore(), not applied" in lines(tab)
    tab.pick("optimizer", "0")
    assert tab.js("d.querySelector('.shadows').hidden")
    assert "not applied" not in lines(tab)


def test_of_very_many_a_page_shows_some_and_says_how_many(tab: Tab) -> None:
    shown(tab, run="many")
    assert tab.js("d.querySelectorAll('.shadows tbody').length") == 32
    assert "first 32 of 200" in tab.text(".shadows .headline")
    assert tab.js("d.documentElement.scrollWidth <= d.documentElement.clientWidth")


def test_a_report_as_a_file_has_them_as_well(tab: Tab, logs: Path, tmp_path: Path) -> None:
    page, file = tab.page, tmp_path / "run.html"
    assert main(["report", str(logs / "judged"), "--format", "html", "--output", str(file)]) == 0
    page.open(file.as_uri())
    label = "document.querySelector('[data-plot=norms]').ariaLabel"
    page.until("document.querySelectorAll('.shadows tbody').length === 4")
    assert "not applied" not in page.run(label)
    page.run("document.querySelector(`[data-shadow='ZScore()'] input`).click()")
    page.until(f"{label}.includes('ZScore(), not applied')")
    assert main(["report", str(logs / "plain"), "--format", "html", "--output", str(file)]) == 0
    page.open(file.as_uri())
    page.until("document.querySelector('.verdict .sentence')?.textContent.length > 40")
    assert page.run("document.querySelector('.shadows').hidden")


@pytest.mark.parametrize("width", [1366, 760, 480])
def test_nothing_of_them_is_cut_at_any_width(tab: Tab, width: int) -> None:
    tab.page.size(width, 900)
    try:
        shown(tab, run="judged", shadows="\n".join(JUDGED))
        asked = "'.norms .legend .item, .norms .tools *, .shadows td, .shadows th'"
        cut = tab.js(
            f"[...d.querySelectorAll({asked})].filter((one) => one.getClientRects().length"
            " && (one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0"
            " || one.getBoundingClientRect().right > w.innerWidth)).map((one) => one.outerHTML.slice(0, 120))"
        )
        assert cut == []
    finally:
        tab.page.size(1280, 900)
