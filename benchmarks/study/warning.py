"""Which signal rises before the loss when training is about to blow up, by how many steps, and how often for nothing.

``python -m benchmarks.study.warning`` trains (some minutes) and keeps the steps of the alarms in a CSV.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.study.arms import OPTIMIZERS
from benchmarks.study.tasks import task_of

RESULTS = Path(__file__).parents[1] / "results/early_warning.csv"
STEPS, AT, SEEDS, WINDOW = 300, 170, (0, 1, 2, 3, 4), 50
DEVIATIONS, RATIO = 4.0, 3.0  # of the rule, the same for every signal: SpikeGuard's own
NETS = {  # task, optimizer, rate, batch
    "perceptron, SGD": ("perceptron", "sgd", 0.03, 64),
    "perceptron, AdamW": ("perceptron", "adamw", 0.003, 64),
    "CNN with BatchNorm, AdamW": ("images", "adamw", 0.003, 64),
    "GPT, SGD": ("language", "plain-sgd", 0.3, 16),
    "GPT, AdamW": ("language", "adamw", 0.003, 16),
}
FAULTS = ("none", "rate x 100 from one step on", "rate grows by 5 % a step", "four batches, inputs x 30",
          "labels of one class from one step on", "a weight's exponent bit flips")  # fmt: skip
SIGNALS = {
    "loss": "the batch's loss",
    "norm": "norm of the whole gradient",
    "layer norm": "largest norm of a tensor's gradient over its own median",
    "update norm": "norm of the step that the weights take",
    "layer ratio": "largest norm of a tensor's step over its weights' norm, over its own median",
}


class Run(NamedTuple):
    """The first alarm of each signal from the fault on, nan for none, and the alarms before the fault."""

    fault: str
    net: str
    seed: int
    first: dict[str, float]
    false: dict[str, int]


def alarms(values: Sequence[float]) -> list[int]:
    """Steps that are not finite, or four deviations and three times above the last 50 steps that were no alarm.

    The deviations are of the logarithms from their mean, the ratio is to the median.
    """
    calm: list[float] = []
    found = []
    for step, value in enumerate(values):
        last = calm[-WINDOW:]
        if not math.isfinite(value):
            found.append(step)
            continue
        value = max(value, 1e-30)
        if len(last) == WINDOW:
            logs = [math.log(one) for one in last]
            limit = statistics.fmean(logs) + DEVIATIONS * statistics.pstdev(logs)
            if math.log(value) > limit and value > RATIO * statistics.median(last):
                found.append(step)
                continue
        calm.append(value)
    return found


def own_level(columns: Sequence[Tensor]) -> list[float]:
    """The largest of several series at each step, each over its own median of the last 50 steps."""
    table = torch.stack(list(columns)).clamp(min=1e-30)
    found = []
    for step in range(len(table)):
        level = table[max(0, step - WINDOW) : step + 1].nanmedian(0).values
        found.append(float((table[step] / level).max()))
    return found


def course(fault: str, net: str, seed: int) -> dict[str, list[float]]:
    """Trains, and returns each signal at each step."""
    name, optimizer_name, rate, batch = NETS[net]
    task = task_of(name, {}, None)
    torch.manual_seed(seed)
    model = task.net()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), rate)
    random = torch.Generator().manual_seed(20_000 + seed)
    named = list(model.named_parameters())
    losses, norms, updates, layer_norms, layer_ratios = [], [], [], [], []
    for step in range(STEPS):
        chosen = torch.randint(len(task.data.train[0]), (batch,), generator=random)
        x, y = (part[chosen] for part in task.data.train)
        after = step - AT
        if fault == FAULTS[1] and after == 0:
            optimizer.param_groups[0]["lr"] = 100 * rate
        if fault == FAULTS[2] and after >= 0:
            optimizer.param_groups[0]["lr"] = rate * 1.05 ** (after + 1)
        if fault == FAULTS[3] and 0 <= after < 4:
            x = 30 * x if x.is_floating_point() else torch.randint_like(x, 128)
        if fault == FAULTS[4] and after >= 0:
            y = torch.zeros_like(y)
        if fault == FAULTS[5] and after == 0:
            with torch.no_grad():
                flat = next(one for _, one in named if one.dim() > 1).view(-1)
                flat[7] *= 2.0**20
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        gradients = torch.stack([one.grad.norm() for _, one in named if one.grad is not None])
        before = [one.detach().clone() for _, one in named]
        optimizer.step()
        steps = torch.stack([(one.detach() - old).norm() for (_, one), old in zip(named, before, strict=True)])
        weights = torch.stack([old.norm() for old in before]).clamp(min=1e-3)
        losses.append(float(loss))
        norms.append(float(gradients.norm()))
        updates.append(float(steps.norm()))
        layer_norms.append(gradients)
        layer_ratios.append(steps / weights)
        if not math.isfinite(losses[-1]):
            break
    series = (losses, norms, own_level(layer_norms), updates, own_level(layer_ratios))
    return dict(zip(SIGNALS, series, strict=True))


def watch(fault: str, net: str, seed: int) -> Run:
    found = {signal: alarms(values) for signal, values in course(fault, net, seed).items()}
    first = {
        signal: float(min((one for one in steps if one >= AT), default=math.nan)) for signal, steps in found.items()
    }
    early = {signal: sum(one < AT or fault == "none" for one in steps) for signal, steps in found.items()}
    return Run(fault, net, seed, first, early)


def write(runs: Sequence[Run], path: Path = RESULTS) -> None:
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["fault", "net", "seed", *SIGNALS, *(f"false {one}" for one in SIGNALS)])
        for run in runs:
            steps = ["" if math.isnan(one) else int(one) for one in run.first.values()]
            writer.writerow([run.fault, run.net, run.seed, *steps, *run.false.values()])


def read(path: Path = RESULTS) -> list[Run]:
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        return [
            Run(
                line["fault"], line["net"], int(line["seed"]),
                {one: float(line[one] or "nan") for one in SIGNALS},
                {one: int(line[f"false {one}"]) for one in SIGNALS},
            )
            for line in csv.DictReader(lines)
        ]  # fmt: skip


def table(runs: Sequence[Run]) -> str:
    """For each fault: how many runs blew up, and how many steps before the loss each signal rose."""
    signals = list(SIGNALS)[1:]
    lines = [f"| planted | runs whose loss rose | {' | '.join(signals)} |", "|---" * (len(signals) + 2) + "|"]
    for fault in FAULTS[1:]:
        mine = [run for run in runs if run.fault == fault]
        rose = [run for run in mine if not math.isnan(run.first["loss"])]
        cells = [lead([run.first["loss"] - run.first[one] for run in rose]) for one in signals]
        lines.append(f"| {fault} | {len(rose)} of {len(mine)} | {' | '.join(cells)} |")
    clean = [run for run in runs if run.fault == "none"]
    for name, some in (("false alarms in clean runs", clean),):
        counts = [sum(run.false[one] for run in some) for one in signals]
        own = sum(run.false["loss"] for run in some)
        lines.append(f"| {name} of {STEPS} steps (loss: {own}) | {len(some)} runs | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def lead(leads: Sequence[float]) -> str:
    """The median over runs in which the signal rose, with the least and the most, and in how many it was earlier."""
    known = sorted(one for one in leads if not math.isnan(one))
    if not known:
        return "never" if leads else "-"
    earlier = sum(one > 0 for one in known)
    return f"{statistics.median(known):g} ({known[0]:g} to {known[-1]:g}); earlier in {earlier} of {len(leads)}"


def main() -> None:
    torch.set_num_threads(1)
    runs = []
    for fault in FAULTS:
        for net in NETS:
            runs += [watch(fault, net, seed) for seed in SEEDS]
            print(f"\r{fault}, {net}          ", end="", file=sys.stderr, flush=True)
    write(runs)
    print("\n" + table(runs))


if __name__ == "__main__":
    main()
