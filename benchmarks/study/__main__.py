"""The command line: run what is missing, run one row again, write the page."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.study import table
from benchmarks.study.data import REAL, file_of
from benchmarks.study.experiments import TABLE
from benchmarks.study.plan import Experiment, quick
from benchmarks.study.run import jobs_of, one_run, run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="all of it, much shorter, into a temporary file")
    parser.add_argument("--data-dir", type=Path, help="folder of the real sets; experiments that need one are left out")
    parser.add_argument("--only", nargs="*", default=[], metavar="EXPERIMENT", help="of these only")
    parser.add_argument("--seeds", choices=["A", "B"], default="A", help="which set of seeds")
    parser.add_argument("--output", type=Path, default=table.RESULTS, help="the CSV")
    parser.add_argument("--again", metavar="EXPERIMENT/ARM", help="run the tested runs of one row again, and compare")
    given = parser.parse_args(arguments)
    known = {one.name: one for one in TABLE}
    if unknown := set(given.only) - set(known):
        parser.error(f"--only: must name experiments, got {sorted(unknown)}. Take some of {', '.join(known)}.")
    if given.again:
        name, _, arm = given.again.partition("/")
        arms = [one.name for one in known[name].arms] if name in known else []
        if arm not in arms:
            take = f"{name} has {', '.join(arms)}" if arms else f"Experiments: {', '.join(known)}"
            parser.error(f"--again: must name an experiment and an arm of it, got {given.again!r}. {take}.")
        again(known[name], arm, given.seeds, given.data_dir)
        return
    wanted = [one for one in TABLE if not given.only or one.name in given.only]
    here = [one for one in wanted if not one.real or given.data_dir]
    for one in wanted:
        if one not in here:
            print(f"{one.name}: left out, needs {one.real} below --data-dir")
    for name in sorted({one.real for one in here} - {""}):
        print(f"{file_of(given.data_dir, name)}: SHA-256 {REAL[name]}")
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            ran = run([quick(one) for one in here], "quick", given.data_dir, Path(folder, "quick.csv"))
    else:
        ran = run(here, given.seeds, given.data_dir, given.output)
    print(f"{ran} runs")


def again(experiment: Experiment, arm: str, which: str, folder: Path | None) -> None:
    """Runs the tested runs of an arm once more, beside what the table has."""
    rows = table.read()
    phase = "control" if experiment.arm(arm).lowered else "test"
    kept = {row.key: row for row in rows}
    pairs = []
    for job in jobs_of(experiment, rows, which, phase, folder):
        if job.arm.name == arm:
            pairs.append((one_run(job).test, kept[job.key].test))
            print(f"seed {job.seed}, rate {job.cell.rate:g}: {pairs[-1][0]:.5g}, in the table {pairs[-1][1]:.5g}")
    means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
    print(f"mean {experiment.measure} {means[0]:.5g}, in the table {means[1]:.5g}")


if __name__ == "__main__":
    main(sys.argv[1:])
