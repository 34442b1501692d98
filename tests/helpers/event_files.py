"""What a run left in its event files, read back record by record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util
from torch import Tensor

from lightning_calib.tensorboard.contract import GLOBAL_NAMES, PLUGIN, STATISTICS


class Found(NamedTuple):
    tag: str
    step: int
    value: Any


class Recorded:
    """Our records in the order in which they were written, and the metadata of each tag."""

    def __init__(self, folder: str | Path) -> None:
        self.found: list[Found] = []
        self.facts: list[Found] = []
        self.about: dict[str, Any] = {}
        self.others: set[str] = set()
        for path in sorted(Path(folder).glob("events.out.tfevents.*")):
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    self._add(event.step, value)

    def _add(self, step: int, value: Any) -> None:
        plugin = value.metadata.plugin_data
        if plugin.plugin_name == PLUGIN and plugin.content:
            self.about.setdefault(value.tag, json.loads(plugin.content))
        if value.tag not in self.about:
            self.others.add(value.tag)
        elif value.tag.split("/")[1].startswith("facts"):
            self.facts.append(Found(value.tag, step, json.loads(value.tensor.string_val[0])))
        elif value.tag.split("/")[1].startswith("events"):
            self.found.append(Found(value.tag, step, json.loads(value.tensor.string_val[0])))
        else:
            array = tensor_util.make_ndarray(value.tensor)
            self.found.append(Found(value.tag, step, torch.from_numpy(array.copy())))

    def of(self, kind: str, optimizer: int = 0) -> list[Found]:
        return [
            one
            for one in self.found
            if self.about[one.tag]["kind"] == kind and self.about[one.tag]["optimizer"] == optimizer
        ]

    def tags(self, kind: str) -> list[str]:
        return [tag for tag, about in self.about.items() if about["kind"] == kind]

    def column(self, name: str, optimizer: int = 0) -> Tensor:
        """(rows, tensors) of one statistic."""
        column = list(STATISTICS).index(name)
        return torch.stack([one.value[:, column] for one in self.of("layers", optimizer)])

    def total(self, name: str, optimizer: int = 0) -> list[float]:
        place = GLOBAL_NAMES.index(name)
        return [float(one.value[place]) for one in self.of("globals", optimizer)]

    def events(self, kind: str | None = None, optimizer: int = 0) -> list[dict[str, Any]]:
        every = [event for one in self.of("events", optimizer) for event in one.value]
        return [event for event in every if kind in (None, event["kind"])]


def count_magnitudes(values: list[float], low: int = -48, high: int = 15) -> list[float]:
    """Zeros, not finite ones, the largest exponent, then a count for each exponent: one number after the other."""
    zero, bad, top, counts = 0, 0, -math.inf, [0] * (high - low + 1)
    for value in map(abs, values):
        if value == 0:
            zero += 1
        elif not math.isfinite(value):
            bad += 1
        else:
            exponent = math.frexp(value)[1] - 1
            top = max(top, exponent)
            counts[min(max(exponent, low), high) - low] += 1
    return [zero, bad, top, *counts]
