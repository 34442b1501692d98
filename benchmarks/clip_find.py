"""A fit with what `clip_find` suggests, beside the same fit with each value of a grid and with none.

``PYTHONPATH=.:tests python -m benchmarks.clip_find`` trains (about 100 short fits) and prints the table; with
``--page`` it also writes it into docs/how-to/clip-value.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from report.planted.data import images, rows_of_images, text
from report.planted.fit import quiet
from report.planted.models import Recurrent, Transformer, cnn, mlp
from torch import Tensor, nn

from lightning_calib import GradientClip, Percentile, ZClip, ZScore, clip_find

PAGE = Path(__file__).parents[1] / "docs/how-to/clip-value.md"
STEPS, SEARCH, BATCH, SEEDS = 300, 200, 64, 3
GRID: dict[str, float | None] = {"0.1": 0.1, "0.3": 0.3, "1": 1.0, "3": 3.0, "none": None}
FOUND = "clip_find"
NAMES = {one.__name__: one for one in (GradientClip, Percentile, ZClip, ZScore)}  # of what is suggested


class Supervised(LightningModule):
    """Trains on batches drawn by step, so that every way sees the same ones; one in five examples is held out."""

    net: nn.Module

    def __init__(self, seed: int, data: Callable[[], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed, (x, y) = seed, data()
        held = torch.arange(len(x)) % 5 == 0
        self.seen, self.held = (x[~held], y[~held]), (x[held], y[held])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), y)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100_000 * self.seed + step)
        chosen = torch.randint(len(self.seen[0]), (BATCH,), generator=generator)
        return self.seen[0][chosen], self.seen[1][chosen]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(*self.batch(self.trainer.global_step))

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(STEPS))

    @torch.no_grad()
    def final(self) -> float:
        self.eval()
        return float(self.loss(*self.held))


class Digits(Supervised):
    """Images of digits, a CNN with BatchNorm, SGD."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, images)
        self.net = cnn()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Rows(Supervised):
    """The rows of the images as a sequence, a GRU, SGD."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, rows_of_images)
        self.net = Recurrent()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Symbols(Supervised):
    """The next symbol of a text, a transformer, AdamW with a warm-up of 100 steps."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, text)
        self.net = Transformer()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Ratings(Supervised):
    """Ratings from hidden factors, many of few users, with noise of heavy tails: sparse tables, SGD."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, ratings)
        self.users, self.items = nn.Embedding(400, 8, sparse=True), nn.Embedding(200, 8, sparse=True)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def score(self, x: Tensor) -> Tensor:
        return (self.users(x[:, 0]) * self.items(x[:, 1])).sum(1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.score(x), y[:, 0])

    @torch.no_grad()
    def final(self) -> float:
        """Against the ratings without noise."""
        x, y = self.held
        return float(nn.functional.mse_loss(self.score(x), y[:, 1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=2.0)


def ratings() -> tuple[Tensor, Tensor]:
    """Pairs of user and item, and of the rating with and without noise (Student's t with 2 degrees of freedom)."""
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(8000, generator=generator) ** 2 * size).long() for size in (400, 200)]
    users, items = torch.randn(400, 2, generator=generator), torch.randn(200, 2, generator=generator)
    clean, normal = (users[pairs[0]] * items[pairs[1]]).sum(1), torch.randn(3, 8000, generator=generator)
    noise = normal[0] / normal[1:].square().mean(0).sqrt()
    return torch.stack(pairs, dim=1), torch.stack([clean + 0.3 * noise, clean], dim=1)


class Gan(LightningModule):
    """Points on a ring of eight Gaussians: two networks, two Adams."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.generator, self.critic, self.seed = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1), seed
        self.automatic_optimization = False

    def real(self, number: int, random: torch.Generator) -> Tensor:
        angle = torch.randint(8, (number,), generator=random) * (torch.pi / 4)
        ring = torch.stack([angle.cos(), angle.sin()], dim=1)
        return ring + 0.1 * torch.randn(number, 2, generator=random)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        random = torch.Generator().manual_seed(100_000 * self.seed + self.trainer.global_step)
        second, first = self.optimizers()
        real, noise = self.real(BATCH, random), torch.randn(BATCH, 4, generator=random)
        softplus, fake = nn.functional.softplus, self.generator(noise)
        first.zero_grad()
        self.manual_backward((softplus(-self.critic(real)) + softplus(self.critic(fake.detach()))).mean())
        first.step()
        second.zero_grad()
        self.manual_backward(softplus(-self.critic(self.generator(noise))).mean())
        second.step()

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(STEPS))

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=1e-3, betas=(0.5, 0.9)) for one in (self.generator, self.critic)]

    @torch.no_grad()
    def final(self) -> float:
        """Energy distance of 1,000 points to 1,000 real ones."""
        random = torch.Generator().manual_seed(7)
        real, fake = self.real(1000, random), self.generator(torch.randn(1000, 4, generator=random))
        return float(
            2 * torch.cdist(real, fake).mean() - torch.cdist(real, real).mean() - torch.cdist(fake, fake).mean()
        )


TASKS: dict[str, Callable[[int], Any]] = {
    "digits, CNN, SGD": Digits,
    "rows, GRU, SGD": Rows,
    "text, transformer, AdamW, warm-up": Symbols,
    "ratings, sparse tables, SGD": Ratings,
    "ring, GAN, Adam": Gan,
}


class Fit(NamedTuple):
    """One fit: its final loss, and what clipped."""

    task: str
    way: str
    seed: int
    loss: float
    used: str


def fit(job: tuple[str, str, int]) -> Fit:
    """Search, if that is the way, and train."""
    torch.set_num_threads(1)
    task, way, seed = job
    options: dict[str, Any] = {"accelerator": "cpu", "barebones": True, "max_epochs": 1}
    callbacks: list[Callback] = []
    with quiet():
        if way == FOUND:
            used = repr(clip_find(Trainer(**options), TASKS[task](seed), num_steps=SEARCH))
            callbacks = [eval(used, NAMES)]
        else:
            used, callbacks = way, [] if GRID[way] is None else [GradientClip(GRID[way])]
        module = TASKS[task](seed)
        Trainer(callbacks=callbacks, **options).fit(module)
    loss = module.final()
    return Fit(task, way, seed, loss if math.isfinite(loss) else math.inf, used)


def table(found: list[Fit]) -> str:
    """Medians over the seeds; the noise is half the range of the best way's losses."""
    head = ["task", *GRID, FOUND, "suggested (of each seed)", "noise of the best", "within it", "better than the worst"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task in TASKS:
        mine = {way: [one for one in found if (one.task, one.way) == (task, way)] for way in (*GRID, FOUND)}
        middle = {way: statistics.median(one.loss for one in fits) for way, fits in mine.items()}
        grid = {way: middle[way] for way in GRID}
        best, worst = min(grid, key=grid.__getitem__), max(grid.values())
        losses = [one.loss for one in mine[best]]
        noise = (max(losses) - min(losses)) / 2
        cells = [task, *(f"{value:.3g}" for value in middle.values())]
        cells += ["; ".join(f"`{one.used}`" for one in mine[FOUND]), f"{noise:.2g}"]
        cells += ["yes" if middle[FOUND] <= middle[best] + noise else "no", "yes" if middle[FOUND] < worst else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--page", action="store_true", help="write the page's table")
    given = parser.parse_args()
    jobs = [(task, way, seed) for seed in range(given.seeds) for task in TASKS for way in (FOUND, *GRID)]
    found = []
    with Pool(2) as pool:
        for one in pool.imap(fit, jobs):
            found.append(one)
            print(one, file=sys.stderr, flush=True)
    told = table(found)
    print(told)
    if given.page:
        begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
        before, _, rest = PAGE.read_text().partition(begin)
        PAGE.write_text(f"{before}{begin}\n{told}\n\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
