"""How files grow: events, checkpoints, and what the "Gradients" tab answers from them."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.growth import Curve
from benchmarks.interleave import trainer
from benchmarks.models import FALLING, Given, small
from benchmarks.variants import Variant, unlogged
from lightning_calib import GradientMonitor

ROWS = {10: (100, 1000), 100: (100, 1000, 10_000), 1000: (100, 1000)}  # by tensors
TENSORS = (10, 100, 1000)
TAB = ((10, 1000), (100, 1000), (1000, 100), (1000, 1000))  # layers, rows
STEPS = 30


class FileSize(Callback):
    """Bytes of the event file once so many rows are in it."""

    def __init__(self, rows: tuple[int, ...], folder: str) -> None:
        self.rows, self.folder = rows, Path(folder)
        self.found: dict[int, int] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.rows:
            trainer.logger.experiment.flush()  # type: ignore[union-attr]
            self.found[batch_idx] = sum(file.stat().st_size for file in self.folder.rglob("events*"))


def event_file(quick: bool = False) -> Curve:
    """Bytes of the event file of a fit in which `GradientMonitor` logs every step, by tensors and rows."""
    found: dict[int, dict[str, Any]] = {}
    for tensors, rows in ({10: (5,)} if quick else ROWS).items():
        model = Given(small(tensors))
        model.steps, model.level = max(rows) + 1, FALLING ** (100 / max(rows))
        with TemporaryDirectory() as folder:
            size = FileSize(rows, folder)
            monitor = Variant("GradientMonitor()", "", lambda: [GradientMonitor()], tab=True)
            trainer(monitor, max(rows) + 1, folder, 1, size).fit(model)
        for count, size_ in size.found.items():
            found.setdefault(count, {"x": count})[f"{tensors:,} tensors"] = size_
    return list(found.values())


def checkpoint(quick: bool = False) -> Curve:
    """Bytes that each callback adds to a checkpoint after some steps, by tensors."""
    found: Curve = []
    for tensors in TENSORS[: 1 if quick else None]:
        point: dict[str, Any] = {"x": tensors}
        model = Given(small(tensors))
        for variant in unlogged():
            if variant.side == "firing" and variant.name in point:
                continue
            model.level, model.steps = FALLING, STEPS
            with TemporaryDirectory() as folder:
                fitted = trainer(variant, STEPS, folder, 10**9, Callback())
                fitted.fit(model)
                point[variant.name] = sum(_bytes(one.state_dict()) for one in _ours(fitted))
        found.append(point)
    return found


def tab(quick: bool = False) -> Curve:
    """Milliseconds until the tab has an answer, and its bytes, by layers, rows and TensorBoard's loader."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "tensorboard"))
    from board import LOADERS, board
    from written import GLOBAL_NAMES, layers, totals, writer

    found: Curve = []
    for count, rows in TAB[: 1 if quick else None]:
        names = [f"model.blocks.{i // 10}.part{i % 10}.weight" for i in range(count)]
        rows = 20 if quick else rows
        with TemporaryDirectory() as folder:
            with writer(Path(folder)) as out:
                for step in range(rows):
                    out.write([layers(names, torch.rand(count, 5)), totals(torch.rand(len(GLOBAL_NAMES)))], step)
            for loader in LOADERS[-1:] if quick else LOADERS:
                point: dict[str, Any] = {"x": f"{count:,} layers, {rows:,} rows, {loader} loader"}
                with board(Path(folder), loader) as served:
                    start = perf_counter()
                    served.until(lambda one, last=rows - 1: _last(one) == last, seconds=120)
                    point["first read, ms"] = round(1e3 * (perf_counter() - start), 1)
                    for route, query in (("layers", {"stat": "peak"}), ("node", {"path": ""}), ("globals", {})):
                        times = []
                        for _ in range(1 if quick else 5):
                            start = perf_counter()
                            answer = served.ask(route, run=".", **query)
                            times.append(perf_counter() - start)
                        point |= {
                            f"{route}, ms": round(1e3 * median(times), 1),
                            f"{route}, kB": len(answer.data) // 1000,
                        }
                found.append(point)
    return found


def _last(served: Any) -> int:
    optimizers = served.runs().get(".", {}).get("optimizers", [])
    return int(optimizers[0]["last_step"]) if optimizers else -1


def _ours(fitted: Trainer) -> list[Callback]:
    return [one for one in fitted.callbacks if type(one).__module__.startswith("lightning_calib")]  # type: ignore[attr-defined]


def _bytes(state: dict[str, Any]) -> int:
    written = BytesIO()
    torch.save(state, written)
    return len(written.getvalue())
