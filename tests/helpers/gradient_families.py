"""A small model with every kind of parameter, and the families of gradients that the tests feed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Gradients = list[Tensor | None]


class Net(nn.Module):
    """Every kind of unit: embedding rows, grouped convolutions both ways, vectors, a scalar, a tied head."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.embedding = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(2, 4, 3, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(4, 5)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.to(dtype)


class NetWithEmpty(Net):
    """The same with a tensor of no rows and one of three rows of no elements."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__(dtype=dtype, seed=seed)
        self.no_rows = nn.Parameter(torch.empty(0, 3, dtype=dtype))
        self.no_columns = nn.Parameter(torch.empty(3, 0, dtype=dtype))


def two_groups(net: nn.Module) -> torch.optim.SGD:
    """Vectors first, then the rest: the optimizer's order is not the module's."""
    parameters = list(net.parameters())
    return torch.optim.SGD(
        [{"params": [p for p in parameters if p.ndim < 2]}, {"params": [p for p in parameters if p.ndim >= 2]}], lr=0.1
    )


def typical(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    """Normal elements; the level of each tensor and of the whole moves by log-normal factors from step to step."""
    level = math.exp(0.5 * float(torch.randn((), generator=generator)))
    return [
        (
            torch.randn(p.shape, generator=generator)
            * level
            * float(torch.randn((), generator=generator).mul(0.5).exp())
        ).to(p.dtype)
        for p in parameters
    ]


def spikes(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    gradients = typical(parameters, step, generator)
    if step % 4 == 3:
        return [g.mul(40.0 if i % 2 == 0 else 1.0) for i, g in enumerate(gradients)]
    return gradients


def zeros(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    """Another half of the tensors is zero at each step, and the first row of each other one; at step 5 all of them."""
    gradients = typical(parameters, step, generator)
    for i, g in enumerate(gradients):
        if step == 5 or (i + step) % 2 == 0:
            g.zero_()
        elif g.ndim > 1:
            g[0] = 0.0
    return gradients


def missing(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    """Another third of the tensors has no gradient at each step; at step 5 none has."""
    gradients = typical(parameters, step, generator)
    return [None if step == 5 or (i + step) % 3 == 0 else g for i, g in enumerate(gradients)]


def nan_in_one_tensor(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    gradients = typical(parameters, step, generator)
    if step in (1, 6):
        gradients[1].fill_(math.nan)
    return gradients


def inf_in_one_element(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    gradients = typical(parameters, step, generator)
    if step in (1, 6):
        gradients[2].view(-1)[3] = math.inf
    return gradients


def decades(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    """Tensors from 1e-12 to 1e13: a rescale has to work at each of 25 decades."""
    gradients = typical(parameters, step, generator)
    last = len(gradients) - 1
    return [g.mul(10.0 ** (-12 + 25 * i / last)) for i, g in enumerate(gradients)]


def sparse(parameters: Sequence[Tensor], step: int, generator: torch.Generator) -> Gradients:
    """The embedding's gradient is sparse and uncoalesced: two rows twice, others not at all."""
    gradients = typical(parameters, step, generator)
    for i, p in enumerate(parameters):
        if p.shape == (7, 4):
            rows = torch.tensor([[1, 4, 1, 5 + step % 2, 4]])
            values = torch.randn(5, 4, generator=generator).to(p.dtype) * (1 + step % 3)
            gradients[i] = torch.sparse_coo_tensor(rows, values, (7, 4), check_invariants=True)
    return gradients


Family = Callable[[Sequence[Tensor], int, torch.Generator], Gradients]


def _to(dtype: torch.dtype) -> Callable[[], Net]:
    return lambda: Net(dtype=dtype)


def _mixed() -> Net:
    """Half, single and double precision in one list."""
    net = Net()
    net.conv.to(torch.bfloat16)
    net.up.to(torch.float16)
    net.hidden.to(torch.float64)
    return net


FAMILIES: dict[str, tuple[Callable[[], Net], Family]] = {
    "typical": (Net, typical),
    "spikes": (Net, spikes),
    "zeros": (Net, zeros),
    "missing": (Net, missing),
    "nan": (Net, nan_in_one_tensor),
    "inf": (Net, inf_in_one_element),
    "decades": (Net, decades),
    "sparse": (Net, sparse),
    "bfloat16": (_to(torch.bfloat16), spikes),
    "float16": (_to(torch.float16), spikes),
    "float64": (_to(torch.float64), spikes),
    "mixed": (_mixed, spikes),
    "empty": (NetWithEmpty, typical),
}


def dense(gradient: Tensor) -> Tensor:
    """A copy that shares nothing, dense."""
    gradient = gradient.detach()
    return gradient.to_dense().clone() if gradient.is_sparse else gradient.clone()


def assign(parameters: Sequence[Tensor], gradients: Gradients) -> None:
    """Hands each parameter its own copy of a gradient."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()


def same_bits(actual: Tensor, expected: Tensor) -> None:
    """The only comparison that promises bits: no tolerance, NaN equal to NaN, dtype and shape included."""
    if actual.dtype != expected.dtype or not torch.equal(actual, expected):  # fast, but blind to NaN
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0, equal_nan=True)
