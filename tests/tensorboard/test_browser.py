"""What a person sees in the "Gradients" tab: a real TensorBoard, a real Chromium."""

import math
from collections.abc import Iterator

import pytest
from chromium import browser, executable
from tab import Tab, served
from written import CLIP, NAMES, norms, owner, run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS = 300
SPIKE, NAN = STEPS // 2, 2 * STEPS // 3
SPIKED, SICK, DEAD, LATE = NAMES[len(NAMES) // 3], NAMES[1], NAMES[-1], NAMES[0]
MAGENTA, BLACK, GREY = (255, 43, 214), (0, 0, 0), (211, 215, 220)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    logs = tmp_path_factory.mktemp("logs")
    run(logs / "plain", STEPS)
    run(logs / "other", STEPS - 100)
    with served(logs) as address, browser(tmp_path_factory.mktemp("profile")) as page:
        yield Tab(page, address)


def test_it_opens_without_a_complaint_and_asks_nobody_else(tab: Tab) -> None:
    tab.open(run="plain")
    assert tab.rows == list(NAMES)
    assert tab.text(".heat .headline") == f"{len(NAMES)} rows \u00d7 {STEPS} logged steps"
    assert tab.js("[...d.querySelectorAll('.panel')].every((one) => one.querySelector('h2').textContent)")
    assert tab.js("[...d.querySelectorAll('.stack .panel')].every((one) => one.querySelector(':scope > .how'))")
    assert tab.complaints() == []
    assert tab.foreign() == []


def test_the_headline_counts_clipped_steps(tab: Tab) -> None:
    def clipped(step: int) -> bool:
        before = norms(NAMES, step, STEPS)[:, 0]
        return float(before[before != -1].norm()) > CLIP

    count = sum(map(clipped, range(STEPS)))
    assert 0 < count < STEPS
    share = float(f"{100 * count / STEPS:.2g}")
    assert tab.open(run="plain").text(".norms .headline") == f"{count} of {STEPS} steps clipped ({share:g} %)"


def test_the_planted_spike_is_the_brightest_column_even_where_steps_share_a_pixel(tab: Tab) -> None:
    tab.page.size(620, 900)
    tab.open(run="plain")
    row = tab.pixels(SPIKED)
    assert len(row) < STEPS * 2
    bright = max(range(len(row)), key=lambda x: row[x][0] + row[x][1])
    assert abs(bright - tab.x(SPIKE)) <= 2
    tab.page.size(360, 900)
    tab.until(f"w.__calib.axis.width < {STEPS}")
    tab.settle()
    row = tab.pixels(SPIKED)
    assert len(row) < STEPS
    assert abs(max(range(len(row)), key=lambda x: row[x][0] + row[x][1]) - tab.x(SPIKE)) <= 2
    tab.page.size(1280, 900)


def test_nan_zero_and_absent_have_colours_of_their_own(tab: Tab) -> None:
    tab.open(run="plain")
    assert MAGENTA in tab.pixels(SICK)
    assert set(tab.pixels(DEAD)) == {BLACK}
    late = tab.pixels(LATE)
    assert set(late[: int(tab.x(STEPS // 4)) - 2]) == {GREY}
    assert GREY not in late[int(tab.x(STEPS // 4)) + 2 :]
    assert tab.text(".colourbar").endswith("NaN or Infexactly zeronot logged")
    assert tab.js(f"w.__calib.cell('{SICK}', {NAN})") == "NaN or Inf"


def test_a_click_on_an_alert_shows_its_layer_and_step(tab: Tab) -> None:
    tab.open(run="plain")
    alerts = tab.js("[...d.querySelectorAll('.alerts tbody tr')].map((one) => one.textContent)")
    place = next(i for i, text in enumerate(alerts) if "spike" in text)
    assert SPIKED in alerts[place]
    tab.click(f".alerts tbody tr:nth-child({place + 1})")
    assert (tab.choice("layer"), tab.choice("step")) == (SPIKED, SPIKE)
    tab.until(f"d.querySelector('.drill h2').textContent === '{SPIKED}'")
    assert tab.js("d.querySelector('.row.selected').dataset.path") == SPIKED
    assert "values at step 150" in tab.text(".status")


def test_a_click_on_a_cell_shows_its_layer(tab: Tab) -> None:
    tab.open(run="plain")
    place = tab.js(f"w.__calib.place('{SPIKED}')")
    tab.click("[data-plot=heat]", tab.x(SPIKE) + 0.5, place["top"] + place["height"] / 2)
    assert tab.choice("layer") == SPIKED
    assert abs(tab.choice("step") - SPIKE) <= 1


def test_unusual_layers_are_the_planted_ones(tab: Tab) -> None:
    tab.open(run="plain")
    tab.until("d.querySelectorAll('.worst tbody tr').length > 3")
    found = tab.js("[...d.querySelectorAll('.worst td .layer')].map((one) => one.textContent)")
    assert set(found[:4]) == {SICK, NAMES[2], DEAD, SPIKED}
    tab.click(".worst tbody tr")
    assert tab.choice("layer") == found[0]


def test_dragging_zooms_and_three_ways_lead_back(tab: Tab) -> None:
    tab.open(run="plain")
    left = tab.js("w.__calib.axis.left")
    everything = tab.js("w.__calib.axis")
    for back in ("key", "button", "double"):
        x, y = tab.at("[data-plot=norms]", left + 100, 50)
        tab.page.drag(x, y, x + 200)
        tab.settle()
        zoomed = tab.js("w.__calib.axis")
        assert everything["from"] < zoomed["from"] < zoomed["to"] < everything["to"], back
        if back == "key":
            tab.js("d.querySelector('.stack').focus()")
            tab.press("Escape")
        elif back == "button":
            tab.click("[data-do=reset]")
        else:
            tab.click("[data-plot=norms]", left + 150, 50, times=2)
        assert tab.js("w.__calib.axis") == everything, back


def test_colours_follow_the_visible_steps(tab: Tab) -> None:
    def ends() -> list[str]:
        return tab.js("[...d.querySelectorAll('.colourbar .end')].map((one) => one.textContent)")

    whole = (tab.open(run="plain"), ends())[1]
    late = (tab.open(run="plain", zoom=f"{STEPS - 50}-{STEPS - 1}"), ends())[1]
    assert float(late[1]) < float(whole[1]) / 2


def test_filter_by_text_and_by_pattern(tab: Tab) -> None:
    tab.open(run="plain")
    tab.pick("filter", "MLP")
    assert tab.rows == [name for name in NAMES if "mlp" in name]
    tab.pick("filter", "encoder.?.norm*.weight")
    assert tab.rows == [name for name in NAMES if "norm" in name]
    tab.pick("filter", "nowhere")
    assert tab.rows == []
    assert tab.text(".heat .nothing") == "No layer fits the filter."
    assert tab.complaints() == []


def test_sorted_by_anomaly_the_sick_come_first(tab: Tab) -> None:
    tab.open(run="plain")
    tab.pick("sort", "anomaly")
    assert set(tab.rows[:2]) == {SICK, NAMES[2]}
    assert tab.rows[2:4] == [DEAD, SPIKED]
    assert sorted(tab.rows) == sorted(NAMES)


def test_modules_fold_and_open(tab: Tab) -> None:
    tab.open(run="plain", depth=0)
    assert tab.rows == ["embed.weight", "encoder", "head"]
    tab.click(".row[data-path=encoder] .twist")
    assert tab.rows == ["embed.weight", *(f"encoder.{i}" for i in range(3)), "head"]
    tab.click(".row[data-path=encoder] .twist")
    assert tab.rows == ["embed.weight", "encoder", "head"]
    for _ in range(3):
        tab.click("[data-do=deeper]")
    assert tab.rows == list(NAMES)
    tab.click(".row[data-path=encoder] .twist")  # by hand, against the level
    assert tab.rows == ["embed.weight", "encoder", "head.weight", "head.bias"]
    tab.click("[data-do=shallower]")
    assert owner(SPIKED).rpartition(".")[0] in "".join(tab.rows)


def test_a_folded_row_is_the_root_of_the_sum_of_squares(tab: Tab) -> None:
    tab.open(run="plain", depth=0)
    step = 10
    value = norms(NAMES, step, STEPS)[[i for i, name in enumerate(NAMES) if name.startswith("encoder.")], 0]
    shown = float(tab.js(f"w.__calib.cell('encoder', {step})"))
    assert math.isclose(shown, float(value.norm()), rel_tol=5e-3)  # three digits are shown
