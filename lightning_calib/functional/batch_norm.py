"""Population statistics of BatchNorm layers: pooled over batches, over all uses of a shared layer, and over ranks."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from lightning_calib.functional.plan import wide_dtype


class Moments(NamedTuple):
    """How many numbers a channel has seen, their mean, and the sum of the squared deviations from it; (C,) both."""

    size: int
    mean: Tensor
    squares: Tensor


def tracking(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers that keep running statistics, SyncBatchNorm included, each once."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    return [layer for layer in layers if layer.track_running_stats and layer.running_mean is not None]


def moments(x: Tensor) -> Moments:
    """Moments of a layer's input of shape (N, C, ...), per channel; half types are widened first."""
    x = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    wide = wide_dtype(x.device)
    size, others = x.numel() // x.shape[1], [dim for dim in range(x.dim()) if dim != 1]
    mean = x.mean(others, keepdim=True, dtype=wide)
    near = mean.to(x.dtype)  # one copy of x instead of two in float64; what the rounding costs is taken off again
    squares = (x - near).square_().sum(others, dtype=wide)
    return Moments(size, mean.flatten(), squares - size * (mean - near).flatten().square())


def pooled(one: Moments, two: Moments) -> Moments:
    """Moments of two samples together (Chan, Golub and LeVeque's update: no difference of large squares)."""
    size, delta = one.size + two.size, two.mean - one.mean
    mean = one.mean + delta * (two.size / size)
    return Moments(size, mean, one.squares + two.squares + delta.square() * (one.size * two.size / size))


class Population:
    """While entered, sees what goes into the layers; afterwards `write` makes it their running statistics.

    A layer that is used several times in one forward pass pools all of its uses.

    Args:
        layers: The layers to watch.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> with Population([layer]) as population:
        ...     _ = layer(torch.tensor([[0.0, 1.0], [2.0, 1.0]])), layer(torch.tensor([[4.0, 1.0], [6.0, 1.0]]))
        >>> population.write()
        []
        >>> layer.running_mean, layer.running_var
        (tensor([3., 1.]), tensor([5., 0.]))
    """

    def __init__(self, layers: Iterable[_BatchNorm]) -> None:
        self._layers = tuple(layers)
        self._seen: dict[_BatchNorm, Moments] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "Population":
        self._hooks = [layer.register_forward_pre_hook(self._look, with_kwargs=True) for layer in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        if isinstance(layer, _BatchNorm) and x.numel() > 0:
            new = moments(x)
            self._seen[layer] = pooled(self._seen[layer], new) if layer in self._seen else new

    def pool_over_ranks(self) -> None:
        """Pool with the other processes of the default group; all of them must call it, with the same layers."""
        if not self._layers:
            return
        zero = [torch.zeros_like(_mean(layer), dtype=torch.float64) for layer in self._layers]
        seen = [self._seen.get(layer, Moments(0, at, at)) for layer, at in zip(self._layers, zero, strict=True)]
        sizes = _summed([one.mean.new_tensor([one.size]) for one in seen])
        totals = _summed([one.mean * one.size for one in seen])
        means = [total / size.clamp(min=1) for total, size in zip(totals, sizes, strict=True)]
        apart = [own.squares + own.size * (own.mean - mean).square() for own, mean in zip(seen, means, strict=True)]
        found = zip(self._layers, torch.cat(sizes).tolist(), means, _summed(apart), strict=True)
        self._seen = {layer: Moments(int(size), mean, squares) for layer, size, mean, squares in found if size}

    @torch.no_grad()
    def write(self) -> list[_BatchNorm]:
        """Set mean and variance, the variance over N and not N - 1, of the layers that saw anything.

        ``num_batches_tracked`` is left alone.

        Returns:
            The layers whose statistics are not finite; they keep what they had.
        """
        bad = []
        for layer, seen in self._seen.items():
            variance = (seen.squares / seen.size).clamp(min=0)
            if not bool(torch.isfinite(seen.mean + variance).all()):
                bad.append(layer)
                continue
            _mean(layer).copy_(seen.mean)
            if layer.running_var is not None:
                layer.running_var.copy_(variance)
        return bad

    def __len__(self) -> int:
        return len(self._seen)


def _mean(layer: _BatchNorm) -> Tensor:
    if layer.running_mean is None:
        raise ValueError("The layer keeps no running statistics. Take the layers from `tracking`.")
    return layer.running_mean


def _summed(tensors: list[Tensor]) -> list[Tensor]:
    """Each summed over all ranks, in one message."""
    flat = torch.cat([tensor.to(tensors[0].device) for tensor in tensors])
    distributed.all_reduce(flat)
    return list(torch.functional.split(flat, [len(tensor) for tensor in tensors]))
