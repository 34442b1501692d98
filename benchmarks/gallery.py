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

from screenshots import Tab, browser, picture, served

ROOT = Path(__file__).parents[1]
TALL = 1180  # pixels at most
PROGRESS = ("Epoch", "Training", "Testing", "Validation")  # how a line of the progress bar starts


class Shot(NamedTuple):
    """A run of an example, and what of it is shown."""

    example: str
    arguments: tuple[str, ...] = ()
    choices: dict[str, Any] = {}


SHOTS = {
    "vision": Shot("vision"),
    "vision-nfnet": Shot("vision", ("--model", "nfnet")),
    "vision-gan": Shot("vision_gan"),
    "language-model": Shot("language_model"),
    "text-classification": Shot("text_classification"),
    "speech": Shot("speech"),
    "recommendation": Shot("recommendation"),
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


def take(names: list[str], logs: Path, out: Path, profile: Path) -> None:
    with served(logs) as address, browser(profile) as page:
        for name in names:
            shot = SHOTS[name]
            tab = Tab(page, address).open(run=f"{name}/{shot.example}/version_0", **shot.choices)
            whole = int(tab.js("d.scrollingElement.scrollHeight"))
            picture(tab, out / f"example-{name}.png", min(whole, TALL), colours=128)


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
