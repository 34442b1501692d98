"""The closer look: which values are not finite, and how many elements of each kind."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held
from lightning_calib.functional.mesh_sums import Shards
from lightning_calib.functional.plan import Plan


class Bad(NamedTuple):
    """A value with elements that are not finite: its name, and how many of its elements are NaN and Inf."""

    name: str
    nan: int
    inf: int
    elements: int

    def __str__(self) -> str:
        """For a sentence."""
        return f"{self.name} ({self.nan:,} NaN and {self.inf:,} Inf of {self.elements:,} elements)"


@torch.no_grad()
def look_closer(plan: Plan, values: Sequence[Tensor | None]) -> list[Bad]:
    """Count NaN and Inf in every value, laid out as ``plan.tensors``.

    It waits for the device, so it is for incidents only. With DTensors every process must come here: all are counted
    over all processes, with one collective per mesh.
    """
    elements = [None if value is None else _elements(value) for value in values]
    counts = [[0, 0] if one is None else [int(one.isnan().sum()), int(one.isinf().sum())] for one in elements]
    sizes = [0 if one is None else one.numel() for one in elements]
    if plan.shards is not None:
        counts = _over_processes(plan.shards, counts)
        sizes = [shape.numel() for shape in plan.whole_shapes]
    each = zip(plan.names, counts, sizes, strict=True)
    return [Bad(name, nan, inf, size) for name, (nan, inf), size in each if nan or inf]


@torch.no_grad()
def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of those values that are not finite throughout; with DTensors every process must come here."""
    names, values = [], []
    for name, value in named:
        names.append(name)
        values.append(value)
    counts = [[int(not bool(held(value).isfinite().all()))] for value in values]
    shards = Shards.of(values)
    if shards is not None:
        counts = _over_processes(shards, counts)
    return [name for name, (bad,) in zip(names, counts, strict=True) if bad]


def _elements(value: Tensor) -> Tensor:
    return value.coalesce().values() if value.is_sparse else held(value)


def _over_processes(shards: Shards, counts: list[list[int]]) -> list[list[int]]:
    """Of copies that are not the same, the mean: rounded up, so that none is lost."""
    total = shards.total(torch.tensor(counts, dtype=torch.float64, device=shards.tensors[0].device))
    return [[int(one) for one in row] for row in (total - 1e-6).ceil().tolist()]
