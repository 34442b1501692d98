"""The same model twice: whole, and spread over two processes in every way that there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from helpers.newer import newer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from two_processes.launch import everywhere, whole

DTensor = newer("torch.distributed.tensor", "DTensor", "torch 2.5")
Replicate = newer("torch.distributed.tensor", "Replicate", "torch 2.5")
Shard = newer("torch.distributed.tensor", "Shard", "torch 2.5")
distribute_tensor = newer("torch.distributed.tensor", "distribute_tensor", "torch 2.5")
_StridedShard = newer("torch.distributed.tensor.placement_types", "_StridedShard", "torch 2.5")

Place = Callable[[int, Tensor], tuple[DeviceMesh, list[Any]] | None]
KINDS = (1.0, 2.0, 3.0, math.inf)
# Sums of the same float32 squares in another order.
CLOSE = {"rtol": 2e-6, "atol": 1e-7}


def zoo(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    """Rows that two processes cannot share evenly, or at all; every kind of unit; a tied weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = nn.ModuleDict(
            {
                "linear": nn.Linear(5, 3),
                "one": nn.Linear(7, 1),
                "conv": nn.Conv2d(4, 6, 3, groups=2),
                "back": nn.ConvTranspose2d(6, 4, 3, groups=2),
                "back1": nn.ConvTranspose2d(5, 1, 2),
                "table": nn.Embedding(11, 2),
                "large": nn.Linear(200, 77),
                "tied": nn.Linear(2, 11, bias=False),
            }
        ).to(dtype)
        found["tied"].weight = found["table"].weight
    return found


def fill(module: nn.Module, seed: int, scale: float = 1.0) -> None:
    """The same gradients, however the parameters are spread."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
        p.grad = spread(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad


def spread(value: Tensor, mesh: DeviceMesh, placements: Any) -> DTensor:
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def placed(module: nn.Module, place: Place) -> nn.Module:
    """Parameters as DTensors where ``place`` says so."""
    found: dict[int, nn.Parameter] = {}
    for i, p in enumerate(module.parameters()):
        where = place(i, p)
        found[id(p)] = p if where is None else nn.Parameter(spread(p.detach(), *where))
    for owner in module.modules():
        for key, p in list(owner._parameters.items()):
            owner._parameters[key] = found.get(id(p))
    return module


def places() -> dict[str, Place]:
    """Every way to spread the zoo over two processes."""
    line = init_device_mesh("cpu", (2,))
    square = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "model"))
    ways = {
        "rows": lambda i, p: (line, [Shard(0)]),
        "columns": lambda i, p: (line, [Shard(min(1, p.ndim - 1))]),
        "last": lambda i, p: (line, [Shard(-1)]),
        "copies": lambda i, p: (line, [Replicate()]),
        "two dimensions": lambda i, p: (square, [Shard(0), Shard(p.ndim - 1)]),
        "strided": lambda i, p: (square, [_StridedShard(0, split_factor=2), Shard(0)]),
    }
    ways["mixed"] = lambda i, p: [ways["rows"](i, p), None, ways["copies"](i, p), ways["last"](i, p)][i % 4]
    ways["two meshes"] = lambda i, p: [ways["rows"](i, p), ways["two dimensions"](i, p), None][i % 3]
    return ways


def meshes(module: nn.Module) -> int:
    return len({p.device_mesh for p in module.parameters() if isinstance(p, DTensor)})


def pair(place: Place, seed: int = 1, **kinds: Any) -> tuple[nn.Module, nn.Module]:
    """The same model twice: whole, and spread."""
    plain, ours = zoo(**kinds), placed(zoo(**kinds), place)
    fill(plain, seed)
    fill(ours, seed)
    return plain, ours


def same_gradients(ours: nn.Module, plain: nn.Module, **close: float) -> None:
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(p.grad), q.grad, **close, msg=lambda text, name=name: f"{name}: {text}")


def same_everywhere(value: Any) -> None:
    for other in everywhere(value):
        torch.testing.assert_close(other, value, rtol=0, atol=0, equal_nan=True)
