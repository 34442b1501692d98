"""Whether each planted fault does harm and each healthy run learns, by the losses alone: no report is asked.

PYTHONPATH=tests python -m report.second.check                 every run, seed 0
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from helpers.plain_recorder import PlainRecorder
from report.planted.fit import Case, quiet
from report.second.table import FAULTS, HEALTHY


def trained(fit: Callable[[PlainRecorder], Any], rows: int, seed: int) -> tuple[Any, str]:
    """The outcome, and in words what was measured."""
    torch.manual_seed(1000 + seed)
    recorder, start = PlainRecorder(rows), time.process_time()
    with quiet():
        outcome = fit(recorder)
    trace = recorder.traces[0]
    losses = [row["loss"] for row in trace.rows] or [0.0]
    norms = [row["grad_norm_before"] for row in trace.rows] or [float("nan")]
    told = f"loss {losses[0]:.3g} {np.nanmedian(losses[-5:]):.3g} norm {norms[0]:.2g} {norms[-1]:.2g}"
    return outcome, f"{told} steps {trace.steps} rows {len(trace.rows)} ({time.process_time() - start:.1f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def wanted(case: Case) -> bool:
        return options.only in f"{case.name} {' '.join(case.codes)}"

    for one in FAULTS:
        if wanted(one.case):
            wrong, told = trained(one.case.fit, one.case.rows, options.seed)
            right, twin = trained(one.twin, one.case.rows, options.seed)
            mark = "harm" if not wrong.after < right.after * 1.02 + 1e-4 else "NO HARM"
            print(f"{mark} {one.case.codes} {one.case.name}: {wrong.before:.3g} -> {wrong.after:.3g}; {told}")
            print(f"      twin -> {right.after:.3g}; {twin}", flush=True)
    for case in HEALTHY:
        if wanted(case):
            outcome, told = trained(case.fit, case.rows, options.seed)
            mark = "learns" if outcome.after < 0.9 * outcome.before or outcome.after < outcome.before - 0.2 else "NOT"
            print(f"{mark} {case.name}: {outcome.before:.3g} -> {outcome.after:.3g}; {told}", flush=True)


if __name__ == "__main__":
    main()
