"""Cost of what the "Gradients" tab needs, against the usual ways of logging every layer.

Every variant runs once per round, interleaved with the others, in one process on one thread; the tables give medians
over the rounds. Run it with nothing else on the machine: `make bench-dashboard`.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from lightning_calib import GradientMonitor
from lightning_calib.dashboard.event_file import Record, RecordWriter
from lightning_calib.dashboard.record_stream import RecordStream
from lightning_calib.dashboard.records import Logged, Rows
from lightning_calib.functional.exponent_counts import exponent_counts
from lightning_calib.functional.plan import Plan
from lightning_calib.tensorboard.contract import GLOBAL_NAMES, HIGH_EXPONENT, LOW_EXPONENT

LAYERS = 1000
Variants = dict[str, Callable[[int], object]]


def interleaved(variants: Variants, rounds: int) -> dict[str, float]:
    """Median seconds of each variant, once per round; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, run in variants.items():
            start = perf_counter()
            run(round_)
            times[name].append(perf_counter() - start)
    return {name: median(found[1:]) for name, found in times.items()}


def table(title: str, found: dict[str, float], against: str, unit: str = "ms") -> None:
    scale = 1e3 if unit == "ms" else 1.0
    print(f"\n### {title}\n\n| | {unit} | / {against} |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {scale * seconds:.2f} | {seconds / found[against]:.3f} |")


def writing(folder: str) -> Variants:
    """What happens on the host when the numbers of a logged step are there, until they are in the file."""
    experiments = [SummaryWriter(f"{folder}/{i}") for i in range(5)]
    names = tuple(f"encoder.{i // 10}.block.{i % 10}.weight" for i in range(LAYERS))
    rows = Rows(0, "AdamW", "", names, names, (2,) * LAYERS, (False,) * LAYERS)
    stream, about = RecordStream(rows), {"kind": "layers", "optimizer": 0}
    writers = [RecordWriter(experiment) for experiment in experiments]

    def scalars(step: int) -> None:
        for i, name in enumerate(names):
            experiments[0].add_scalar(name, float(i), step)
        experiments[0].flush()

    def whole(step: int) -> None:
        idle = torch.zeros(LAYERS, dtype=torch.bool)
        logged = Logged(step, torch.rand(LAYERS, 5), torch.rand(len(GLOBAL_NAMES)), None, idle)
        nonlocal stream
        records, stream = stream.after(logged)
        writers[4].write(records, step)
        experiments[4].flush()

    def tensor(columns: int, writer: RecordWriter) -> Callable[[int], None]:
        def write(step: int) -> None:
            writer.write([Record(f"t{columns}", about, torch.rand(LAYERS, columns))], step)
            writer.experiment.flush()

        return write

    return {
        "add_scalar, 1,000 tags": scalars,
        "one tensor summary 1,000 x 1": tensor(1, writers[1]),
        "one tensor summary 1,000 x 5": tensor(5, writers[2]),
        "one tensor summary 1,000 x 8": tensor(8, writers[3]),
        "all of a row: layers, globals, events, their memory": whole,
    }


def histograms(folder: str, count: int = 100, elements: int = 10**6) -> Variants:
    """Counting the magnitudes of 100 gradients of 1,000,000 elements."""
    gradients = [1e-3 * torch.randn(elements) for _ in range(count)]
    plan = Plan.of([nn.Parameter(torch.empty(elements)) for _ in gradients])
    experiment = SummaryWriter(folder)

    def add_histogram(step: int) -> None:
        for i, gradient in enumerate(gradients):
            experiment.add_histogram(str(i), gradient, step)
        experiment.flush()

    return {
        "add_histogram": add_histogram,
        "magnitudes": lambda step: exponent_counts(plan, gradients, range(count), LOW_EXPONENT, HIGH_EXPONENT),
        "norms alone": lambda step: torch._foreach_norm(gradients),
    }


class Many(LightningModule):
    """1,000 tensors of 32 and of 32 x 32 elements, and a loss that is nearly free."""

    def __init__(self, *, log_dict: bool) -> None:
        super().__init__()
        shapes = [(32, 32), (32,)] * (LAYERS // 2)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
        self.told = {f"grad/{name}": 1.0 for name, _ in self.named_parameters()} if log_dict else {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.told:
            self.log_dict(self.told)
        return torch.cat([weight.flatten() for weight in self.weights]).square().mean()

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(10**6))  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Clock(Callback):
    """Seconds from one batch to the next."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: object) -> None:
        self.times.append(perf_counter())


def fits(folder: str, rounds: int, steps: int = 12) -> dict[str, float]:
    """Seconds per step of real fits in which every step is logged."""
    variants: dict[str, tuple[list[Callback], bool]] = {
        "nothing": ([], False),
        "log_dict of 1,000 values": ([], True),
        "GradientMonitor(layers=False)": ([GradientMonitor(1, layers=False)], False),
        "GradientMonitor()": ([GradientMonitor(1)], False),
        "GradientMonitor(histograms=True)": ([GradientMonitor(1, histograms=True)], False),
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, (callbacks, log_dict) in variants.items():
            clock, logger = Clock(), TensorBoardLogger(folder)
            quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
            trainer = Trainer(
                logger=logger,
                callbacks=[*callbacks, clock],
                max_steps=steps,
                accelerator="cpu",
                log_every_n_steps=1,
                **quiet,  # type: ignore[arg-type]
            )
            trainer.fit(Many(log_dict=log_dict))
            ticks = clock.times
            found[name] += [b - a for a, b in pairwise(ticks[2:])]
    return {name: median(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_calib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        found = interleaved(writing(f"{folder}/writing"), 4 * rounds)
        table("Writing one logged step, 1,000 tensors", found, "add_scalar, 1,000 tags")
        found = interleaved(histograms(f"{folder}/histograms"), max(3, rounds // 3))
        table("Histograms of 100 tensors of 1,000,000 elements", found, "add_histogram", "s")
        found = fits(f"{folder}/fits", max(2, rounds // 3))
        table("A whole step that is logged, 1,000 small tensors", found, "nothing")
        sizes = {path.parent.name: path.stat().st_size for path in Path(f"{folder}/writing").glob("*/events*")}
        print(f"\nBytes of {4 * rounds + 1} steps: {sizes}")


if __name__ == "__main__":
    main()
