"""Cost of one clip, as a ratio to torch's `clip_grad_norm_` and to one plain read of the gradients.

Every variant runs once per round, interleaved with the others, in one process on one thread; the table gives ratios
of medians over the rounds. Run it with nothing else on the machine: `make bench-clip`.
"""

import argparse
from collections.abc import Callable, Iterable
from math import inf
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from lightning_calib import MaxNorm, WeightRelative
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.judge import Policy, fresh_state, judge, observe
from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.rescale import rescale_
from lightning_calib.functional.segments import Scope, Segments

FIRES = 1e-6  # below every norm, far above the denormal numbers, which would slow the arithmetic down
SCOPES: tuple[Scope, ...] = ("global", "layer", "parameter", "unit")


def gpt2() -> Iterable[tuple[int, ...]]:
    """Shapes of GPT-2 small: 148 tensors, 124 M elements."""
    yield from [(50257, 768), (1024, 768)]
    for _ in range(12):
        yield from [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
        yield from [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    yield from [(768,), (768,)]


def resnet50() -> Iterable[tuple[int, ...]]:
    """Shapes of ResNet-50: 161 tensors, 25 M elements."""
    yield from [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from [(width, inputs, 1, 1), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            yield from [(4 * width, width, 1, 1), (4 * width,), (4 * width,)]
            if block == 0:
                yield from [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    yield from [(1000, 2048), (1000,)]


def many_small() -> Iterable[tuple[int, ...]]:
    """1,000 tensors of 32 x 32 and of 32 elements."""
    for _ in range(500):
        yield from [(32, 32), (32,)]


class Bag(nn.Module):
    """Parameters of given shapes, two to a layer, with gradients."""

    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        super().__init__()
        values = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        self.layers = nn.ModuleList(nn.ParameterList(values[i : i + 2]) for i in range(0, len(values), 2))
        for value in values:
            value.grad = 1e-3 * torch.randn_like(value)


def step(plan: Plan, segments: Segments, policy: Policy) -> Callable[[], None]:
    """What a callback does in one step, the plan being laid."""
    state = fresh_state(policy, segments)

    def run() -> None:
        gradients = plan.gradients()
        reading = measure(plan, gradients, units=segments.scope == "unit")
        report, _ = judge(policy, observe(segments, reading, weights=policy.needs_weights), state)
        rescale_(plan, gradients, segments.spread(report.coefficients))

    return run


def variants(model: Bag) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name -> (not firing, firing)."""
    values = list(model.parameters())
    gradients = [value.grad for value in values if value.grad is not None]

    def read() -> Tensor:
        return torch.stack(torch._foreach_norm(gradients))

    def torch_clip(max_norm: float) -> Callable[[], object]:
        return lambda: nn.utils.clip_grad_norm_(values, max_norm)

    def door(max_norm: float) -> Callable[[], object]:
        return lambda: clip_grad_(model, MaxNorm(max_norm))

    found: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "plain read": (read, read),
        "torch clip_grad_norm_": (torch_clip(inf), torch_clip(FIRES)),
        "clip_grad_(model, MaxNorm)": (door(1e30), door(FIRES)),
    }
    plan = Plan.of(model)
    for scope in SCOPES:
        segments = Segments.of(plan, scope)
        found[f"MaxNorm x {scope}"] = (step(plan, segments, MaxNorm(1e30)), step(plan, segments, MaxNorm(FIRES)))
    segments = Segments.of(plan, "unit")
    found["AGC: WeightRelative x unit"] = (
        step(plan, segments, WeightRelative(1e6)),
        step(plan, segments, WeightRelative(FIRES)),
    )
    return found


def medians(model: Bag, rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant, not firing and firing."""
    kept = [value.grad.clone() for value in model.parameters() if value.grad is not None]
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    times: dict[tuple[str, int], list[float]] = {}
    ready = variants(model)
    for _ in range(rounds):
        for name, pair in ready.items():
            for firing, run in enumerate(pair):
                torch._foreach_copy_(gradients, kept)
                start = perf_counter()
                run()
                times.setdefault((name, firing), []).append(perf_counter() - start)
    names = dict.fromkeys(name for name, _ in times)
    return {name: [median(times[name, firing]) for firing in (0, 1)] for name in names}


def main() -> None:
    """Print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = {"GPT-2 small": gpt2, "ResNet-50": resnet50, "1,000 small tensors": many_small}
    for title, shape in shapes.items():
        model = Bag(shape())
        found = medians(model, rounds if title != "1,000 small tensors" else 4 * rounds)
        count, size = len(list(model.parameters())), sum(value.numel() for value in model.parameters())
        print(f"\n### {title}: {count} tensors, {size / 1e6:.0f} M elements\n")
        print("| | not firing, ms | / torch | / plain read | firing, ms | / torch | / plain read |")
        print("|---|---|---|---|---|---|---|")
        base, read = found["torch clip_grad_norm_"], found["plain read"]
        for name, pair in found.items():
            cells = [f"{1e3 * t:.2f} | {t / b:.2f} | {t / r:.2f}" for t, b, r in zip(pair, base, read, strict=True)]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
