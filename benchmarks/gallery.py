"""Pictures of the "Gradients" tab after each example, and after runs that went wrong: `make gallery`, docs/gallery.md.

Runs the examples one after the other on the data that they bring along, and the runs of `gone_wrong.py`, with one
thread, starts TensorBoard on their logs, and takes one picture of each with Chromium. What an example printed lies
beside its logs as `printed.txt`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import gone_wrong
from screenshots import BAR, WIDE, Tab, browser, picture, served

ROOT = Path(__file__).parents[1]
TALL = 1240  # pixels at most
PROGRESS = ("Epoch", "Training", "Testing", "Validation")  # how a line of the progress bar starts


class Shot(NamedTuple):
    """A run of an example, and what of it is shown."""

    example: str
    arguments: tuple[str, ...] = ()
    choices: dict[str, Any] = {}


class Wrong(NamedTuple):
    """Runs that went wrong, and what of them is shown."""

    runs: tuple[str, ...]
    choices: dict[str, Any]
    dark: bool = False


SHOTS: dict[str, Shot | Wrong] = {
    "vision": Shot("vision", (), {"stat": "peak", "step": 399}),
    "vision-nfnet": Shot("vision", ("--model", "nfnet"), {"stat": "kept", "filter": "*.weight", "step": 59}),
    "vision-gan": Shot("vision_gan", (), {"optimizer": 0}),
    "language-model": Shot("language_model", (), {"stat": "peak", "zoom": "0-300", "step": 49, "depth": 2}),
    "text-classification": Shot("text_classification", (), {"stat": "kept", "step": 209}),
    "speech": Shot("speech", (), {"step": 159}),
    "recommendation": Shot("recommendation", (), {"optimizer": 0, "stat": "kept", "step": 9}),
    "rnn": Wrong(("rnn",), {"stat": "peak"}),
    "blank-image": Wrong(("blank-image",), {}, dark=True),
    "dead-layer": Wrong(("shut-branch",), {"finding": "dead-layer", "layer": "net.2.down.weight"}),
    "three-rates": Wrong(
        ("rates/0.3", "rates/0.00003", "rates/0.03"), {"compare": "rates/0.00003", "third": "rates/0.3"}
    ),
}


def train(name: str, logs: Path) -> None:
    """What a picture needs; nothing if its logs are there."""
    shot = SHOTS[name]
    if isinstance(shot, Shot):
        run_example(shot, logs / name)
    else:
        for run in shot.runs:
            gone_wrong.train(run, logs)


def run_example(shot: Shot, logs: Path) -> None:
    """One example in a process of its own."""
    printed = logs / "printed.txt"
    if printed.exists():
        return
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "examples" / f"{shot.example}.py"), "--log-dir", str(logs), *shot.arguments]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith(PROGRESS)]
    printed.write_text("\n".join(lines) + "\n")


def height(tab: Tab) -> int:
    """Of all that the page holds; the layers have more room in a higher window, and some panels come later."""
    for _ in range(2):
        tab.js("new Promise((done) => setTimeout(done, 500))")
        whole = int(tab.js("d.scrollingElement.scrollHeight"))
        tab.page.size(WIDE, whole + BAR)
    return min(whole, TALL)


def take(names: list[str], logs: Path, out: Path, profile: Path) -> None:
    with served(logs) as address, browser(profile) as page:
        for name in names:
            shot = SHOTS[name]
            page.size(WIDE, 600)  # low, so that what the page holds decides how high the picture is
            example = isinstance(shot, Shot)
            run, dark = (f"{name}/{shot.example}/version_0", False) if example else (shot.runs[-1], shot.dark)
            tab = Tab(page, address).open(dark, run=run, **shot.choices)
            picture(tab, out / f"{'example' if example else 'run'}-{name}.png", height(tab), colours=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(SHOTS)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--logs", type=Path, help="keep the runs here; those that are there are not trained again")
    arguments = parser.parse_args()
    names = arguments.names or list(SHOTS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        logs = arguments.logs or Path(scratch) / "logs"
        for name in names:
            train(name, logs)
        take(names, logs, arguments.out, Path(scratch) / "profile")


if __name__ == "__main__":
    main()
