"""How far the means of a batch are from BatchNorm's running means, without a look at the batch."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import pad_sequence


class BatchNormShift:
    r"""Between `look` and `found` the layers see one batch, and move their running means towards its means.

    With momentum m a running mean goes from :math:`\mu` to :math:`(1 - m) \mu + m b`, so that the batch's mean is
    :math:`b = \mu + \Delta\mu / m`. A layer counts if it kept running statistics in float32 or float64 with a momentum,
    by itself and not together with other processes, and saw exactly one batch.

    Args:
        layers: Those of the model, see ``tracking``.
    """

    def __init__(self, layers: Iterable[_BatchNorm]) -> None:
        self.layers: list[_BatchNorm] = [
            layer for layer in layers if layer.momentum and not isinstance(layer, nn.SyncBatchNorm)
        ]
        self.forget()

    def forget(self) -> None:
        """What was seen is of a row that is written."""
        self.seen: list[tuple[_BatchNorm, Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def look(self) -> None:
        """A batch comes that is logged: copy the running statistics."""
        self.seen = []
        for layer in self.layers:
            mean, variance, batches = layer.running_mean, layer.running_var, layer.num_batches_tracked
            if mean is None or variance is None or batches is None or is_lazy(mean):
                continue
            if mean.dtype in (torch.float32, torch.float64):
                self.seen.append((layer, mean.clone(), variance.clone(), batches.clone()))

    @torch.no_grad()
    def found(self) -> Tensor | None:
        """The median over the channels of the distance of b from mu, in sigma, of the layer where it is largest, 0-d.

        nan where no layer has seen exactly one batch; None where there is nothing to ask. Waits for no device.
        """
        if not self.seen:
            return None
        shifts, counts = [], []
        for layer, mean, variance, batches in self.seen:
            if layer.running_mean is None or layer.num_batches_tracked is None:
                return None
            moved = (layer.running_mean - mean).abs() / float(layer.momentum or 1.0)
            shifts.append(moved / (variance + layer.eps).sqrt())
            counts.append(layer.num_batches_tracked - batches)
        return _worst(shifts, counts)


def _worst(shifts: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    device, dtype = shifts[0].device, shifts[0].dtype
    padded = pad_sequence([one.to(device, dtype) for one in shifts], batch_first=True, padding_value=torch.nan)
    once = torch.stack([one.to(device) for one in counts]) == 1
    medians = torch.where(once, padded.nanmedian(dim=1).values, -1)
    worst = medians.max()
    return torch.where(worst < 0, torch.nan, worst)
