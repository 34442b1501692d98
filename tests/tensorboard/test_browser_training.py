"""From `Trainer.fit` to the picture: what was planted in a training run is what the "Gradients" tab shows."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from chromium import browser, executable
from helpers.tiny_modules import Tiny, fit
from lightning.pytorch.loggers import TensorBoardLogger
from tab import Tab, served
from torch import Tensor, nn

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS, SPIKE, NAN = 240, 150, 200
SPIKED, SICK, DEAD = "net.first.weight", "net.last.bias", "net.gone.weight"


class Net(nn.Module):
    """Four layers, one of which never learns: its output is multiplied by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gone, self.middle, self.last = (
            nn.Linear(4, 8),
            nn.Linear(4, 8, bias=False),
            nn.Linear(8, 8),
            nn.Linear(8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x) + 0.0 * self.gone(x)))))


class Planted(Tiny):
    """A spike in one tensor and a NaN in another, each at one step."""

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.AdamW, lr=1e-3), net=Net)
        names = dict(self.named_parameters())
        names[SPIKED].register_hook(self.at(SPIKE, lambda gradient: gradient * 1000.0))
        names[SICK].register_hook(self.at(NAN, lambda gradient: torch.full_like(gradient, math.nan)))

    def at(self, step: int, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            return change(gradient) if self.trainer.fit_loop.epoch_loop._batches_that_stepped == step else gradient

        return hook


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    torch.manual_seed(0)
    logs = tmp_path_factory.mktemp("logs")
    ours = [NonFiniteGuard("skip"), GradientClip(1.0), GradientMonitor(histograms=True)]
    logger = TensorBoardLogger(logs, name="", version="run")
    fit(Planted(), ours, max_steps=STEPS, logger=logger, log_every_n_steps=1)
    with served(logs) as address, browser(tmp_path_factory.mktemp("profile")) as page:
        yield Tab(page, address)


def alerts(tab: Tab, kind: str) -> list[str]:
    rows = "[...d.querySelectorAll('.alerts tbody tr')]"
    return tab.js(
        f"{rows}.filter((one) => one.querySelector('.word').textContent === '{kind}').map((one) => one.textContent)"
    )


def test_every_layer_has_a_row_and_nobody_complains(tab: Tab) -> None:
    tab.open()
    assert sorted(tab.rows) == sorted(dict(Planted().named_parameters()))
    assert tab.js("d.querySelectorAll('.norms canvas, .rates canvas, .lanes canvas').length") == 3
    assert tab.complaints() == []
    assert tab.foreign() == []


def test_the_planted_step_is_the_brightest_column(tab: Tab) -> None:
    row = tab.open().pixels(SPIKED)
    bright = max(range(len(row)), key=lambda x: row[x][0] + row[x][1])
    assert abs(bright - tab.x(SPIKE)) <= tab.x(1) + 1


def test_the_alerts_name_what_was_planted_and_lead_there(tab: Tab) -> None:
    tab.open()
    assert any(f"{SPIKE}▲spike" in text and SPIKED in text for text in alerts(tab, "spike"))
    assert any("net.gone" in text for text in alerts(tab, "dead"))
    assert any(SICK in text or "net.last" in text for text in alerts(tab, "non-finite"))
    assert alerts(tab, "skipped step")
    rows = tab.js("[...d.querySelectorAll('.alerts tbody tr')].map((one) => one.textContent)")
    place = next(i for i, text in enumerate(rows) if f"{SPIKE}▲spike" in text and SPIKED in text)
    tab.click(f".alerts tbody tr:nth-child({place + 1})")
    assert (tab.choice("layer"), tab.choice("step")) == (SPIKED, SPIKE)
    tab.until(f"d.querySelector('.drill h2').textContent === '{SPIKED}'")


def test_the_dead_layer_is_black_and_the_bad_step_magenta(tab: Tab) -> None:
    tab.open()
    assert set(tab.pixels(DEAD)) == {(0, 0, 0)}
    assert (255, 43, 214) in tab.pixels(SICK)


def test_the_monitor_speaks_and_the_histograms_are_there(tab: Tab) -> None:
    tab.open()
    assert len(tab.text(".summary .body")) > 40
    tab.until("d.querySelector('.drill').textContent.includes('are exactly zero')")
    assert not tab.js("d.querySelector('canvas.spread').hidden")


def test_a_hidden_tab_waits_with_its_reload_until_it_is_seen(tab: Tab) -> None:
    tab.open()
    page = tab.page
    page.run("location.hash = '#timeseries'")
    tab.until("w.innerHeight === 0")
    page.events.clear()
    page.run("document.querySelector('.reload-button').click()")
    page.run("new Promise((done) => setTimeout(done, 1500))")
    asked = [url for url in page.requests() if "plugin/lightning_calib/runs" in url]
    assert asked == []
    page.run("location.hash = '#lightning_calib'")
    tab.until("w.innerHeight > 0")
    page.run("new Promise((done) => setTimeout(done, 1000))")
    assert [url for url in page.requests() if "plugin/lightning_calib/runs" in url]
    assert len(tab.rows) == 7


def test_every_statistic_can_be_shown(tab: Tab) -> None:
    tab.open()
    for stat in ("before", "after", "kept", "ratio", "weight", "update", "peak"):
        tab.pick("stat", stat)
        assert len(tab.rows) == 7, stat
        said = tab.js(f"w.__calib.cell('{SPIKED}', {SPIKE})")
        assert float(said) > 0, stat
        assert (float(said) < 0.1) == (stat in ("kept", "ratio", "update")), (stat, said)
    assert tab.complaints() == []
