"""What the "Gradients" tab writes is whole: numbers of legends, the run's summary, and why something is missing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import browser, executable
from forged import metadata, put, repeated
from tab import Tab, served
from written import ABSENT_GLOBALS, GLOBAL_NAMES, NAMES, event, events, layers, norms, totals, whole, writer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS = 20
LONG = "a run with a name that is much longer than any legend of any chart has room for, version 12"
# As long as numbers become: three digits and an exponent of two.
NUMBERS = {
    "grad_norm_before": (1.23e-10, "1.23e-10"),
    "grad_norm_after": (4.56e-38, "4.56e-38"),
    "grad_norm_max": (0.00789, "0.00789"),
    "clip_threshold": (8.88e-20, "8.88e-20"),
    "lr": (2.46e-10, "2.46e-10"),
    "lr_effective": (2.22e-12, "2.22e-12"),
    "update_norm": (1.01e-11, "1.01e-11"),
    "loss_scale": (65536.0, "65500"),
    "update_ratio": (5.55e-13, "5.55e-13"),
}
CUT = """[...d.querySelectorAll('.legend b')].filter((one) => one.getClientRects().length).filter((one) => {
  const range = d.createRange();
  range.selectNodeContents(one);
  const text = range.getBoundingClientRect();
  return [one, one.closest('.item'), one.closest('.panel')].some((box) => {
    const { left, right } = box.getBoundingClientRect();
    return text.left < left - 0.01 || text.right > right + 0.01;
  });
}).map((one) => one.parentElement.textContent)"""


def small(step: int) -> torch.Tensor:
    return norms(NAMES, step, STEPS) * 1e-10


def write(logs: Path) -> None:
    known = torch.tensor([NUMBERS[name][0] if name in NUMBERS else ABSENT_GLOBALS[name] for name in GLOBAL_NAMES])
    for name in ("small", LONG):
        with writer(logs / name) as out:
            for step in range(STEPS):
                out.write([layers(NAMES, small(step)), totals(known)], step)
    with writer(logs / "two") as out:
        for step in range(STEPS):
            for k, kind in enumerate(("Adam", "SGD")):
                which = {"suffix": f"/{k}", "optimizer": k, "optimizer_name": kind}
                value = norms(NAMES[k::2], step, STEPS)
                out.write([layers(NAMES[k::2], value, **which), totals(whole(value, step, STEPS), **which)], step)
        said = [event(STEPS - 1, "summary", "Both optimizers did well."), event(3, "dead", "Alas.", NAMES[0])]
        out.write([events(said, suffix="/0", optimizer=0, optimizer_name="Adam")], STEPS)
    with writer(logs / "bad") as out:
        out.write([layers(NAMES, norms(NAMES, 3, STEPS)), events([event(3, "dead", "Alas.", NAMES[0])])], 3)
        put(out, "calib/globals", metadata("globals"), repeated(2**30), 3)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    logs = tmp_path_factory.mktemp("logs")
    write(logs)
    with served(logs) as address, browser(tmp_path_factory.mktemp("profile")) as page:
        yield Tab(page, address)


@pytest.mark.parametrize("width", [1280, 620])
def test_a_legend_shows_its_whole_number(tab: Tab, width: int) -> None:
    tab.page.size(width, 900)
    for chosen in ({}, {"compare": LONG}):
        tab.open(run="small", **chosen)
        tab.until("d.querySelectorAll('.drill .legend b').length > 1")
        shown = tab.js("[...d.querySelectorAll('.legend b')].map((one) => one.textContent)")
        assert {text for _, text in NUMBERS.values()} <= set(shown)
        assert max(map(len, shown)) == 8
        assert tab.js(CUT) == []
    labels = tab.js("[...d.querySelectorAll('.legend .item')].map((one) => one.textContent)")
    assert any(LONG in label for label in labels)
    tab.page.size(1280, 900)


def test_every_optimizer_shows_the_summary_of_the_run(tab: Tab) -> None:
    for optimizer, count in ((0, "1 alert"), (1, "0 alerts")):
        tab.open(run="two", optimizer=optimizer)
        assert tab.text(".summary .body") == "Both optimizers did well."
        assert tab.text(".summary .headline") == f"at step {STEPS - 1}"
        assert tab.text(".alerts .headline") == count  # events of one optimizer stay its own
    assert tab.complaints() == []
    tab.open(run="small")
    assert tab.text(".summary .body").startswith("Nothing yet")


def test_what_cannot_be_read_is_told_and_the_rest_is_shown(tab: Tab) -> None:
    tab.open(run="bad")
    assert tab.rows == list(NAMES)
    assert tab.js("d.querySelector('.norms').hidden")
    assert "Alas." in tab.text(".alerts tbody")
    shape = f"({len(GLOBAL_NAMES)},)"
    assert f"`calib/globals of run 'bad' at step 3` must be float32 of shape {shape}" in tab.text(".notice")
    assert not tab.js("d.querySelector('.notice').hidden")
    tab.open(run="two")
    assert tab.js("d.querySelector('.notice').hidden")
