"""What the host does to bring the numbers of a logged step into the event file, beside the usual ways."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_calib.dashboard.event_file import Record, RecordWriter
from lightning_calib.dashboard.record_stream import RecordStream
from lightning_calib.dashboard.records import Logged, Rows
from lightning_calib.functional.exponent_counts import exponent_counts
from lightning_calib.functional.plan import Plan
from lightning_calib.tensorboard.contract import GLOBAL_NAMES, HIGH_EXPONENT, LOW_EXPONENT

LAYERS = 1000
Ways = dict[str, Callable[[int], object]]


def tables(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds of process time; the first way of each table is the usual one."""
    rounds = 2 if quick else 40
    with TemporaryDirectory() as folder:
        return [
            _table("One logged row of 1,000 layers, until it is in the file", _row(folder), rounds),
            _table("Histograms of 100 gradients", _histograms(folder, 10**3 if quick else 10**6), max(2, rounds // 10)),
        ]


def _table(title: str, ways: Ways, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, run in ways.items():
            start = process_time()
            run(round_)
            times[name].append(process_time() - start)
    found = {name: 1e3 * median(each[1:]) for name, each in times.items()}
    base = next(iter(found.values()))
    rows = [{"name": name, "ms": round(ms, 2), "ratio": round(ms / base, 3)} for name, ms in found.items()]
    return {"title": title, "rows": rows}


def _row(folder: str) -> Ways:
    scalars, tensors, all_ = (SummaryWriter(f"{folder}/{i}") for i in range(3))
    names = tuple(f"encoder.{i // 10}.block.{i % 10}.weight" for i in range(LAYERS))
    stream = RecordStream(Rows(0, "AdamW", "", names, names, (2,) * LAYERS, (False,) * LAYERS))
    one, whole = RecordWriter(tensors), RecordWriter(all_)

    def add_scalar(step: int) -> None:
        for i, name in enumerate(names):
            scalars.add_scalar(name, float(i), step)
        scalars.flush()

    def tensor(step: int) -> None:
        one.write([Record("table", {"kind": "layers", "optimizer": 0}, torch.rand(LAYERS, 5))], step)
        tensors.flush()

    def row(step: int) -> None:
        nonlocal stream
        idle = torch.zeros(LAYERS, dtype=torch.bool)
        records, stream = stream.after(Logged(step, torch.rand(LAYERS, 5), torch.rand(len(GLOBAL_NAMES)), None, idle))
        whole.write(records, step)
        all_.flush()

    return {
        "add_scalar, 1,000 tags": add_scalar,
        "one tensor summary, 1,000 x 5": tensor,
        "all of a row: layers, globals, events, their memory": row,
    }


def _histograms(folder: str, elements: int) -> Ways:
    gradients = [1e-3 * torch.randn(elements) for _ in range(100)]
    plan = Plan.of([nn.Parameter(torch.empty(elements)) for _ in gradients])
    experiment = SummaryWriter(f"{folder}/histograms")

    def add_histogram(step: int) -> None:
        for i, gradient in enumerate(gradients):
            experiment.add_histogram(str(i), gradient, step)
        experiment.flush()

    return {
        f"add_histogram, {elements:,} elements each": add_histogram,
        "counts by magnitude, as GradientMonitor(histograms=True)": lambda _: exponent_counts(
            plan, gradients, range(100), LOW_EXPONENT, HIGH_EXPONENT
        ),
        "the norms alone": lambda _: torch._foreach_norm(gradients),
    }
