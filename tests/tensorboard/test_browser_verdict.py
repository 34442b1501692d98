"""What a person reads first in the "Gradients" tab: the verdict, the findings, the runs, and how they went."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import browser, executable
from tab import Tab, served, shown
from written import GLOBAL_NAMES, NAMES, event, events, layers, norms, run, totals, whole, writer

from lightning_calib import Report, read_events
from lightning_calib.cli import main
from lightning_calib.tensorboard.event_runs import runs_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
STEPS = 120
DEAD = NAMES[-1]
FITS = """[...d.querySelectorAll('.verdict, .loss canvas, .norms canvas, .scroller')].map(
  (one) => [one.className || one.dataset.plot, one.getBoundingClientRect()]
).map(([name, box]) => [name, box.top, box.bottom])"""


def healthy(
    folder: Path, steps: int = STEPS, names: tuple[str, ...] = ("a.weight", "b.weight"), first: int = 0
) -> None:
    """A loss that falls, norms that do as well, and nothing else."""
    with writer(folder) as out:
        for step in range(first, steps, 2):
            value = torch.ones(len(names), 5) * torch.tensor([0.5, 0.5, 0.5, 3.0, 0.01]) * (1 + 0.1 * (step % 3))
            numbers = whole(value, step, steps)
            for name, one in {
                "loss": 2.0 * 0.98**step,
                "loss_max": 2.2 * 0.98**step,
                "loss_first": 2.0,
                "val_loss": 2.1 * 0.98**step,
                "clip_fraction": 0.0,
                "clip_threshold": -1.0,
                "nonfinite_total": 0.0,
                "skipped_total": 0.0,
            }.items():
                numbers[GLOBAL_NAMES.index(name)] = one
            out.write([layers(list(names), value), totals(numbers)], step)


def many_nans(folder: Path) -> None:
    """191 steps that were not finite, of which 20 have an event."""
    with writer(folder) as out:
        for step in range(9, 400, 10):
            numbers = whole(norms(NAMES, 1, 400), 1, 400)
            bad = float(min(191, max(0, step - 199)))
            for name in ("nonfinite_total", "skipped_total"):
                numbers[GLOBAL_NAMES.index(name)] = bad
            records = [layers(NAMES, norms(NAMES, 1, 400)), totals(numbers)]
            if 200 < step <= 400:
                records.append(events([event(step, "nonfinite", "NaN.", NAMES[1])]))
            out.write(records, step)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    run(logs / "sick", STEPS, every_hist=0)
    run(logs / "two", STEPS, optimizers=2, every_hist=0)
    many_nans(logs / "nans")
    healthy(logs / "late", STEPS, first=1)
    healthy(logs / "elsewhere", STEPS, ("other.weight", "another.weight"))
    healthy(logs / "brief", 10)
    healthy(logs / "well")
    return logs


@pytest.fixture(scope="module")
def tab(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with served(logs) as address, browser(tmp_path_factory.mktemp("profile")) as page:
        yield Tab(page, address)


@pytest.mark.parametrize("name", ["sick", "two", "well", "nans"])
def test_the_verdict_stands_on_top_and_is_the_command_lines(
    tab: Tab, logs: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    main(["report", str(logs / name), "--format", "json"])
    (report,) = json.loads(capsys.readouterr().out)["runs"]
    shown(tab, run=name)
    said = tab.js("d.querySelector('.verdict .sentence').lastChild.textContent")
    assert said == report["verdict"]
    chips = tab.js("[...d.querySelectorAll('.chip')].map((one) => [one.dataset.finding, one.className.split(' ')[1]])")
    keys = [one["code"] + ("" if one["optimizer"] is None else f".{one['optimizer']}") for one in report["findings"]]
    assert chips == [[key, one["severity"]] for key, one in zip(keys, report["findings"], strict=True)]
    assert tab.complaints() == []
    assert tab.foreign() == []


def test_a_severity_has_a_shape_and_a_word_beside_its_colour(tab: Tab) -> None:
    shown(tab, run="sick")
    signs = tab.js("[...d.querySelectorAll('.chip .sign')].map((one) => one.textContent)")
    assert signs
    assert all(text.split(" ", 1)[0] for text in signs)
    assert {text[1:].rstrip(": ") for text in signs} <= {"act", "look", "note"}
    assert len({text[0] for text in signs}) == len({text[1:] for text in signs})


def test_a_healthy_run_says_so_small_and_green(tab: Tab) -> None:
    size = "parseFloat(w.getComputedStyle(d.querySelector('.verdict .sentence')).fontSize)"
    colour = "w.getComputedStyle(d.querySelector('.verdict .sentence')).color"
    shown(tab, run="well")
    small, green = tab.js(size), tab.js(colour)
    assert tab.text(".verdict .sentence").startswith("✓healthy: Nothing is wrong")
    shown(tab, run="sick")
    assert small < tab.js(size)
    red, greener, blue = (int(part) for part in green[4:-1].split(","))
    assert greener > red
    assert greener > blue


def test_a_finding_leads_to_its_layer_and_steps_and_opens_what_it_means(tab: Tab) -> None:
    shown(tab, run="sick", zoom="5-20")
    tab.click("[data-finding^=nonfinite]")
    assert tab.choice("step") == 2 * STEPS // 3
    assert tab.choice("zoom") is None
    assert tab.choice("layer") == NAMES[1]
    said = tab.text(".finding")
    assert all(part in said for part in ("What to do:", "What it means: A gradient was inf or nan.", "Where:"))
    assert tab.js("d.querySelector('.chip.open').getAttribute('aria-expanded')") == "true"
    assert "p.lightning_calib.finding=nonfinite" in tab.page.run("location.hash")
    tab.click("[data-finding^=nonfinite]")
    assert tab.js("d.querySelector('.finding').hidden")


def test_a_finding_of_another_optimizer_leads_there(tab: Tab) -> None:
    shown(tab, run="two", optimizer=0)
    other = tab.js(
        "[...d.querySelectorAll('.chip')].map((one) => one.dataset.finding).find((key) => key.endsWith('.1'))"
    )
    assert other is not None
    tab.click(f"[data-finding='{other}']")
    assert tab.choice("optimizer") == 1


def test_the_verdict_needs_none_of_the_pictures(tab: Tab) -> None:
    tab.page.send("Network.setBlockedURLs", urls=["*layers?*", "*globals?*"])
    try:
        tab.page.open(f"{tab.address}#lightning_calib&p.lightning_calib.run=sick")
        tab.until("d.querySelector('.notice')?.textContent.startsWith('Could not load the gradients.')")
        tab.until("d.querySelector('.verdict .sentence').textContent.length > 40")
        assert not tab.js("w.__calib.ready")
        tab.js("d.querySelector('[data-finding^=nonfinite]').click()")
        tab.until("!d.querySelector('.finding').hidden")
        tab.js("d.querySelector('.answer').click()")
        tab.until("d.querySelector('.finding').textContent.startsWith('Which clip value')")
    finally:
        tab.page.send("Network.setBlockedURLs", urls=[])


def test_which_clip_value_is_answered_beside_the_findings_in_the_reports_words(tab: Tab, logs: Path) -> None:
    for run_, optimizer in (("well", 0), ("two", 1)):
        shown(tab, run=run_, optimizer=optimizer)
        told = Report(runs_of(read_events(logs / run_))).suggestion
        (wanted,) = (one for one in told if one.optimizer == optimizer)
        assert tab.text(".answer").startswith("clip value")
        assert tab.js("d.querySelector('.finding').hidden")
        tab.click(".answer")
        assert tab.text(".finding") == f"Which clip value: {wanted}"
        assert tab.js("d.querySelector('.answer').getAttribute('aria-expanded')") == "true"
        assert "p.lightning_calib.finding=clip-value" in tab.page.run("location.hash")
        tab.click(".answer")
        assert tab.js("d.querySelector('.finding').hidden")


def test_where_the_run_does_not_tell_a_clip_value_nothing_is_said(tab: Tab) -> None:
    shown(tab, run="brief")
    assert tab.js("d.querySelector('.answer')") is None
    shown(tab, run="brief", finding="clip-value")
    assert tab.js("d.querySelector('.finding').hidden")


def test_a_verdict_of_a_run_that_goes_on_is_made_anew(tab: Tab, logs: Path) -> None:
    healthy(logs / "growing", 40)
    shown(tab, run="well")
    for _ in range(30):
        tab.page.run("document.querySelector('.reload-button').click()")
        tab.js("new Promise((done) => setTimeout(done, 400))")
        if "8 runs" in tab.text(".runs-button"):
            break
    before = (shown(tab, run="growing"), tab.text(".verdict .more"))[1]
    assert "20 logged rows" in before
    with writer(logs / "growing") as out:
        for step in range(40, 60):
            out.write([totals(whole(norms(NAMES, step, 60), step, 60))], step)
    for _ in range(30):
        tab.page.run("document.querySelector('.reload-button').click()")
        tab.js("new Promise((done) => setTimeout(done, 400))")
        if tab.text(".verdict .more") != before:
            break
    assert "60 optimizer steps" in tab.text(".verdict .more")


def test_the_newest_run_is_shown_and_the_list_has_search_and_severity(tab: Tab) -> None:
    shown(tab)
    newest = tab.text(".runs-button .text")
    assert newest in ("well", "growing")
    tab.click("[data-choice=run]")
    names = "[...d.querySelectorAll('.run-name')].map((one) => one.dataset.run)"
    found = tab.js(names)
    assert found.index("well") < found.index("nans") < found.index("sick")
    tab.until("![...d.querySelectorAll('.run-name .sign')].some((one) => one.textContent === '·')")
    signs = dict(
        zip(found, tab.js("[...d.querySelectorAll('.run-name .sign')].map((one) => one.textContent)"), strict=True)
    )
    assert signs["well"].startswith("✓healthy")
    assert signs["sick"][1:].startswith(("look", "act"))
    assert tab.js("[...d.querySelectorAll('.run-name .when')].every((one) => /\\d\\d:\\d\\d/.test(one.textContent))")
    tab.js("(d.querySelector('[data-choice=runs]').value = 's?ck', "
           "d.querySelector('[data-choice=runs]').dispatchEvent(new Event('input')))")  # fmt: skip
    assert tab.js(names) == ["sick"]
    tab.js("d.querySelector('[data-choice=runs]').focus()")
    tab.press("ArrowDown", "Enter")
    tab.until("w.__calib.choices.run === 'sick'")
    assert tab.js("d.querySelector('.run-list').hidden")
    tab.press("Enter")
    assert not tab.js("d.querySelector('.run-list').hidden")
    tab.press("Escape")
    assert tab.js("d.querySelector('.run-list').hidden")
    assert tab.js("d.activeElement.dataset.choice") == "run"


def test_up_to_three_runs_lie_over_each_other(tab: Tab) -> None:
    shown(tab, run="well")
    tab.click("[data-choice=run]")
    for name in ("elsewhere", "late", "sick"):
        tab.js(f"[...d.querySelectorAll('.over input')].find((one) => one.ariaLabel.includes('{name} over')).click()")
        tab.settle()
    assert (tab.choice("compare"), tab.choice("third")) == ("late", "sick")
    tab.press("Escape")
    for panel in ("norms", "loss", "rates", "updates"):
        text = tab.text(f".{panel} .legend")
        assert ", late" in text, panel
        assert (", sick" in text) == (panel != "loss"), panel  # it has logged no loss
    tab.click("[data-over=late]")
    assert (tab.choice("compare"), tab.choice("third")) == ("sick", None)


def test_runs_that_cannot_be_compared_layer_by_layer_say_so(tab: Tab) -> None:
    shown(tab, run="well", compare="elsewhere")
    assert "no layer in common" in tab.text(".apart")
    assert tab.rows
    assert "of the other run" not in tab.js(f"w.__calib.cell('{tab.rows[0]}', 2)")
    shown(tab, run="well", compare="late")
    assert "no step in common" in tab.text(".apart")
    shown(tab, run="well")
    assert tab.js("d.querySelector('.apart').hidden")


def test_the_loss_stands_above_the_norm_on_the_same_steps(tab: Tab) -> None:
    shown(tab, run="well")
    boxes = tab.js(
        "['loss', 'norms'].map((name) => d.querySelector(`[data-plot=${name}]`).getBoundingClientRect().toJSON())"
    )
    assert boxes[0]["bottom"] < boxes[1]["top"]
    assert (boxes[0]["left"], boxes[0]["width"]) == (boxes[1]["left"], boxes[1]["width"])
    assert all(box["height"] >= 160 for box in boxes)
    legend = tab.text(".loss .legend")
    assert all(word in legend for word in ("training", "validation", "peak since last row"))
    step = tab.js("w.__calib.steps.at(-1)")
    value = tab.js("d.querySelector('.loss .legend b').textContent")
    assert float(value) == pytest.approx(2.0 * 0.98**step, rel=5e-3)  # three digits
    shown(tab, run="sick")
    assert tab.js("d.querySelector('.loss').hidden")
    for word in ("spike", "non-finite", "skipped step"):
        assert word in tab.text(".norms .legend")


def test_an_axis_turns_linear_and_back_by_a_click_and_in_a_link(tab: Tab) -> None:
    shown(tab, run="well")
    picture = "d.querySelector('[data-plot=norms]').toDataURL()"
    before = tab.js(picture)
    assert tab.text("[data-do=axis-norms]") == "log"
    tab.click("[data-do=axis-norms]")
    assert tab.text("[data-do=axis-norms]") == "linear"
    assert tab.js(picture) != before
    assert "p.lightning_calib.axes=norms" in tab.page.run("location.hash")
    assert tab.text("[data-do=axis-loss]") == "log"
    tab.click("[data-do=axis-norms]")
    assert tab.js(picture) == before
    shown(tab, run="well", axes="loss.updates")
    found = [tab.text(f"[data-do=axis-{name}]") for name in ("loss", "norms", "rates", "updates")]
    assert found == ["linear", "log", "log", "linear"]


def test_lines_are_smoothed_only_when_asked(tab: Tab) -> None:
    shown(tab, run="well")
    assert tab.choice("smooth") == 0
    picture = "d.querySelector('[data-plot=norms]').toDataURL()"
    before = tab.js(picture)
    tab.js("(d.querySelector('[data-choice=smooth]').value = '0.9', "
           "d.querySelector('[data-choice=smooth]').dispatchEvent(new Event('change')))")  # fmt: skip
    tab.until("w.__calib.choices.smooth === 0.9")
    tab.settle()
    assert tab.js(picture) != before


@pytest.mark.parametrize("dark", [False, True])
def test_a_laptop_shows_verdict_loss_norm_and_layers_without_scrolling(tab: Tab, dark: bool) -> None:
    tab.page.size(1366, 768)
    try:
        shown(tab, dark, run="well")
        boxes = tab.js(FITS)
        height = tab.js("w.innerHeight")
        assert [name.split(" ")[0] for name, _, _ in boxes] == ["verdict", "loss", "norms", "scroller"]
        assert all(bottom <= height for _, _, bottom in boxes[:3]), boxes
        assert boxes[3][1] + 40 <= height, boxes  # two rows at least
    finally:
        tab.page.size(1280, 900)


@pytest.mark.parametrize("width", [1366, 1000, 760, 480])
def test_nothing_is_cut_at_any_width(tab: Tab, width: int) -> None:
    tab.page.size(width, 900)
    try:
        shown(tab, run="well", compare="sick", third="late")
        assert tab.js("d.documentElement.scrollWidth <= d.documentElement.clientWidth")
        cut = tab.js(
            "[...d.querySelectorAll('.legend .item, .legend .label, .colourbar *, .toolbar *, .verdict *')]"
            ".filter((one) => one.getClientRects().length && !one.closest('.unseen, select')"
            " && (one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0"
            " || one.getBoundingClientRect().right > w.innerWidth)).map((one) => one.outerHTML.slice(0, 120))"
        )
        assert cut == []
        columns = tab.js("w.getComputedStyle(d.querySelector('main')).gridTemplateColumns.split(' ').length")
        assert columns == (1 if width <= 760 else 2)
    finally:
        tab.page.size(1280, 900)


def test_open_modules_have_colours_and_tensors_no_triangle(tab: Tab) -> None:
    shown(tab, run="sick", depth=9)
    opened = tab.js("w.__calib.rows.filter((row) => row.open).map((row) => row.path)")
    assert "encoder" in opened
    ground = {(255, 255, 255), (0, 0, 0)}
    assert not ground & set(tab.pixels("encoder")[5:-5])
    folding = tab.js("[...d.querySelectorAll('.row:has(.twist)')].map((one) => one.dataset.path)")
    assert folding
    assert not set(folding) & set(NAMES)


def test_steps_are_counted_as_steps_everywhere(tab: Tab) -> None:
    shown(tab, run="nans")
    lanes = tab.js("d.querySelector('[data-plot=lanes]').ariaLabel")
    assert "non-finite: 191 steps" in lanes
    assert "skipped step: 191 steps" in lanes
    assert "191 steps" in tab.text(".verdict .sentence")
    canvas = "d.querySelector('[data-plot=lanes]')"
    row = tab.js(f"Array.from({canvas}.getContext('2d').getImageData(0, 24, {canvas}.width, 1).data)")
    colour = [tuple(row[i : i + 3]) for i in range(0, len(row), 4)]
    axis = tab.js("w.__calib.axis")
    place = lambda step: int(axis["left"] + (step - axis["from"]) / (axis["to"] - axis["from"]) * axis["width"])  # noqa: E731
    marked = colour[place(300)]
    for step in range(205, 390, 7):  # one stretch, not 20 marks
        assert max(abs(a - b) for a, b in zip(colour[place(step)], marked, strict=True)) <= 3, step  # rounded opacity
    assert colour[place(100)] != colour[place(300)]
