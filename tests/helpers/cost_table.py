"""The pinned counts of `test_cost.py`: ``make cost`` writes them anew."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from helpers.dispatch_counts import Counts, step_counts
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.models import Given, small
from benchmarks.variants import Variant, plain, shadowed, trainers_clip, unlogged

FILE = Path(__file__).parents[1] / "cost.json"
Table = dict[str, dict[str, Counts]]  # by where and how many tensors, by variant
PLACES = ["cpu 100", "cpu 1000", "meta 100", "sharded 100"]  # meta stands for a device that is not the host


def variants(place: str) -> list[Variant]:
    """On meta tensors nothing fires or not: one of two sides is counted."""
    found = [trainers_clip(), *unlogged(), *shadowed()]
    return [one for one in found if place.startswith("cpu") or one.side != "firing" or _has_no_quiet_side(one)]


def measured(place: str) -> dict[str, Counts]:
    """What each variant adds to a step of a plain fit."""
    with _models(place) as make:
        without = step_counts(make(), plain())
        return {one.title: step_counts(make(), one).minus(without) for one in variants(place)}


def pinned() -> tuple[str, Table]:
    """The version of torch, and the counts."""
    found = json.loads(FILE.read_text())
    return found["torch"], {
        place: {title: Counts(**counts) for title, counts in rows.items()} for place, rows in found["counts"].items()
    }


def write(table: Table) -> None:
    rows = [
        f'  "{place}": {{\n'
        + ",\n".join(f"   {json.dumps(title)}: {json.dumps(counts._asdict())}" for title, counts in found.items())
        + "\n  }"
        for place, found in table.items()
    ]
    FILE.write_text(f'{{\n "torch": "{release()}",\n "counts": {{\n' + ",\n".join(rows) + "\n }\n}\n")


def release() -> str:
    """Of torch, without the name of a build; another one may dispatch otherwise."""
    return torch.__version__.split("+")[0]


def _has_no_quiet_side(variant: Variant) -> bool:
    return sum(one.name == variant.name for one in unlogged()) == 1


@contextmanager
def _models(place: str) -> Iterator[Callable[[], Given]]:
    """Makes modules; sharded ones have their rows on two processes, of which one is here and none answers."""
    device, size = place.split()
    if device != "sharded":
        yield lambda: Given(small(int(size)), device)
        return
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield lambda: _sharded(Given(small(int(size))))
    finally:
        distributed.destroy_process_group()


def _sharded(model: Given) -> Given:
    mesh = init_device_mesh("cpu", (2,))
    model.source = [distribute_tensor(one, mesh, [Shard(0)]) for one in model.source]
    model.flat = [nn.Parameter(distribute_tensor(one.data, mesh, [Shard(0)])) for one in model.flat]
    model.layers = nn.ModuleList(nn.ParameterList(model.flat[i : i + 2]) for i in range(0, len(model.flat), 2))
    return model


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_calib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.chdir(tempfile.mkdtemp())
    write({place: measured(place) for place in PLACES})
