"""The "Gradients" tab for every eye and every name: contrast, motion, long names, very many layers, NaN everywhere."""

import re
from collections.abc import Iterator

import pytest
import torch
from chromium import browser, executable
from tab import Tab, served
from written import GLOBAL_NAMES, event, events, layers, run, totals, writer

from lightning_calib.tensorboard.assets import FOLDER

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
MANY = 100_000
LONG = ["m" * 10_000 + ".weight", "<b>" + "n" * 10_000 + "</b>.bias"]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    logs = tmp_path_factory.mktemp("logs")
    with writer(logs / "many") as out:
        value = torch.rand(MANY, 5)
        for step in range(3):
            out.write([layers([f"blocks.{i // 100}.{i % 100}.weight" for i in range(MANY)], value)], step)
    with writer(logs / "long") as out:
        for step in range(30):
            bad = events([event(step, "nonfinite", f"NaN in {LONG[0]}", LONG[0])] if step == 20 else [])
            out.write([layers(LONG, torch.rand(2, 5)), totals(torch.rand(len(GLOBAL_NAMES))), bad], step)
    with writer(logs / "nans") as out:
        for step in range(30):
            nan = torch.full((2, 5), torch.nan)
            out.write([layers(["a.w", "b.w"], nan), totals(torch.full((len(GLOBAL_NAMES),), torch.nan))], step)
    run(logs / "plain", 60, every_hist=0)
    with served(logs) as address, browser(tmp_path_factory.mktemp("profile")) as page:
        yield Tab(page, address)


def colours(block: str) -> dict[str, str]:
    found = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6});", block))
    return {
        name: value if len(value) == 7 else "#" + "".join(2 * one for one in value[1:]) for name, value in found.items()
    }


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_their_ground(theme: str) -> None:
    light, dark = (FOLDER / "style.css").read_text().split("}", 2)[:2]
    found = colours(light) if theme == "light" else colours(light) | colours(dark)
    for word in ("ink", "muted", "accent", "act", "look", "fine"):
        for ground in ("panel", "bg", "field", "hover"):
            low, high = sorted(map(luminance, (found[word], found[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (word, ground)


def test_nothing_moves_for_those_who_asked_for_that(tab: Tab) -> None:
    moves = "w.getComputedStyle(d.querySelector('main')).transitionDuration"
    tab.open(run="plain")
    tab.js("d.querySelector('.page').setAttribute('aria-busy', 'true')")
    assert tab.js(moves) == "0.2s"
    tab.page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert tab.js(moves) == "0s"
    tab.page.send("Emulation.setEmulatedMedia", features=[])


@pytest.mark.slow
def test_very_many_layers_open_and_say_how_many_are_shown(tab: Tab) -> None:
    tab.open(run="many")
    rows = len(tab.rows)
    assert rows < 1500
    assert tab.text(".heat .headline") == f"{rows:,} rows for 100,000 tensors \u00d7 3 logged steps"
    assert tab.js("d.querySelectorAll('.row').length") < 120
    assert tab.complaints() == []


@pytest.mark.slow
def test_very_long_names_leave_the_page_as_it_is(tab: Tab) -> None:
    tab.open(run="long", layer=LONG[1])
    tab.until("!d.querySelector('.verdict').classList.contains('waiting')")
    tab.settle()
    assert tab.js("d.documentElement.scrollWidth <= d.documentElement.clientWidth")
    assert tab.js("d.querySelector('.verdict').getBoundingClientRect().height") < 300
    assert tab.js("d.querySelector('.drill h2').getBoundingClientRect().height") < 200
    assert tab.js("d.querySelectorAll('.page b b').length") == 0
    assert tab.complaints() == []


@pytest.mark.slow
def test_nan_everywhere_is_drawn_and_told(tab: Tab) -> None:
    tab.open(run="nans")
    tab.until("!d.querySelector('.verdict').classList.contains('waiting')")
    assert set(tab.pixels("a.w")) == {(255, 43, 214)}
    assert tab.js("d.querySelector('.norms .legend b').textContent") == "NaN"
    assert "nan" in tab.text(".verdict .sentence")
    assert tab.complaints() == []


def test_what_is_served_may_not_become_a_page_of_its_own(tab: Tab) -> None:
    policies = tab.js(
        "Promise.all(['index.js', 'style.css', 'runs', 'report?run=plain', 'runs/nothing'].map((name) =>"
        "w.fetch(`./plugin/lightning_calib/${name}`).then((one) => one.headers.get('content-security-policy'))))"
    )
    assert all("default-src 'none'" in policy for policy in policies), policies


def test_every_control_is_read_with_a_name_and_a_finding_by_keys_alone(tab: Tab) -> None:
    tab.open(run="plain")
    tab.until("d.querySelectorAll('.chip').length > 0")
    tab.page.press("Tab")
    tab.js("d.querySelector('.chip').focus()")
    tab.press("Enter")
    assert tab.choice("finding")
    assert tab.js("!d.querySelector('.finding').hidden")
    tree = tab.page.send("Accessibility.getFullAXTree", frameId=frame(tab))["nodes"]
    nameless = [
        one["role"]["value"]
        for one in tree
        if not one.get("ignored")
        and one["role"]["value"] in ("button", "combobox", "searchbox", "checkbox", "image", "img", "dialog", "region")
        and not one.get("name", {}).get("value")
    ]
    assert nameless == []


def frame(tab: Tab) -> str:
    frames = tab.page.send("Page.getFrameTree")["frameTree"]["childFrames"]
    return next(one["frame"]["id"] for one in frames if "lightning_calib" in one["frame"]["url"])


def test_the_panels_ask_no_server_but_through_the_data(tab: Tab) -> None:
    """So that a file can hold the same panels: only two scripts know how to ask."""
    asking = {path.name for path in FOLDER.glob("*.js") if re.search(r"\./api\.js|\bfetch\(", path.read_text())}
    assert asking == {"api.js", "data.js"}
