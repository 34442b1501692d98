"""Twenty planted blow-ups: what is left of each without a guard, with plain clipping, with ZClip and with SpikeGuard.

``PYTHONPATH=.:tests python -m benchmarks.spikes --seeds 5 --save`` trains (500 short fits) and keeps the final
losses; ``--page`` writes the table of docs/training-spikes.md from what was kept.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from report.planted.data import digits, images, rows_of_images, text
from report.planted.fit import quiet
from report.planted.models import Recurrent, Transformer, cnn, mlp
from torch import Tensor, nn

from lightning_calib import GradientClip, SpikeGuard, ZClip

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/spikes.json", ROOT / "docs/training-spikes.md"
STEPS, AT, BATCH = 300, 170, 64
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "MLP": (lambda: mlp(64, 64, 64, 10), digits),
    "CNN + BatchNorm": (cnn, images),
    "GRU": (Recurrent, rows_of_images),
    "transformer": (Transformer, text),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3),
}
WAYS: dict[str, Callable[[], list[Callback]]] = {
    "never saw it": list,
    "nothing": list,
    "clip 1.0": lambda: [GradientClip(1.0)],
    "ZClip": lambda: [ZClip()],
    "SpikeGuard": lambda: [SpikeGuard()],
}


class Fault(NamedTuple):
    """What is planted: the steps on which batches are bad, or on which the weights are ruined."""

    name: str
    steps: range
    batches: bool = True


ONE, BURST = Fault("one batch, loss x 300", range(AT, AT + 1)), Fault("four batches, loss x 300", range(AT, AT + 4))
LABELS = Fault("fifteen batches of one label", range(AT, AT + 15))
RATE = Fault("rate x 100 for three steps", range(AT, AT + 3), batches=False)
INPUTS = Fault("four batches, inputs x 300", range(AT, AT + 4))
FLIP = Fault("a weight's exponent bit flips", range(AT, AT + 1), batches=False)
CASES = [
    *[(BURST, net, optimizer) for net, optimizer in (("MLP", "SGD"), ("MLP", "AdamW"), ("CNN + BatchNorm", "SGD"),
      ("CNN + BatchNorm", "AdamW"), ("GRU", "AdamW"), ("transformer", "AdamW"))],
    *[(ONE, net, optimizer) for net, optimizer in (("GRU", "SGD"), ("transformer", "AdamW"))],
    *[(LABELS, net, "AdamW") for net in ("MLP", "CNN + BatchNorm", "GRU", "transformer")],
    *[(RATE, net, optimizer) for net, optimizer in (("MLP", "SGD"), ("CNN + BatchNorm", "AdamW"), ("GRU", "AdamW"),
      ("transformer", "AdamW"))],
    *[(INPUTS, net, "AdamW") for net in ("MLP", "CNN + BatchNorm")],
    *[(FLIP, net, "AdamW") for net in ("MLP", "transformer")],
]  # fmt: skip


class Planted(LightningModule):
    """Trains on batches drawn by step, so that every way sees the same ones; one in five examples is held out."""

    def __init__(self, fault: Fault, net: str, optimizer: str, seed: int, *, spared: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        make, data = NETS[net]
        self.net, self.make, self.fault, self.spared, self.seed = make(), OPTIMIZERS[optimizer], fault, spared, seed
        x, y = data()
        held = torch.arange(len(x)) % 5 == 0
        self.train_set, self.held = (x[~held], y[~held]), (x[held], y[held])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        step, fault = self.trainer.global_step, self.fault
        generator = torch.Generator().manual_seed(100_000 * self.seed + step)
        chosen = torch.randint(len(self.train_set[0]), (BATCH,), generator=generator)
        x, y = (one[chosen] for one in self.train_set)
        if step not in fault.steps or not fault.batches:
            return nn.functional.cross_entropy(self.net(x), y)
        if self.spared:
            return None
        x = 300 * x if fault is INPUTS else x
        y = torch.zeros_like(y) if fault is LABELS else y
        return nn.functional.cross_entropy(self.net(x), y) * (300 if fault in (ONE, BURST) else 1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step, optimizer = self.trainer.global_step, self.trainer.optimizers[0]
        if self.fault is RATE and not self.spared:
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * (100 if step in self.fault.steps else 1)
        if self.fault is FLIP and step in self.fault.steps and not self.spared:
            with torch.no_grad():  # the highest bit of the exponent, where it is not set: times 2^128 would be inf
                max(self.parameters(), key=Tensor.numel).view(-1)[3].mul_(2.0**20)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(STEPS))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())

    @torch.no_grad()
    def final(self) -> float:
        self.net.eval()
        return float(nn.functional.cross_entropy(self.net(self.held[0]), self.held[1]))


def fit(job: tuple[int, str, int]) -> tuple[int, str, int, float, list[int]]:
    """One run: its final loss, and what SpikeGuard did: spikes, skipped, rewinds."""
    torch.set_num_threads(1)
    case, way, seed = job
    module, callbacks = Planted(*CASES[case], seed, spared=way == "never saw it"), WAYS[way]()
    with quiet():
        trainer = Trainer(max_steps=STEPS, callbacks=callbacks, accelerator="cpu", logger=False, barebones=True)
        try:
            trainer.fit(module)
            loss = module.final()
        except RuntimeError:
            loss = math.nan
    did = []
    if way == "SpikeGuard":
        state = callbacks[0].state_dict()
        own, tally = state["optimizers"]["0"]["ladder"], state["tally"]["0"]
        did = [own["spikes"], tally["skipped"], own["rewinds"]]
    return case, way, seed, loss, did


def train(seeds: int) -> None:
    jobs = [(case, way, seed) for seed in range(seeds) for case in range(len(CASES)) for way in WAYS]
    found: dict[str, Any] = {}
    with Pool(2) as pool:
        for i, (case, way, seed, loss, did) in enumerate(pool.imap(fit, jobs)):
            found[f"{case}|{way}|{seed}"] = [loss, did]
            if i % 20 == 19 or i + 1 == len(jobs):
                RESULTS.write_text(json.dumps(found, indent=0) + "\n")


def table() -> str:
    """Ratios to the run that never saw it: the median over the seeds; in the last columns what the guard did."""
    found = json.loads(RESULTS.read_text())
    head = ["planted", "network", "optimizer", "seeds", *WAYS, "spread", "spikes, rewinds", "as if never seen"]
    lines, good, rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], 0, 0
    for case, (fault, net, optimizer) in enumerate(CASES):
        seeds = [seed for seed in range(99) if all(f"{case}|{way}|{seed}" in found for way in WAYS)]
        if not seeds:
            continue
        losses = {way: [found[f"{case}|{way}|{seed}"][0] for seed in seeds] for way in WAYS}
        clean, middle = losses["never saw it"], statistics.median(losses["never saw it"])
        ratios = [statistics.median(a / b for a, b in zip(losses[way], clean, strict=True)) for way in list(WAYS)[1:]]
        spread = (max(clean) - min(clean)) / middle / 2
        right = ratios[-1] <= 1 + max(0.05, spread)
        did = [
            statistics.median(each) for each in zip(*(found[f"{case}|SpikeGuard|{s}"][1] for s in seeds), strict=True)
        ]
        cells = [fault.name, net, optimizer, str(len(seeds)), f"{middle:.3g}", *(f"{one:.3g}" for one in ratios)]
        cells += [f"{100 * spread:.0f} %", f"{did[0]:g}, {did[2]:g}", "yes" if right else "no"]
        lines.append(f"| {' | '.join(cells)} |")
        good, rows = good + right, rows + 1
    told = "within 5 %, or within half the range of the runs that never saw it, which is their spread"
    return "\n".join([*lines, "", f"{good} of {rows} with SpikeGuard: {told}."])


def write_page() -> None:
    text_of_page, begin, end = PAGE.read_text(), "<!-- table -->\n", "<!-- end of table -->\n"
    before, _, rest = text_of_page.partition(begin)
    PAGE.write_text(before + begin + "\n" + table() + "\n\n" + end + rest.partition(end)[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="train, and keep the final losses")
    parser.add_argument("--page", action="store_true", help="write the page's table")
    given = parser.parse_args()
    if given.save:
        train(given.seeds)
    if given.page:
        write_page()
    if not given.page:
        print(table())
