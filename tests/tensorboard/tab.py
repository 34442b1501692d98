"""The "Gradients" tab in a browser, over a TensorBoard of its own."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from chromium import Page

FIND = "[...document.querySelectorAll('iframe')].map((one) => one.contentWindow).find((one) => one.__calib)"
# What TensorBoard's own page says in a browser without a graphics card, and fonts that it misses below a prefix.
NOT_OURS = ("Three.js", "software WebGL", "GPU stall", "favicon", "font-roboto")


@contextmanager
def served(logdir: Path, *flags: str, prefix: str = "") -> Iterator[str]:
    """TensorBoard as a user starts it; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port), *flags]
    more = ["--path_prefix", prefix] if prefix else []
    process = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}{prefix}/"
    try:
        _wait(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), urlopen(address, timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError("TensorBoard did not start")


class Tab:
    """The tab; `w` and `d` in expressions are its window and document."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address

    def open(self, dark: bool = False, /, **choices: Any) -> "Tab":
        """Open a deep link and wait until the runs are drawn."""
        self.page.events.clear()
        keys = "".join(f"&p.lightning_calib.{name}={quote(str(value), safe='')}" for name, value in choices.items())
        self.page.open(f"{self.address}?darkMode={str(dark).lower()}#lightning_calib{keys}")
        self.until("w.__calib.ready")
        self.settle()
        return self

    def js(self, code: str) -> Any:
        return self.page.run(f"(() => {{ const w = {FIND}; const d = w && w.document; return {code}; }})()")

    def until(self, code: str, seconds: float = 30.0) -> Any:
        return self.page.until(f"(() => {{ const w = {FIND}; const d = w && w.document; return {code}; }})()", seconds)

    def choice(self, name: str) -> Any:
        return self.js(f"w.__calib.choices.{name}")

    @property
    def rows(self) -> list[str]:
        """Paths of the rows that have colours."""
        return [row["path"] for row in self.js("w.__calib.rows") if not row["open"]]

    def text(self, selector: str) -> str:
        return str(self.js(f"d.querySelector({json.dumps(selector)}).textContent"))

    def pick(self, name: str, value: str) -> None:
        """Choose in one of the selectors or type into the filter."""
        kind = "input" if name == "filter" else "change"
        box = f"d.querySelector('[data-choice={name}]')"
        self.js(f"(({box}.value = {json.dumps(value)}), {box}.dispatchEvent(new Event('{kind}')))")
        wanted = json.dumps(value if name != "optimizer" else int(value))
        self.until(f"w.__calib.choices.{name} === {wanted}")
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        wait = "new w.Promise((done) => w.requestAnimationFrame(() => w.requestAnimationFrame(() => done(1))))"
        self.js(wait)
        self.until("!d.querySelector('[aria-busy=true]')")
        self.js(wait)

    def at(self, selector: str, dx: float | None = None, dy: float | None = None) -> tuple[float, float]:
        """A place in an element, from its upper left corner or its middle, in the coordinates of the mouse."""
        found = f"d.querySelector({json.dumps(selector)})"
        self.js(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.js(f"{found}.getBoundingClientRect().toJSON()")
        outer = self.js("w.frameElement.getBoundingClientRect().toJSON()")
        x = box["width"] / 2 if dx is None else dx
        y = box["height"] / 2 if dy is None else dy
        return outer["x"] + box["x"] + x, outer["y"] + box["y"] + y

    def click(self, selector: str, dx: float | None = None, dy: float | None = None, times: int = 1) -> None:
        self.page.click(*self.at(selector, dx, dy), times=times)
        self.settle()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.press(key)
        self.settle()

    def x(self, step: float) -> float:
        """Where a step lies in the heat-map, in pixels from its left edge."""
        axis = self.js("w.__calib.axis")
        return float((step - axis["from"]) / (axis["to"] - axis["from"]) * axis["width"])

    def pixels(self, path: str) -> list[tuple[int, int, int]]:
        """Colours of a row of the heat-map, one per pixel column."""
        place = self.js(f"w.__calib.place({json.dumps(path)})")
        canvas = "d.querySelector('[data-plot=heat]')"
        y = int(place["top"] + place["height"] / 2)
        data = self.js(f"Array.from({canvas}.getContext('2d').getImageData(0, {y}, {canvas}.width, 1).data)")
        return [tuple(data[i : i + 3]) for i in range(0, len(data), 4)]

    def complaints(self) -> list[str]:
        return [line for line in self.page.complaints() if not any(word in line for word in NOT_OURS)]

    def foreign(self) -> list[str]:
        """Requests to anybody else."""
        own = self.address[: self.address.index("/", len("http://")) + 1]
        allowed = (own, "data:", "about:", "blob:" + own)
        return [url for url in self.page.requests() if not url.startswith(allowed)]


def shown(tab: Tab, dark: bool = False, /, **choices: object) -> Tab:
    """The tab with these choices, once its verdict is there."""
    tab.open(dark, **choices)
    tab.until("!d.querySelector('.verdict').classList.contains('waiting')")
    tab.settle()
    return tab
