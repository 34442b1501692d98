"""How the cost of a step grows: with tensors, elements, segments, and the length of a history."""

from __future__ import annotations

import os
from statistics import median
from time import process_time
from typing import Any

import torch

from benchmarks.interleave import FIRST, compare
from benchmarks.models import Given, Shapes, equal, small
from benchmarks.variants import few, plain, trainers_clip
from lightning_calib import EMARelative, MaxNorm, Percentile, ZScore
from lightning_calib.functional.judge import Observation

Curve = list[dict[str, Any]]  # one dictionary per point: x, and a value for each line
TENSORS = (10, 100, 1000, 10_000)
ELEMENTS = (10**5, 10**6, 10**7, 10**8)
SEGMENTS = (1, 10, 100, 1000, 10_000)
HISTORY = (100, 1000, 10_000, 100_000)
HISTORY_SECONDS = 25.0


def tensors(counts: tuple[int, ...] = TENSORS, rounds: int = 1000, quick: bool = False) -> Curve:
    """Extra microseconds per step of a whole fit."""
    return [{"x": count, **_extra(small(count), max(4, min(40, 20_000 // count)), rounds, quick)} for count in counts]


def elements(counts: tuple[int, ...] = ELEMENTS, rounds: int = 1000, quick: bool = False) -> Curve:
    """The same, of 100 equal tensors; a count for which there is no memory is named."""
    found: Curve = []
    for count in counts:
        needed = 12 * count  # bytes: weights, gradients, and room for a copy
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > free:
            found.append({"x": count, "left out": f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB were free"})
        else:
            found.append({"x": count, **_extra(equal(100, count), max(4, min(40, 10**9 // count)), rounds, quick)})
    return found


def segments(counts: tuple[int, ...] = SEGMENTS, quick: bool = False) -> Curve:
    """Microseconds of one judgement: the policy alone, without reading or writing gradients."""
    policies = {
        "MaxNorm": MaxNorm(1.0),
        "EMARelative": EMARelative(),
        "ZScore": ZScore(),
        "Percentile(window=1000)": Percentile(),
    }
    found: Curve = []
    for count in counts[: 3 if quick else None]:
        point: dict[str, Any] = {"x": count}
        for name, policy in policies.items():
            state, times = policy.init(torch.zeros(count)), []
            for step in range(3 if quick else 40):
                norms = torch.full((count,), 1.0 + step % 7)
                seen = Observation(norms, torch.ones(count, dtype=torch.bool))
                before = process_time()
                _, state = policy(seen, state)
                times.append(process_time() - before)
            point[name] = round(1e6 * median(times[1:]), 1)
        found.append(point)
    return found


def history(lengths: tuple[int, ...] = HISTORY, quick: bool = False) -> Curve:
    """Microseconds of one judgement of `Percentile` once so many norms were observed; stops after some time."""
    policies = {"window=None": Percentile(10, None, warmup_steps=0), "window=1000": Percentile(10)}
    points = {length: {"x": length} for length in lengths[: 1 if quick else None]}
    for name, policy in policies.items():
        state: Any = policy.init(torch.zeros(1))
        norms, seen = torch.rand(max(points), 1) + 0.5, torch.ones(1, dtype=torch.bool)
        times: list[float] = []
        for norm in norms:
            before = process_time()
            _, state = policy(Observation(norm, seen), state)
            times.append(process_time() - before)
            if len(times) in points:
                points[len(times)][name] = round(1e6 * median(times[-50:]), 1)  # type: ignore[assignment]
            if len(times) % 1000 == 0 and sum(times) > HISTORY_SECONDS:
                break
    return list(points.values())


def _extra(shapes: Shapes, steps: int, rounds: int, quick: bool) -> dict[str, float]:
    rows = [plain(), trainers_clip(), *few()]
    steps = FIRST + (1 if quick else steps)
    _, spent, step = compare(Given(shapes), rows, steps, 6, rounds=1 if quick else rounds)
    extras = {title: round(1e6 * one.extra, 1) for title, one in spent.items()}
    return {"plain step": round(1e6 * step, 1), **extras}
