"""Log directories as training leaves them, written without a Trainer: for tests, and for looking at the tab."""

import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_calib.dashboard.event_file import Record, RecordWriter
from lightning_calib.tensorboard.contract import (
    ABSENT,
    ABSENT_EXPONENT,
    ABSENT_GLOBALS,
    GLOBAL_NAMES,
    HISTOGRAM_COLUMNS,
    LOW_EXPONENT,
    SHADOW_COLUMNS,
    SIDES,
    STATISTICS,
)

BLOCK = ("norm1.weight", "attn.qkv.weight", "attn.out.weight", "norm2.weight", "mlp.0.weight", "mlp.2.weight")
NAMES = (
    "embed.weight",
    *(f"encoder.{i}.{name}" for i in range(3) for name in BLOCK),
    "head.weight",
    "head.bias",
)
CLIP = 1.0


@contextmanager
def writer(folder: Path) -> Iterator[RecordWriter]:
    """A writer as a logger would open it; closed on the way out.

    TensorBoard reads a run's files in the order of their names, which begin with a second: a second file waits for it.
    """
    while any(path.name.split(".")[3] >= f"{int(time.time()):010d}" for path in folder.glob("events.out.tfevents.*")):
        time.sleep(0.05)
    experiment = SummaryWriter(str(folder))
    try:
        yield RecordWriter(experiment)
    finally:
        experiment.close()


def owner(name: str) -> str:
    """The module that owns a parameter."""
    return name.rpartition(".")[0]


def digest(names: Sequence[str]) -> str:
    return f"{zlib.crc32(json.dumps(list(names)).encode()):08x}"


def about(kind: str, optimizer: int = 0, optimizer_name: str = "AdamW", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "optimizer": optimizer, "optimizer_name": optimizer_name, **more}


def layers(names: Sequence[str], value: Tensor, suffix: str = "", **which: Any) -> Record:
    """`value`: (rows, statistics)."""
    more = {
        "rows": list(names),
        "owners": [owner(name) for name in names],
        "dims": [1 if "norm" in name or "bias" in name else 2 for name in names],
        "estimated": [name == "embed.weight" for name in names],
        "stats": [{"name": name, "fold": fold} for name, fold in STATISTICS.items()],
    }
    return Record(f"calib/layers.{digest(names)}{suffix}", about("layers", **which, **more), value)


def totals(value: Tensor, suffix: str = "", **which: Any) -> Record:
    """`value`: one entry for each of the global names."""
    return Record(f"calib/globals{suffix}", about("globals", **which, names=list(GLOBAL_NAMES)), value)


def histograms(paths: Sequence[str], value: Tensor, suffix: str = "", **which: Any) -> Record:
    """`value`: (sides, rows, columns)."""
    more = {"rows": list(paths), "sides": list(SIDES), "columns": list(HISTOGRAM_COLUMNS), "low": LOW_EXPONENT}
    return Record(f"calib/hist.{digest(paths)}{suffix}", about("hist", **which, **more), value)


def events(found: Sequence[dict[str, Any]], suffix: str = "", **which: Any) -> Record:
    return Record(f"calib/events{suffix}", about("events", **which), json.dumps(list(found)))


def shadows(names: Sequence[str], value: Tensor, suffix: str = "", **which: Any) -> Record:
    """`value`: (shadows, columns), the first half of them judged by layer."""
    scopes = ["layer" if i < len(names) // 2 else "global" for i in range(len(names))]
    more = {"rows": list(names), "columns": list(SHADOW_COLUMNS), "policies": list(names), "scopes": scopes}
    return Record(f"calib/shadows.{digest(names)}{suffix}", about("shadows", **which, **more), value)


def event(step: int, kind: str, text: str, layer: str | None = None, value: float | None = None) -> dict[str, Any]:
    return {"step": step, "kind": kind, "text": text, "layer": layer, "value": value}


def norms(names: Sequence[str], step: int, steps: int) -> Tensor:
    """(rows, statistics) of one step: noisy decay, and the sicknesses of `run`."""
    generator = torch.Generator().manual_seed(step)
    index = torch.arange(len(names))
    trend = 0.2 * math.exp(-2.0 * step / steps) * (1.0 + index % 5)
    before = trend * torch.empty(len(names)).log_normal_(0.0, 0.2, generator=generator)
    before *= torch.where(index == len(names) // 3, 40.0 if step == steps // 2 else 1.0, 1.0)
    before[-1] = 0.0  # dead: its gradient is exactly zero throughout
    scale = min(1.0, CLIP / float(before.norm()))
    weight = 3.0 + index / 10.0
    value = torch.stack([before, before * scale, before * 1.1, weight, before * scale * 3e-3], dim=1)
    if step < steps // 4:
        value[0, [0, 1, 2, 4]] = ABSENT  # frozen for the first quarter: no gradient, but a weight
    if step == 2 * steps // 3:
        value[1, :3] = math.nan
    if step == 2 * steps // 3 + 1:
        value[2, 0] = math.inf
    return value


def whole(value: Tensor, step: int, steps: int) -> Tensor:
    """The globals that belong to `norms`."""
    before, after, update = (value[:, i][value[:, i] != ABSENT].norm().item() for i in (0, 1, 4))
    rate = 1e-3 * 0.5 * (1.0 + math.cos(math.pi * step / steps))
    bad = float(step >= 2 * steps // 3)
    known = {
        "grad_norm_before": before,
        "grad_norm_max": before * 1.1,
        "grad_norm_after": after,
        "clip_fraction": float(before > CLIP),
        "clip_threshold": CLIP,
        "lr": rate,
        "lr_effective": rate,
        "nonfinite_total": bad,
        "skipped_total": bad,
        "update_norm": update,
        "update_ratio": 3e-3,
        "norm_p10": 0.3,
        "norm_p50": 0.5,
        "norm_p90": 0.9,
    }
    return torch.tensor([known.get(name, ABSENT_GLOBALS[name]) for name in GLOBAL_NAMES])


def counts(paths: Sequence[str], step: int, steps: int) -> Tensor:
    """(sides, rows, columns): a bell over exponents that moves to smaller ones as training goes on."""
    columns = len(HISTOGRAM_COLUMNS)
    value = torch.zeros(len(SIDES), len(paths), columns)
    exponents = torch.arange(LOW_EXPONENT, LOW_EXPONENT + columns - 3)
    for row in range(len(paths)):
        centre = -6.0 - row % 4 - 5.0 * step / steps
        bell = (1000 * torch.exp(-0.5 * ((exponents - centre) / 2.0) ** 2)).floor()
        value[:, row, 3:] = bell
        value[:, row, 0] = 10.0
        value[:, row, 2] = float(exponents[bell > 0].max())
    value[:, -1, 3:], value[:, -1, 2], value[:, -1, 0] = 0.0, ABSENT_EXPONENT, 5000.0  # dead
    return value


def sickness(names: Sequence[str], step: int, steps: int) -> list[dict[str, Any]]:
    """The events that belong to `norms`."""
    found = []
    if step == steps // 10:
        found.append(event(step, "dead", f"The gradient of {names[-1]} has been exactly zero.", names[-1]))
    if step == steps // 2:
        spiked = names[len(names) // 3]
        found.append(event(step, "spike", f"{spiked} is 40 times its usual norm.", spiked, 40.0))
    if step == 2 * steps // 3:
        found.append(event(step, "nonfinite", f"NaN in {names[1]} ({names[1]!r}).", owner(names[1]), math.nan))
        found.append(event(step, "skip", "The step was skipped."))
    if step == steps - 1:
        found.append(event(step, "summary", "Clipped in 12 % of the steps, most often because of one layer."))
    return found


def append(
    out: RecordWriter,
    span: range,
    names: Sequence[str] = NAMES,
    steps: int | None = None,
    optimizers: int = 1,
    every_hist: int = 0,
) -> None:
    """Rows of `span`; `steps` is the length of the whole story, `every_hist` 0 writes no histograms."""
    steps = steps or span.stop
    paths = list(dict.fromkeys(owner(name) for name in names))
    for step in span:
        records = []
        for k in range(optimizers):
            suffix = f"/{k}" if optimizers > 1 else ""
            which = {"suffix": suffix, "optimizer": k, "optimizer_name": ("AdamW", "SGD")[k % 2]}
            part = names[k::optimizers]
            value = norms(part, step, steps)
            records += [layers(part, value, **which), totals(whole(value, step, steps), **which)]
            if every_hist and step % every_hist == 0:
                mine = paths[k::optimizers]
                records.append(histograms(mine, counts(mine, step, steps), **which))
            if found := sickness(part, step, steps):
                records.append(events(found, **which))
        out.write(records, step)


def run(
    folder: Path, steps: int = 200, names: Sequence[str] = NAMES, optimizers: int = 1, every_hist: int = 10
) -> None:
    """A whole run: a spike, NaN and inf, a dead and a late layer, clipping, histograms and events."""
    with writer(folder) as out:
        append(out, range(steps), names, steps, optimizers, every_hist)


def resumed(folder: Path, steps: int = 120) -> None:
    """Stopped at half of its steps, and resumed a little earlier with another head and without the embedding."""
    half, back = steps // 2, steps // 2 - steps // 10
    with writer(folder) as out:
        append(out, range(half), NAMES, steps, every_hist=10)
    with writer(folder) as out:
        append(out, range(back, steps), (*NAMES[1:-2], "probe.weight", "probe.bias"), steps, every_hist=10)


def gallery(folder: Path) -> None:
    """One of everything: what somebody who works on the tab wants to see."""
    stories: dict[str, Callable[[Path], None]] = {
        "plain": lambda path: run(path, steps=600),
        "again": lambda path: run(path, steps=400),
        "two optimizers": lambda path: run(path, optimizers=2),
        "resumed": resumed,
        "large": lambda path: run(
            path, 300, [f"blocks.{i}.{name}" for i in range(100) for name in BLOCK], every_hist=50
        ),
        "nested/a & b/<b>bold<b>": lambda path: run(path, names=odd_names()),
        "no histograms, ünïcode": lambda path: run(path, every_hist=0),
    }
    for name, story in stories.items():
        story(folder / name)


def odd_names() -> list[str]:
    """Names that break pages which trust them."""
    return [
        "<b>x</b>.weight",
        "a & b.weight",
        "with space.weight",
        "ünï.λ.weight",
        '"quoted".w',
        "x" * 500,
        "plain.bias",
    ]


if __name__ == "__main__":
    gallery(Path(sys.argv[1]))
