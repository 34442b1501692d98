"""How long the "Gradients" tab takes: `make bench-tab`.

Writes a run of 1,000 tensors at 1,000 steps and one of 100 at 300, starts TensorBoard on them, opens the tab in
Chromium, five times each, and prints the medians: from the load of the page to the verdict, and to everything; what
the report itself took; painting all rows anew.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "tensorboard"))
from chromium import browser
from tab import Tab, served
from written import run

SIZES = {"thousand": (1000, 1000), "hundred": (100, 300)}
LOADED = "w.performance.getEntriesByType('navigation')[0].loadEventEnd"
LIMITS = {"verdict": 1000, "everything": 2500, "repaint": 50}  # ms


def measure(tab: Tab, name: str) -> dict[str, float]:
    """Milliseconds of one visit."""
    tab.open(run=name, depth=9)
    tab.until("w.__calib.timings.verdict")
    loaded, times = tab.js(LOADED), tab.js("w.__calib.timings")
    tab.click("[data-do=fit]")
    first = {key: times[key] - loaded for key in ("verdict", "everything")}
    return first | {"report": times["report"], "repaint": tab.js("w.__calib.timings.paint")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visits", type=int, default=5)
    visits = parser.parse_args().visits
    with tempfile.TemporaryDirectory() as scratch:
        for name, (tensors, steps) in SIZES.items():
            names = [f"blocks.{i // 10}.{'abcdefghij'[i % 10]}.weight" for i in range(tensors)]
            run(Path(scratch) / "logs" / name, steps, names, every_hist=0)
        for name, (tensors, steps) in SIZES.items():
            found = []
            for visit in range(visits):  # a new server each time: it keeps the reports that it has made
                with (
                    served(Path(scratch) / "logs") as address,
                    browser(Path(scratch) / f"profile {name} {visit}") as page,
                ):
                    found.append(measure(Tab(page, address), name))
            print(f"{tensors:,} tensors at {steps:,} steps, median of {visits} visits, ms:")
            for key in found[0]:
                limit = f" (at most {LIMITS[key]:,})" if key in LIMITS else ""
                print(f"  {key}: {median(one[key] for one in found):,.0f}{limit}")


if __name__ == "__main__":
    main()
