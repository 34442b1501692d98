"""What shadows predict against what the same policies do when they act, on five small tasks; and what shadows cost.

``PYTHONPATH=.:tests python -m benchmarks.shadows --page`` trains, prints, and writes the tables of
docs/how-to/shadow.md.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from report.planted.data import bags, digits, images, rows_of_images, text
from report.planted.fit import quiet
from report.planted.models import Bag, Recurrent, Transformer, cnn, mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.interleave import FIRST, Clock
from benchmarks.variants import judged
from lightning_calib import (
    AGC,
    EMARelative,
    GradientClip,
    GradientMonitor,
    MaxNorm,
    Percentile,
    Policy,
    ZScore,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/how-to/shadow.md"
STEPS, BATCH, SGD_RATE = 300, 64, 0.1


class Task(LightningModule):
    """Trains on batches drawn by step, so that every run of a seed sees the same ones."""

    def __init__(
        self, net: nn.Module, data: tuple[Tensor, Tensor], kind: str, lr: float, warmup: int, seed: int
    ) -> None:
        super().__init__()
        self.net, self.data, self.kind, self.lr, self.warmup, self.seed = net, data, kind, lr, warmup, seed

    def drawn(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100_000 * self.seed + self.trainer.global_step)
        chosen = torch.randint(len(self.data[0]), (BATCH,), generator=generator)
        return self.data[0][chosen], self.data[1][chosen]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = self.drawn()
        return nn.functional.cross_entropy(self.net(x), y)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.arange(STEPS))

    def configure_optimizers(self) -> Any:
        if self.kind == "SGD":
            return torch.optim.SGD(self.parameters(), SGD_RATE, momentum=0.9)
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rise, "interval": "step"}}


class Gan(LightningModule):
    """Digits out of noise; the discriminator steps first. Its second optimizer is the generator's."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        self.kind, self.seed, self.automatic_optimization = kind, seed, False
        self.critic, self.maker = mlp(64, 64, 1), nn.Sequential(mlp(16, 64, 64), nn.Tanh())
        self.data = digits()[0]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(100_000 * self.seed + int(batch_idx))
        real = self.data[torch.randint(len(self.data), (BATCH,), generator=generator)]
        noise, loss = torch.randn(BATCH, 16, generator=generator), nn.functional.binary_cross_entropy_with_logits
        first, second = self.optimizers()
        ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(loss(self.critic(real), ones) + loss(self.critic(self.maker(noise).detach()), zeros))
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        self.manual_backward(loss(self.critic(self.maker(noise)), ones))
        second.step()
        self.untoggle_optimizer(second)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.arange(STEPS))

    def configure_optimizers(self) -> Any:
        parts = (self.critic, self.maker)
        if self.kind == "SGD":
            return [torch.optim.SGD(one.parameters(), SGD_RATE / 5, momentum=0.9) for one in parts]
        return [torch.optim.AdamW(one.parameters(), 2e-3, betas=(0.5, 0.999)) for one in parts]


def _task(net: Callable[[], nn.Module], data: Callable[[], Any], lr: float = 3e-3, warmup: int = 0) -> Any:
    return lambda kind, seed: Task(net(), data(), kind, lr, warmup, seed)


TASKS: dict[str, Callable[[str, int], LightningModule]] = {
    "digits CNN": _task(cnn, images),
    "GRU": _task(Recurrent, rows_of_images),
    "transformer, warm-up": _task(Transformer, text, warmup=50),
    "sparse recommender": _task(Bag, bags),
    "GAN": Gan,
}
FIXED = {"MaxNorm(own 50th)": 50, "MaxNorm(own 90th)": 90, "MaxNorm(own 95th)": 95}  # percentiles of the plain run
ADAPTIVE: dict[str, Policy] = {
    "Percentile(90)": Percentile(90),
    "Percentile(95)": Percentile(95),
    "ZScore()": ZScore(),
    "EMARelative()": EMARelative(),
}
ALWAYS: dict[str, Policy] = {"MaxNorm(0.5)": MaxNorm(0.5), "MaxNorm(1.0)": MaxNorm(1.0)}


class Norms(Callback):
    """Of each optimizer, in the order of the steps."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        index = [one is optimizer for one in trainer.optimizers].index(True)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.seen.setdefault(index, []).append(float(torch.stack([one.norm() for one in grads]).norm()))


def train(task: str, kind: str, seed: int, *callbacks: Any) -> None:
    """One run, always the same but for what the callbacks do."""
    torch.manual_seed(seed)
    module = TASKS[task](kind, seed)
    steps = STEPS * (2 if isinstance(module, Gan) else 1)
    with quiet():
        Trainer(
            max_steps=steps,
            max_epochs=-1,
            callbacks=list(callbacks),
            logger=False,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module)


class Line(NamedTuple):
    """Shares of the steps: means over seeds, and the range of the real share minus the predicted one."""

    task: str
    kind: str
    policy: str
    predicted: float
    real: float
    least: float
    most: float

    @property
    def cell(self) -> str:
        """In percent."""
        least, most = (round(100 * one, 1) + 0.0 for one in (self.least, self.most))  # no "-0.0"
        off = f"{least:+.1f} to {most:+.1f}"
        return f"{100 * self.predicted:.1f} / {100 * self.real:.1f} ({off})"


def predicted(task: str, kind: str, seed: int) -> tuple[dict[str, Policy], list[Any]]:
    """Two plain runs: the first for its percentiles; the second judges everything."""
    norms = Norms()
    train(task, kind, seed, norms)
    first = torch.tensor(norms.seen[0])
    policies = {name: MaxNorm(float(first.quantile(p / 100))) for name, p in FIXED.items()} | ADAPTIVE
    policies |= {name: one for name, one in ALWAYS.items() if one not in policies.values()}
    monitor = GradientMonitor(shadow=[GradientClip(one, name=name) for name, one in policies.items()])
    train(task, kind, seed, monitor)
    return policies, [one for one in monitor.report().shadow if one.optimizer == 0]


def rate(task: str, kind: str, seed: int, policy: Policy) -> float:
    """The share of the steps of the first optimizer on which it acted."""
    clip = GradientClip(policy)
    train(task, kind, seed, clip)
    count = clip.state_dict()["optimizers"]["0"]["count"]
    return int(count["fired"]) / count["steps"]


def compare(tasks: Sequence[str], kinds: Sequence[str], seeds: int) -> list[Line]:
    """Every policy's predicted and real rate."""
    found = []
    for task in tasks:
        for kind in kinds:
            both: dict[str, list[tuple[float, float]]] = {}
            for seed in range(seeds):
                policies, shadows = predicted(task, kind, seed)
                for one in shadows:
                    both.setdefault(one.name, []).append((one.clip_rate, rate(task, kind, seed, policies[one.name])))
            for name, pairs in both.items():
                said, did = (fmean(each) for each in zip(*pairs, strict=True))
                off = [real - predicted for predicted, real in pairs]
                found.append(Line(task, kind, name, said, did, min(off), max(off)))
                print(f"{task:22s} {kind:6s} {name:20s} {found[-1].cell}", flush=True)
    return found


# ---------------------------------------------------------------------------------------------------- cost

COSTS: dict[str, Callable[[], list[Any]]] = {
    "no callback": list,
    "`GradientMonitor()`": lambda: [GradientMonitor()],
    "one dry run and the monitor": lambda: [GradientClip(ZScore(), dry_run=True), GradientMonitor()],
    "three shadows, global": lambda: [GradientMonitor(shadow=judged(3))],
    "eight shadows, global": lambda: [GradientMonitor(shadow=judged(8))],
    "`shadow=True`": lambda: [GradientMonitor(shadow=True)],
    "`AGC()`": lambda: [GradientMonitor(shadow=[AGC()])],
    "`ZScore()` by unit": lambda: [GradientMonitor(shadow=[GradientClip(ZScore(), scope="unit")])],
}
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "MLP": (lambda: mlp(64, 64, 64, 10), digits),
    "CNN": (cnn, images),
    "transformer": (Transformer, text),
}


def step_time(net: str, make: Callable[[], list[Any]], steps: int = 100) -> float:
    """Process time of a whole step of which nothing is logged, in seconds."""
    torch.manual_seed(0)
    clock, (build, data) = Clock(FIRST, FIRST + steps), NETS[net]
    gc.collect()
    with quiet():
        Trainer(
            max_steps=FIRST + steps + 1,
            max_epochs=-1,
            callbacks=[clock, *make()],
            logger=False,
            log_every_n_steps=10**9,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Task(build(), data(), "AdamW", 1e-3, 0, 0))
    return clock.seconds


def costs(rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """By network and row: the median step in seconds, and the median ratio to one dry run, interleaved."""
    found = {}
    for net in NETS:
        times: dict[str, list[float]] = {name: [] for name in COSTS}
        step_time(net, COSTS["eight shadows, global"], 5)
        for _ in range(rounds):
            for name, make in COSTS.items():
                times[name].append(step_time(net, make))
        base = times["one dry run and the monitor"]
        found[net] = {
            name: (median(each), median(a / b for a, b in zip(each, base, strict=True))) for name, each in times.items()
        }
        for name, (seconds, ratio) in found[net].items():
            print(f"{net:12s} {name:30s} {1e6 * seconds:7.0f} us {ratio:.2f}", flush=True)
    return found


# ---------------------------------------------------------------------------------------------------- page


def tables(lines: Sequence[Line], cost: dict[str, dict[str, tuple[float, float]]]) -> dict[str, str]:
    """By the name of the place that they take on the page."""
    found = {}
    for kind in dict.fromkeys(line.kind for line in lines):
        tasks = list(dict.fromkeys(line.task for line in lines))
        rows = [f"| {kind} | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
        for policy in dict.fromkeys(line.policy for line in lines):
            cells = {line.task: line for line in lines if (line.kind, line.policy) == (kind, policy)}
            each = [cells[t].cell if t in cells else "" for t in tasks]
            rows.append(f"| `{policy}` | {' | '.join(each)} |")
        found[kind] = "\n".join(rows)
    rows = [f"| whole step, of one dry run's | {' | '.join(cost)} |", "|---" * (len(cost) + 1) + "|"]
    for name in COSTS:
        each = [f"{cost[net][name][1]:.2f} ({1e3 * cost[net][name][0]:.2f} ms)" for net in cost]
        rows.append(f"| {name} | {' | '.join(each)} |")
    return {**found, "cost": "\n".join(rows)}


def write(found: dict[str, str]) -> None:
    """Each between its two marks."""
    page = PAGE.read_text()
    for name, table in found.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        head, rest = page.split(begin)
        page = f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of the cost")
    parser.add_argument("--only", nargs="*", default=list(TASKS), help="tasks")
    parser.add_argument("--page", action="store_true", help="write the tables into the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = perf_counter()
    found = tables(compare(given.only, ("AdamW", "SGD"), given.seeds), costs(given.rounds))
    print("\n\n".join(found.values()), f"\n{perf_counter() - start:.0f} seconds")
    if given.page:
        write(found)


if __name__ == "__main__":
    main()
