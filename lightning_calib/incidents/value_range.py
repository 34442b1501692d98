"""The extremes of a tensor's values, brought to the host only where somebody reads them."""

from math import isfinite

import torch
from torch import Tensor


class ValueRange:
    """The lowest and the highest value of a tensor, and the smallest magnitude.

    Args:
        value: Dense, of any type but bool, with at least one element.
    """

    shape: tuple[int, ...]
    dtype: str

    def __init__(self, value: Tensor) -> None:
        found = value.detach()
        found = found.abs() if found.is_complex() else found
        found = found.float() if found.is_floating_point() and found.element_size() < 2 else found
        lowest, highest = found.aminmax()
        self._found = torch.stack([lowest, highest, found.abs().amin()])
        self.shape, self.dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        self._host: list[float] | None = None

    @staticmethod
    def of(value: Tensor) -> "ValueRange | None":
        """None where there is nothing to say, or where torch cannot say it."""
        if value.layout != torch.strided or value.dtype == torch.bool or value.is_meta or value.is_quantized:
            return None
        try:
            return ValueRange(value) if value.numel() else None
        except (RuntimeError, NotImplementedError):
            return None

    @property
    def _values(self) -> list[float]:
        if self._host is None:
            self._host = self._found.tolist()
        return self._host

    @property
    def highest(self) -> float:
        """NaN if there is one."""
        return self._values[1]

    @property
    def nan(self) -> bool:
        """Whether a value is NaN."""
        return self._values[0] != self._values[0]

    @property
    def finite(self) -> bool:
        """Whether all values are."""
        return isfinite(self._values[0]) and isfinite(self._values[1])

    def __str__(self) -> str:
        """For a sentence."""
        lowest, highest, least = self._values
        shape = "x".join(map(str, self.shape)) or "scalar"
        if self.nan:
            return f"{shape} {self.dtype} with NaN"
        least_of = f", smallest magnitude {least:.3g}" if lowest < 0 < highest else ""
        return f"{shape} {self.dtype} from {lowest:.3g} to {highest:.3g}{least_of}"
