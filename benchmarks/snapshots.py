"""What a snapshot of `SpikeGuard` costs, per million parameters: ``python -m benchmarks.snapshots``."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from lightning_calib.incidents.snapshot import Snapshot, TrainingState
from lightning_calib.steps.gradient_view import GradientView

MILLIONS, TIMES = 16, 9


def measure(device: str, make: Callable[..., torch.optim.Optimizer]) -> tuple[float, float, float, float]:
    """Megabytes, milliseconds of the host while one is taken, until it is there, and until it is put back."""
    net = nn.ParameterList(nn.Parameter(torch.randn(1000, 1000, device=device)) for _ in range(MILLIONS))
    optimizer = make(net.parameters())
    for tensor in net:
        tensor.grad = torch.randn_like(tensor)
    optimizer.step()
    view = GradientView(0, optimizer, net, suffix="", units=False, scaler=None)
    state, snapshot, found = TrainingState(net, view), Snapshot(), []
    for _ in range(TIMES + 1):  # the first one makes room
        _wait(device)
        begin = time.perf_counter()
        snapshot.take(state, 0, 0)
        host = time.perf_counter()
        _wait(device)
        there = time.perf_counter()
        snapshot.put_back(state)
        _wait(device)
        found.append((host - begin, there - begin, time.perf_counter() - there))
    middle = [1e3 * sorted(each)[TIMES // 2] / MILLIONS for each in zip(*found[1:], strict=True)]
    return snapshot.nbytes / 1e6 / MILLIONS, *middle  # type: ignore[return-value]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("per million parameters, float32: MB, ms of the host, ms until taken, ms until put back")
    for where in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for name, make in {
            "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
            "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "AdamW": torch.optim.AdamW,
        }.items():
            print(where, name, "  ".join(f"{one:.3g}" for one in measure(where, make)))
