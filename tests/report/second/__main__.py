"""Scores the report on the second suite: runs that were written without a look at the report.

PYTHONPATH=tests python -m report.second                         every run, seed 0
PYTHONPATH=tests python -m report.second --seeds 0 1 --only bn   a part of the names
PYTHONPATH=tests python -m report.second --keep DIR              keeps the numbers, or reads them from there
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from report.planted.__main__ import runs_of, tell
from report.planted.table import Score, score
from report.second.table import FAULTS, HEALTHY


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", help="a part of the names of the runs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the numbers are kept, as pickles")
    parser.add_argument("--record", action="store_true", help="train and keep, without a score")
    parser.add_argument("--wrong", action="store_true", help="tell only what is wrong")
    options = parser.parse_args(argv)
    faults = tuple(one.case for one in FAULTS)
    for title, cases in (("faults named in the first sentence", faults), ("healthy runs left in peace", HEALTHY)):
        found: list[Score] = []
        for case in cases:
            for seed in options.seeds if options.only in case.name else ():
                start = time.perf_counter()
                runs = runs_of(case, seed, options.keep)
                if options.record:
                    print(f"{case.name} (seed {seed}): {time.perf_counter() - start:.1f} s", flush=True)
                    continue
                found.append(score(case, runs))
                if not (options.wrong and found[-1].right):
                    tell(found[-1], seed, time.perf_counter() - start)
        if found:
            print(f"{sum(one.right for one in found)} of {len(found)} {title}", flush=True)


if __name__ == "__main__":
    main()
