"""The "Gradients" tab over log directories that grow, lack something, are large, or whose server is gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, browser, executable
from tab import Tab, served
from written import NAMES, append, event, events, layers, norms, run, writer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS = 120
SPIKED = NAMES[len(NAMES) // 3]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def reload(tab: Tab, reached: str) -> None:
    """Press TensorBoard's own button until the data server has read what was written."""
    for _ in range(30):
        tab.page.run("document.querySelector('.reload-button').click()")
        tab.js("new Promise((done) => setTimeout(done, 500))")
        if tab.js(reached):
            return
    raise AssertionError(f"not reached: {reached}")


@pytest.mark.slow
def test_reload_keeps_the_choices(page: Page, tmp_path: Path) -> None:
    run(tmp_path / "logs" / "finished", 20, every_hist=0)
    with writer(tmp_path / "logs" / "going on") as out, served(tmp_path / "logs") as address:
        tab = Tab(page, address).open(run="finished")
        append(out, range(40), steps=STEPS)
        out.experiment.flush()
        reload(tab, "d.querySelector('[data-choice=run]').textContent.includes('2 runs')")
        tab = Tab(page, address).open(run="going on", layer=SPIKED, filter="encoder")
        assert tab.js("w.__calib.steps.length") == 40
        append(out, range(40, 70), steps=STEPS)
        out.experiment.flush()
        reload(tab, "w.__calib.steps.length === 70")
        assert (tab.choice("layer"), tab.choice("filter")) == (SPIKED, "encoder")


def test_below_a_prefix_and_with_the_python_loader(page: Page, tmp_path: Path) -> None:
    run(tmp_path / "logs", 60)
    with served(tmp_path / "logs", "--load_fast=false", prefix="/pre/fix") as address:
        tab = Tab(page, address).open()
        assert tab.rows == list(NAMES)
        assert tab.js("w.__calib.steps.length") == 60
        assert tab.complaints() == []
        assert tab.foreign() == []


def test_nothing_to_show_and_nobody_there(page: Page, tmp_path: Path) -> None:
    with served(tmp_path) as address:
        page.open(f"{address}data/plugin_entry.html?name=lightning_calib")
        code = page.until("document.querySelector('pre') && document.querySelector('pre').textContent")
    assert "GradientMonitor()" in code
    assert len(code.splitlines()) <= 5


def test_an_error_is_told_in_plain_words(page: Page, tmp_path: Path) -> None:
    run(tmp_path, 30)
    with served(tmp_path) as address:
        tab = Tab(page, address).open()
    tab.js("(d.querySelector('[data-choice=stat]').value = 'weight', "
           "d.querySelector('[data-choice=stat]').dispatchEvent(new Event('change')))")  # fmt: skip
    tab.until("!d.querySelector('.notice').hidden")
    wanted = "Could not load the gradients. TensorBoard does not answer. Is it still running?"
    assert tab.text(".notice") == wanted
    assert tab.rows  # what was there stays


def test_a_thousand_layers_at_a_thousand_steps(page: Page, tmp_path: Path) -> None:
    names = [f"blocks.{i}.{part}.weight" for i in range(100) for part in "abcdefghij"]
    run(tmp_path, 1000, names, every_hist=0)
    with served(tmp_path) as address:
        tab = Tab(page, address).open()
        assert tab.rows == [f"blocks.{i}" for i in range(100)]
        times = tab.js("w.__calib.timings")
        assert times["load"] < 3000  # ms; 300 to 700 were measured
        tab.click("[data-do=deeper]")
        tab.click("[data-do=fit]")
        assert tab.rows == names
        assert tab.js("d.querySelectorAll('.row').length") < 120  # only what is in view
        assert tab.js("w.__calib.timings.paint") < 100  # ms; about 25 were measured


def test_a_run_with_less_shows_what_there_is(page: Page, tmp_path: Path) -> None:
    with writer(tmp_path / "layers alone") as out:
        out.write([layers(NAMES, norms(NAMES, 3, STEPS))], 3)
    with writer(tmp_path / "an event alone") as out:
        out.write([events([event(7, "unheard of", "something new", "net.x")])], 7)
    with served(tmp_path) as address:
        tab = Tab(page, address).open(run="layers alone")
        assert tab.rows == list(NAMES)
        assert tab.js("w.__calib.axis.width") > 500
        assert tab.js("d.querySelector('.norms').hidden")
        tab.open(run="an event alone")
        assert "unheard of" in tab.text(".alerts tbody")
        assert tab.js("d.querySelector('.heat').hidden")
        assert tab.complaints() == []
