"""Arrays on the wire: JSON cannot carry NaN, and text is five times as large."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def frame(header: Mapping[str, Any], values: NDArray[np.float32]) -> bytes:
    """Length of the header as little-endian u32, the header as JSON, the numbers as little-endian float32.

    Args:
        header: What the numbers mean; ``shape`` is added, and spaces so that the numbers start at a multiple of four.
        values: Of any shape, sent in row-major order.
    """
    text = json.dumps({**header, "shape": list(values.shape)}, allow_nan=False)  # ASCII, so bytes are characters
    text += " " * (-len(text) % 4)
    return struct.pack("<I", len(text)) + text.encode() + np.ascontiguousarray(values, "<f4").tobytes()
