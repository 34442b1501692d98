"""A report as the value of a notebook's cell: a figure in a frame, which reaches nothing of the page around it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, browser, executable
from helpers.made_runs import healthy

from lightning_calib.report import Report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium; name one in the environment variable CHROMIUM"),
]
AROUND = """<!doctype html><meta charset="utf-8"><title>a notebook</title>
<style>h2 {{ font-size: 60px }} p {{ color: rgb(1, 2, 3) }} * {{ letter-spacing: 9px }}</style>
<h2>A cell</h2><p id="mine">text</p><div style="width: 900px">{}</div>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


class Frame:
    """What is in the frame of a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.send("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
        page.until("!!document.querySelector('iframe')")
        end = time.monotonic() + 30
        while not (found := [one for one in page.events if one["method"] == "Target.attachedToTarget"]):
            assert time.monotonic() < end, "the frame has no process of its own"
            page.run("0")
        self.session = found[-1]["params"]["sessionId"]
        for domain in ("Runtime", "Log"):
            page.send(f"{domain}.enable", self.session)

    def run(self, code: str) -> Any:
        answer = self.page.send("Runtime.evaluate", self.session, expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, code: str) -> Any:
        end = time.monotonic() + 30
        while not (found := self.run(code)):
            assert time.monotonic() < end, f"not within 30 s: {code}"
            time.sleep(0.05)
        return found


def test_a_report_is_a_figure_that_can_be_used_and_touches_nothing(page: Page, tmp_path: Path) -> None:
    report = Report([healthy("sgd")])
    (tmp_path / "notebook.html").write_text(AROUND.format(report._repr_html_()))
    address = (tmp_path / "notebook.html").as_uri()
    page.events.clear()
    page.open(address)
    frame = Frame(page)
    frame.until("window.__calib?.ready && !document.querySelector('[aria-busy=true]')")
    said = "document.querySelector('.verdict .sentence').textContent"
    assert frame.until(f"{said}.length > 40 && {said}").endswith(report.verdict)
    style = "(({fontSize, letterSpacing}) => [fontSize, letterSpacing])(getComputedStyle(document.querySelector('h2')))"
    assert frame.run(style) == ["14px", "normal"]
    assert page.run(style) == ["60px", "9px"]
    assert page.run("getComputedStyle(document.getElementById('mine')).color") == "rgb(1, 2, 3)"
    box = page.run("document.querySelector('iframe').getBoundingClientRect().toJSON()")
    assert (box["width"], box["height"]) == (900, 900)
    assert frame.run("(() => { try { return window.parent.document.title; } catch { return 'shut'; } })()") == "shut"
    layer = "[...document.querySelectorAll('.row')].find((one) => one.dataset.path === 'net.2.weight')"
    frame.run(f"{layer}.click()")
    frame.until("window.__calib.choices.layer === 'net.2.weight'")
    frame.until("document.querySelector('.drill h2').textContent === 'net.2.weight'")
    assert page.run("location.href") == address
    assert page.complaints() == []
