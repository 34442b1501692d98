"""The harness of docs/performance.md: whole fits beside the alternatives, functions, and growth.

    make bench                                        all of it, about 20 minutes, and the page
    python -m benchmarks fits --tensors 10 100        one part, printed
    python -m benchmarks --quick                      a smoke run: its figures mean nothing
    python -m benchmarks --page                       the page alone, from the results that are there

Process time, one thread. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded

import torch

from benchmarks import fits, functions, growth, growth_of_files, page, results, writing

PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "fits": lambda a: fits.unlogged(a.tensors or fits.TENSORS, a.models, a.rounds, a.quick),
    "logged": lambda a: fits.logged(a.tensors or fits.TENSORS, a.rounds, a.quick),
    "writing": lambda a: writing.tables(a.quick),
    "functions": lambda a: functions.tables(a.quick),
    "tensors": lambda a: growth.tensors(tuple(a.tensors or growth.TENSORS), a.rounds, a.quick),
    "elements": lambda a: growth.elements(tuple(a.elements or growth.ELEMENTS), a.rounds, a.quick),
    "segments": lambda a: growth.segments(quick=a.quick),
    "history": lambda a: growth.history(quick=a.quick),
    "event_file": lambda a: growth_of_files.event_file(a.quick),
    "checkpoint": lambda a: growth_of_files.checkpoint(a.quick),
    "tab": lambda a: growth_of_files.tab(a.quick),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them without any")
    parser.add_argument("--tensors", nargs="+", type=int, help="how many small tensors, of fits, logged and tensors")
    parser.add_argument("--models", nargs="*", choices=fits.NAMED, help="large models of fits; none without a name")
    parser.add_argument("--elements", nargs="+", type=int, help="how many, of the part elements; 10**9 needs 12 GB")
    parser.add_argument("--rounds", type=int, default=1000, help="at most so many; else as many as their time allows")
    parser.add_argument("--quick", action="store_true", help="one round of few steps, to see that it runs")
    parser.add_argument("--output", type=Path, help="put the parts into this JSON file; the others in it stay")
    parser.add_argument("--save", action="store_true", help="into the project's own results, and write the page")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    found = parser.parse_args()
    if unknown := set(found.parts) - set(PARTS):
        parser.error(f"parts must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}.")
    narrowed = found.tensors or found.models is not None or found.elements
    if found.save and narrowed:
        parser.error("--save takes whole parts; with --tensors, --models or --elements use --output.")
    if found.models is None:
        found.models = [] if found.quick or found.tensors else list(fits.NAMED)
    if found.quick:
        found.tensors, found.elements = found.tensors or [10], found.elements or [10**5]
    return found


def main() -> None:
    wanted = arguments()
    if wanted.page:
        page.PAGE.write_text(page.render(results.load()))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_calib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    file = results.FILE if wanted.save else wanted.output
    found: results.Results = {}
    for name in wanted.parts or PARTS:
        start = perf_counter()
        data = PARTS[name](wanted)
        seconds = perf_counter() - start
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
        found[name] = {"made": results.made(command, wanted.quick or wanted.rounds < 3, seconds), "data": data}
        if file:
            results.save({name: found[name]}, file)
    if wanted.save:
        page.PAGE.write_text(page.render(results.load()))
    else:
        print(page.render(found))


if __name__ == "__main__":
    main()
