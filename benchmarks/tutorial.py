"""The tutorial as it is: runs the code of docs/tutorial.md, and takes the pictures of that page: `make tutorial`."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.code_blocks import ROOT, programs
from screenshots import BAR, WIDE, Tab, browser, picture, served

SHOTS = {
    "first": {"run": "first"},
    "clipped": {"run": "clipped"},
    "cured": {"run": "cured", "compare": "clipped"},
}
TALL = 860  # pixels


def train(folder: Path) -> None:
    """Run the page's program in a process of its own, with one thread."""
    [program] = programs(ROOT / "docs" / "tutorial.md")
    script = folder / "tutorial.py"
    script.write_text(program)
    subprocess.run([sys.executable, str(script)], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def take(logs: Path, out: Path, profile: Path) -> None:
    with served(logs) as address, browser(profile) as page:
        page.size(WIDE, TALL + BAR)
        for name, choices in SHOTS.items():
            picture(Tab(page, address).open(**choices), out / f"tutorial-{name}.png", TALL, colours=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        train(Path(scratch))
        take(Path(scratch) / "lightning_logs", arguments.out, Path(scratch) / "profile")


if __name__ == "__main__":
    main()
