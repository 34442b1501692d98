"""Final validation loss against the learning rate: plain, and with each learning-rate rule, on three small tasks.

Every run is a real `Trainer.fit` on one thread, at a constant rate; what stands in the tables is the median of the
seeds. With nothing else on the machine: `make bench-rates`. A smoke test of some seconds:
`python benchmarks/learning_rates.py --fast`.
"""

import argparse
import inspect
import logging
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from math import inf, isfinite, log
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from chart import Line, chart
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader

from lightning_calib import DistanceOverGradients, InverseNorm, LearningRateControl, Polyak, SpikeBackoff, ZClip

SEEDS = (0, 1, 2)  # of the weights and of the order of the data
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # any other character is read as a blank
CONTEXT = 32  # characters that the language model sees at most
TRAIN_ON = ("argparse", "ast", "configparser", "dataclasses", "difflib", "doctest", "email.message", "fractions")
VALIDATE_ON = ("statistics", "textwrap")
WORSE = 1.01  # above this multiple of the loss before the first step a run has diverged
NEAR = 0.1  # a rate is good if it gives up at most this share of what plain's best rate gains over guessing

Batch = tuple[Tensor, Tensor]
VARIANTS: dict[str, Callable[[], Callback | None]] = {
    "plain": lambda: None,
    "SpikeBackoff": lambda: LearningRateControl(SpikeBackoff()),
    "InverseNorm": lambda: LearningRateControl(InverseNorm()),
    "InverseNorm, open": lambda: LearningRateControl(InverseNorm(), max_factor=inf),
    "Polyak, open": lambda: LearningRateControl(Polyak(), max_factor=inf),
    "DoG, open": lambda: LearningRateControl(DistanceOverGradients(), max_factor=inf),
    "ZClip": lambda: ZClip(),
}


@dataclass(frozen=True)
class Task:
    """What is trained, with what, at which rates; `ticks` are those of the plot's loss axis."""

    name: str
    title: str
    model: Callable[[], nn.Module]
    train: Batch
    validation: Batch
    optimizer: type[Optimizer]
    rates: Sequence[float]
    steps: int
    batch_size: int
    ticks: Sequence[float]
    classes: int
    variants: Sequence[str] = tuple(VARIANTS)


class Block(nn.Module):
    """Attention to earlier characters, then a perceptron; LayerNorm before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, 2)]
        heads = nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class CharacterGPT(nn.Module):
    """Two layers; scores for the next character, shape (N, classes, length)."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(len(ALPHABET), width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads), nn.LayerNorm(width))
        self.head = nn.Linear(width, len(ALPHABET))
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places.weight[: text.shape[1]]
        return self.head(self.blocks(x)).transpose(1, 2)


class Run(LightningModule):
    def __init__(self, task: Task, rate: float) -> None:
        super().__init__()
        self.net, self.task, self.rate = task.model(), task, rate

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.trainer.should_stop = not loss.isfinite()  # such a run never comes back
        return loss

    def configure_optimizers(self) -> Optimizer:
        return self.task.optimizer(self.parameters(), lr=self.rate)

    @torch.no_grad()
    def validation_loss(self) -> float:
        inputs, labels = self.task.validation
        self.net.eval()
        return float(nn.functional.cross_entropy(self.net(inputs), labels))


def digits() -> tuple[Batch, Batch]:
    """Every fifth image is for validation."""
    found = load_digits()
    images, labels = torch.from_numpy(found.data).float() / 16 - 0.3, torch.from_numpy(found.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def windows(modules: Sequence[str], stride: int) -> Batch:
    """Pieces of the modules' source text, and the same one character on."""
    text = "".join(inspect.getsource(import_module(name)) for name in modules)
    codes = torch.tensor([max(ALPHABET.find(character), 1 if character != "\n" else 0) for character in text])
    pieces = codes.unfold(0, CONTEXT + 1, stride)
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def tasks() -> list[Task]:
    """The study."""
    seen, unseen = digits()
    text, other = windows(TRAIN_ON, CONTEXT), windows(VALIDATE_ON, 8 * CONTEXT)
    sgd, adam = ([10 ** (i / 2) for i in range(first, first + 9)] for first in (-5, -9))
    free = ("plain", "SpikeBackoff", "InverseNorm", "Polyak, open", "ZClip")
    scale = (2.5, 3, 3.5, 4, 4.5), len(ALPHABET)
    return [
        Task("digits", "Digits, SGD", perceptron, seen, unseen, SGD, sgd, 300, 64, (0.1, 0.2, 0.5, 1, 2), 10),
        Task("text-sgd", "Characters, SGD", CharacterGPT, text, other, SGD, sgd, 200, 16, *scale),
        Task("text-adamw", "Characters, AdamW", CharacterGPT, text, other, AdamW, adam, 200, 16, *scale, free),
    ]


def final_loss(task: Task, rate: float, variant: str, seed: int) -> float:
    """Train once; infinity if the run diverged: the loss is not finite, or higher than before the first step."""
    torch.manual_seed(seed)
    run, callback = Run(task, rate), VARIANTS[variant]()
    before = run.validation_loss()
    inputs, labels = task.train
    order = torch.cat([torch.randperm(len(labels)) for _ in range(1 + task.steps * task.batch_size // len(labels))])
    batches = [(inputs[i], labels[i]) for i in order[: task.steps * task.batch_size].split(task.batch_size)]
    trainer = Trainer(
        max_steps=task.steps,
        callbacks=[callback] if callback else [],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(run, DataLoader(batches, batch_size=None))
    after = run.validation_loss()
    return after if after < WORSE * before else inf


def cell(losses: Sequence[float], best: bool) -> str:
    """The median, in bold where it is the variant's best; how many seeds diverged."""
    lost, middle = sum(not isfinite(loss) for loss in losses), median(losses)
    if not isfinite(middle):
        return "✗"  # most of the seeds diverged
    return (f"**{middle:.3f}**" if best else f"{middle:.3f}") + (f" ({lost}✗)" if lost else "")


def report(task: Task, found: dict[str, list[list[float]]], seeds: int) -> str:
    """Two tables: the loss for each rate, and what it comes to."""
    medians = {name: [median(losses) for losses in column] for name, column in found.items()}
    plain, guess = min(medians["plain"]), log(task.classes)
    good = plain + NEAR * (guess - plain)
    told = f"{task.steps} steps, batches of {task.batch_size}, median of {seeds} seeds; guessing has loss {guess:.3f}; "
    lines = [f"### {task.title}", "", f"{told}a rate is good up to {good:.3f}.", ""]
    lines += [f"| rate | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    totals = f"good rates, of {len(task.rates)} | diverged runs, of {seeds * len(task.rates)}"
    for i, rate in enumerate(task.rates):
        cells = [cell(column[i], medians[name][i] == min(medians[name])) for name, column in found.items()]
        lines.append(f"| {rate:.2g} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| | best loss (its seeds) | at rate | {totals} |",
        "|---|---|---|---|---|",
    ]
    for name, column in found.items():
        best = min(medians[name])
        at = medians[name].index(best)
        near = sum(loss <= good for loss in medians[name])
        lost = sum(not isfinite(loss) for losses in column for loss in losses)
        spread = f"{best:.3f} ({min(column[at]):.3f} to {max(column[at]):.3f})"
        lines.append(f"| {name} | {spread} | {task.rates[at]:.2g} | {near} | {lost} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Print two tables per task, and draw its plot if told where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few steps at two rates, to see that everything works")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where to write learning-rates-<task>.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning_calib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    start, seeds = perf_counter(), SEEDS[:1] if options.fast else SEEDS
    for task in tasks():
        if options.fast:
            task = replace(task, steps=6, rates=task.rates[1:7:5])
        found = {
            name: [[final_loss(task, rate, name, seed) for seed in seeds] for rate in task.rates]
            for name in task.variants
        }
        print(report(task, found, len(seeds)), flush=True)
        if options.plots:
            # Rounded as in the table, so that the plot says what the table says.
            medians = {name: [round(median(losses), 3) for losses in column] for name, column in found.items()}
            lines = [Line(name, values, list(VARIANTS).index(name)) for name, values in medians.items()]
            axes = ("learning rate", "validation loss", "diverged")
            drawn = chart(task.title, *axes, task.rates, task.ticks, lines)
            (options.plots / f"learning-rates-{task.name}.svg").write_text(drawn)
    print(f"{perf_counter() - start:.0f} s, Python {platform.python_version()}, torch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
