"""How large the elements are: counts per power of two, read off the exponent bits in one pass."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_calib.functional.dtensor import held
from lightning_calib.functional.plan import Plan, moved

_CHUNK = 2**18  # elements read at a time: what is made of them stays in the cache
_BIAS = 127
_FIELDS = 256  # of float32: 0 for zero, e + 127 for 2^e <= |x| < 2^(e+1), 255 for inf and nan
# The integer that overlays a type, the bits of its fraction, and how many values its exponent field has.
_LAYOUTS = {
    torch.float32: (torch.int32, 23, 256),
    torch.bfloat16: (torch.int16, 7, 256),
    torch.float64: (torch.int64, 52, 2048),
}


@torch.no_grad()
def exponent_counts(
    plan: Plan,
    values: Sequence[Tensor | None],
    owners: Sequence[int],
    low: int,
    high: int,
    factor: Tensor | None = None,
) -> Tensor:
    """Count the elements of every module by their magnitude; of DTensors, those of all processes.

    Args:
        plan: What is read.
        values: The gradients, laid out as ``plan.tensors``; what a sparse one lacks is zero.
        owners: For each tensor the position of its module, in [0, M).
        low: The lowest exponent that has a column; its column takes in what lies below.
        high: The highest; its column takes in what lies above.
        factor: Multiplies every element first, 0-d; None for 1.

    Returns:
        Shape (M, 3 + high - low + 1), float64 where there is such a type: elements that are exactly zero; that are inf
        or nan; the largest exponent of the others, -inf without any; then, for each exponent e, the elements with
        2^e <= |x| < 2^(e+1).
    """
    nothing = torch.zeros(_FIELDS, dtype=torch.int64, device=plan.device)
    each = [nothing if value is None or not value.numel() else _fields(value, factor) for value in values]
    fields = torch.stack([moved(one, plan.device) for one in each]).to(plan.wide)
    if plan.shards is not None:
        fields = plan.shards.total(fields)
    places = torch.tensor(owners, device=plan.device)
    return _columns(fields.new_zeros(max(owners) + 1, _FIELDS).index_add_(0, places, fields), low, high)


def _columns(fields: Tensor, low: int, high: int) -> Tensor:
    """From counts by field, shape (M, 256), to the columns."""
    finite = fields[:, 1:-1]
    first, last = low + _BIAS, high + _BIAS - 1  # of `finite`: behind the lowest column, and where the highest begins
    ends = [finite[:, :first].sum(1, keepdim=True), finite[:, first:last], finite[:, last:].sum(1, keepdim=True)]
    exponents = torch.arange(1, _FIELDS - 1, dtype=fields.dtype, device=fields.device) - _BIAS
    top = torch.where(finite > 0, exponents, -torch.inf).amax(1, keepdim=True)
    return torch.cat([fields[:, :1], fields[:, -1:], top, *ends], dim=1)


def _fields(value: Tensor, factor: Tensor | None) -> Tensor:
    """Shape (256,): how many elements have which exponent field, in float32's layout."""
    whole = held(value)
    if whole.is_sparse:
        stored = whole.coalesce().values()
        counts = _all_counted(stored, factor)
        counts[0] += whole.numel() - stored.numel()
        return counts
    return _all_counted(whole, factor)


def _all_counted(value: Tensor, factor: Tensor | None) -> Tensor:
    counts = torch.zeros(_FIELDS, dtype=torch.int64, device=value.device)
    for part in _chunks(value):
        counts += _counted(part, factor)
    return counts


def _chunks(value: Tensor) -> Iterator[Tensor]:
    order = sorted(range(value.ndim), key=value.stride, reverse=True)  # that of the memory, which needs no copy
    yield from torch.split(value.detach().permute(order).reshape(-1), _CHUNK)


def _counted(part: Tensor, factor: Tensor | None) -> Tensor:
    part = part.abs() if part.is_complex() else part
    if part.dtype not in _LAYOUTS or (part.dtype == torch.bfloat16 and factor is not None):
        part = part.float()  # halves are exact there and fp16's never denormal; bf16 would round factor and product
    part = part if factor is None else part * factor.to(part.dtype)
    integer, fraction, size = _LAYOUTS[part.dtype]
    shifted = part.view(integer) >> fraction
    # The sign stands above the exponent; of a field of eight bits, a conversion drops it in the same pass.
    counts = _bincount(shifted.to(torch.uint8) if size == _FIELDS else shifted & (size - 1), size)
    # A field of 0 stands for zero and for denormal numbers: these belong to the lowest exponent.
    denormal = counts[0] - (part.numel() - part.count_nonzero())
    counts[0] -= denormal
    counts[1] += denormal
    return counts if size == _FIELDS else _narrowed(counts)


def _bincount(bits: Tensor, size: int) -> Tensor:
    if bits.device.type == "cpu":
        return bits.bincount(minlength=size)
    if torch.are_deterministic_algorithms_enabled():  # `histc` would raise, though of counts the order is no matter
        ones = torch.ones_like(bits, dtype=torch.int64)
        return torch.zeros(size, dtype=torch.int64, device=bits.device).index_add_(0, bits.long(), ones)
    return torch.histc(bits.int(), size, 0, size).long()  # `bincount` would wait for the device to learn the maximum


def _narrowed(counts: Tensor) -> Tensor:
    """float64's 2048 fields in float32's 256; what lies beyond goes into the outermost ones."""
    exponents = torch.arange(1, len(counts) - 1, device=counts.device) - 1023
    places = torch.nn.functional.pad((exponents + _BIAS).clamp(1, _FIELDS - 2), (1, 0))
    places = torch.nn.functional.pad(places, (0, 1), value=_FIELDS - 1)
    return counts.new_zeros(_FIELDS).index_add_(0, places, counts)
