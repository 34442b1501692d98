"""The functions alone, for loops without Lightning; a callback does more (see `fits`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.models import Given, Shapes, gpt2, resnet50, small
from benchmarks.variants import HIGH, LOW
from lightning_calib import MaxNorm, WeightRelative
from lightning_calib.functional import clip_grad_

MODELS: dict[str, Callable[[], Shapes]] = {
    "10 small tensors": lambda: small(10),
    "1,000 small tensors": lambda: small(1000),
    "ResNet-50": resnet50,
    "GPT-2 small": gpt2,
}
SECONDS = 12.0  # per model
TORCH = "torch clip_grad_norm_"
Sides = tuple[Callable[[], object], Callable[[], object]]


def tables(quick: bool = False) -> list[dict[str, Any]]:
    """One table per model: microseconds of process time of a call, quiet and firing."""
    return [_table(title, Given(shapes()), quick) for title, shapes in MODELS.items() if not quick or "10 " in title]


def _table(title: str, model: Given, quick: bool) -> dict[str, Any]:
    for tensor, source in zip(model.flat, model.source, strict=True):
        tensor.grad = source.clone()
    sides = _variants(model)
    times: dict[tuple[str, int], list[float]] = {}
    start, rounds = perf_counter(), 0
    while rounds < (1 if quick else 5) or (not quick and rounds < 400 and perf_counter() - start < SECONDS):
        for name, pair in sides.items():
            for firing, run in enumerate(pair):
                torch._foreach_copy_([one.grad for one in model.flat], model.source)  # type: ignore[arg-type]
                before = process_time()
                run()
                times.setdefault((name, firing), []).append(process_time() - before)
        rounds += 1
    found = {name: [1e6 * median(times[name, firing]) for firing in (0, 1)] for name in sides}
    return {
        "title": title,
        "rounds": rounds,
        "rows": [
            {
                "name": name,
                "quiet_us": round(quiet, 1),
                "firing_us": round(firing, 1),
                "quiet_ratio": round(quiet / found[TORCH][0], 3),
                "firing_ratio": round(firing / found[TORCH][1], 3),
            }
            for name, (quiet, firing) in found.items()
        ],
    }


def _variants(model: Given) -> dict[str, Sides]:
    values, gradients = model.flat, [value.grad for value in model.flat]

    def read() -> object:
        return torch.stack(torch._foreach_norm(gradients))  # type: ignore[arg-type]

    def ours(policy: Callable[[float], Any], scope: Any = "global") -> Sides:
        return tuple(lambda limit=limit: clip_grad_(model, policy(limit), scope=scope) for limit in (HIGH, LOW))  # type: ignore[return-value, misc]

    found: dict[str, Sides] = {
        "plain read of the gradients": (read, read),
        TORCH: (lambda: nn.utils.clip_grad_norm_(values, inf), lambda: nn.utils.clip_grad_norm_(values, LOW)),
        "clip_grad_(model, MaxNorm(...))": ours(MaxNorm),
        'clip_grad_(model, MaxNorm(...), scope="parameter")': ours(MaxNorm, "parameter"),
        'clip_grad_(model, MaxNorm(...), scope="unit")': ours(MaxNorm, "unit"),
        'clip_grad_(model, WeightRelative(...), scope="unit")': ours(WeightRelative, "unit"),
    }
    if peers.versions()["timm"]:
        clip = peers.adaptive_clip_grad()
        found["timm adaptive_clip_grad"] = (lambda: clip(values, HIGH), lambda: clip(values, LOW))
    if peers.versions()["optax"]:
        found |= _optax(model)
    return found


def _optax(model: Given) -> dict[str, Sides]:
    """Compiled functions of arrays of the same shapes, which they leave alone and return new ones; one thread."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import optax

    arrays = [jax.numpy.asarray(one.numpy()) for one in model.source]

    def compiled(limit: float) -> Callable[[], object]:
        transform = optax.clip_by_global_norm(limit)
        state = transform.init(arrays)
        run = jax.jit(lambda gradients: transform.update(gradients, state)[0])
        jax.block_until_ready(run(arrays))
        return lambda: jax.block_until_ready(run(arrays))

    return {"optax clip_by_global_norm, jitted": (compiled(HIGH), compiled(LOW))}
