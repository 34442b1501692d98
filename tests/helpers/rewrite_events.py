"""Event files as they were, or as they become: of the first edition, cut off, damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util.tensor_util import make_ndarray

FIRST_NAMES = 15  # of globals, in the first edition


def event_file(folder: Path) -> Path:
    (path,) = folder.glob("*tfevents*")
    return path


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Every event as `change` makes it."""
    parts = []
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        change(event)
        data = event.SerializeToString()
        size = len(data).to_bytes(8, "little")
        parts += [size, crc(size), data, crc(data)]
    path.write_bytes(b"".join(parts))


def crc(data: bytes) -> bytes:
    return int(masked_crc32c(data)).to_bytes(4, "little")


def as_first_edition(path: Path) -> None:
    """Without facts, and with the globals that there were."""

    def change(event: Any) -> None:
        values = [value for value in event.summary.value if not value.tag.startswith("calib/facts")]
        for value in values:
            if value.tag.startswith("calib/globals"):
                numbers = make_ndarray(value.tensor)[:FIRST_NAMES]
                value.tensor.tensor_content = np.ascontiguousarray(numbers, "<f4").tobytes()
                value.tensor.tensor_shape.dim[0].size = FIRST_NAMES
                if value.metadata.plugin_data.content:
                    about = json.loads(value.metadata.plugin_data.content)
                    about["names"] = about["names"][:FIRST_NAMES]
                    value.metadata.plugin_data.content = json.dumps(about).encode()
        kept = [type(value).FromString(value.SerializeToString()) for value in values]
        if event.HasField("summary"):
            event.summary.ClearField("value")
            event.summary.value.extend(kept)

    rewrite(path, change)
