"""A script: runs named cases on two gloo processes, in one process group, and leaves one line per case and process."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing import start_processes

WORLD = int(os.environ.get("PROCESSES", "2"))
MODULES = ("values", "fits", "others", "memory", "find", "flat", "flat_values", "flat_slow")
CASES: dict[str, Callable[[], None]] = {}
SLOW: dict[str, Callable[[], None]] = {}  # by `make test-all` alone
SKIPPED = "skipped: "
FOUR: dict[str, Callable[[], None]] = {}  # the same, on four processes
_COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor")


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Run by both processes; passes if neither raises."""
    CASES[function.__name__] = function
    return function


def slow(function: Callable[[], None]) -> Callable[[], None]:
    """The same, where it takes long."""
    SLOW[function.__name__] = function
    return function


def four(function: Callable[[], None]) -> Callable[[], None]:
    """The same, on four processes."""
    FOUR[function.__name__] = function
    return function


def named(cases: dict[str, Callable[[], None]], *modules: Any) -> list[str]:
    """Those of these modules."""
    kept = {module.__name__ for module in modules}
    return [name for name, function in cases.items() if function.__module__ in kept]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often our package has called which collective of `torch.distributed`."""
    calls: Counter[str] = Counter()
    kept = {name: getattr(distributed, name) for name in _COLLECTIVES}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += sys._getframe(1).f_globals["__name__"].startswith("lightning_calib")
            return kept[name](*args, **kwargs)

        return call

    for name in kept:
        setattr(distributed, name, counting(name))
    try:
        yield calls
    finally:
        for name, function in kept.items():
            setattr(distributed, name, function)


def everywhere(value: Any) -> list[Any]:
    """What each process has."""
    found: list[Any] = [None] * WORLD
    distributed.all_gather_object(found, value)
    return found


def whole(value: Tensor) -> Tensor:
    """All of a DTensor."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def play(rank: int, folder: str, names: list[str]) -> None:
    """One process: the cases, one after the other."""
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(WORLD), NODE_RANK="0")
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, timedelta(seconds=30), rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    place = Path(folder, f"cwd{rank}")
    place.mkdir()
    os.chdir(place)
    for name in names:
        try:
            {**CASES, **SLOW, **FOUR}[name]()
            told = ""
        except pytest.skip.Exception as missing:
            told = f"{SKIPPED}{missing}"
        except BaseException:
            told = traceback.format_exc()
        with Path(folder, f"rank{rank}.jsonl").open("a") as file:
            file.write(json.dumps([name, told]) + "\n")
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for quiet in ("lightning.pytorch", "lightning.fabric", "lightning_calib", "torch.distributed.tensor"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    sys.modules["two_processes.launch"] = sys.modules["__main__"]
    for name in MODULES:
        importlib.import_module(f"two_processes.{name}")
    start_processes(play, (sys.argv[1], sys.argv[2:] or list(CASES)), WORLD, start_method="fork")
