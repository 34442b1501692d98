"""Pictures of the "Gradients" tab after each example, for docs/gallery.md: `make gallery`.

Runs the examples one after the other on the data that they bring along, with one thread, starts TensorBoard on their
logs, and takes one picture of each with Chromium. What an example printed lies beside its logs as `printed.txt`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from screenshots import BAR, WIDE, Tab, browser, picture, served

ROOT = Path(__file__).parents[1]
TALL = 1240  # pixels at most
PROGRESS = ("Epoch", "Training", "Testing", "Validation")  # how a line of the progress bar starts


class Shot(NamedTuple):
    """A run of an example, and what of it is shown."""

    example: str
    arguments: tuple[str, ...] = ()
    choices: dict[str, Any] = {}


SHOTS = {
    "vision": Shot("vision", (), {"stat": "peak", "step": 399}),
    "vision-nfnet": Shot("vision", ("--model", "nfnet"), {"stat": "kept", "filter": "*.weight", "step": 59}),
    "vision-gan": Shot("vision_gan", (), {"optimizer": 0}),
    "language-model": Shot("language_model", (), {"stat": "peak", "zoom": "0-300", "step": 49, "depth": 2}),
    "text-classification": Shot("text_classification", (), {"stat": "kept", "step": 209}),
    "speech": Shot("speech", (), {"step": 159}),
    "recommendation": Shot("recommendation", (), {"optimizer": 0, "stat": "kept", "step": 9}),
}


def train(shot: Shot, logs: Path) -> None:
    """One example in a process of its own; nothing if its logs are there."""
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
            tab = Tab(page, address).open(run=f"{name}/{shot.example}/version_0", **shot.choices)
            picture(tab, out / f"example-{name}.png", height(tab), colours=128)


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
            train(SHOTS[name], logs / name)
        take(names, logs, arguments.out, Path(scratch) / "profile")


if __name__ == "__main__":
    main()
