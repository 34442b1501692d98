"""Records the planted runs, and scores the report on them.

PYTHONPATH=tests python -m report.planted                        every run, seed 0
PYTHONPATH=tests python -m report.planted --seeds 0 1 2 --only rate
PYTHONPATH=tests python -m report.planted --keep DIR             keeps the numbers, or reads them from there
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Sequence
from pathlib import Path

from helpers.contradictions import contradictions
from report.planted.fit import Case
from report.planted.table import FAULTS, HEALTHY, Score, score

from lightning_calib.report import Report
from lightning_calib.report.run import Run


def runs_of(case: Case, seed: int, keep: Path | None) -> list[Run]:
    """From the folder if they are there; else trained, and kept if there is a folder."""
    kind = f"fault-{case.codes[0]}" if case.codes else "healthy"
    path = keep / str(seed) / f"{kind}-{case.name}-{case.rows}.pkl" if keep else None
    if path and path.exists():
        return pickle.loads(path.read_bytes())
    runs = case.run(seed)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(runs))
    return runs


def tell(found: Score, seed: int, seconds: float) -> None:
    wanted = " or ".join(found.case.codes) or ("only " + ", ".join(found.case.notes) if found.case.notes else "nothing")
    mark = "right" if found.right else "WRONG"
    print(f"{mark} {found.case.name} (seed {seed}, {seconds:.1f} s): wanted {wanted}; found {found.said}", flush=True)


def main(
    description: str | None, faults: Sequence[Case], healthy: Sequence[Case], argv: Sequence[str] | None = None
) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", help="a part of the names of the runs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the numbers are kept, as pickles")
    parser.add_argument("--record", action="store_true", help="train and keep, without a score")
    parser.add_argument("--wrong", action="store_true", help="tell only what is wrong")
    options = parser.parse_args(argv)
    for title, cases in (("faults named in the first sentence", faults), ("healthy runs left in peace", healthy)):
        found: list[Score] = []
        for case in cases:
            for seed in options.seeds if options.only in case.name else ():
                start = time.perf_counter()
                runs = runs_of(case, seed, options.keep)
                if options.record:
                    print(f"{case.name} (seed {seed}): {time.perf_counter() - start:.1f} s", flush=True)
                    continue
                found.append(score(case, runs))
                for told in contradictions(Report(runs)):
                    print(f"CONTRADICTION {case.name} (seed {seed}): the clip value is {told}", flush=True)
                if not (options.wrong and found[-1].right):
                    tell(found[-1], seed, time.perf_counter() - start)
        if found:
            print(f"{sum(one.right for one in found)} of {len(found)} {title}", flush=True)


if __name__ == "__main__":
    main(__doc__, FAULTS, HEALTHY)
