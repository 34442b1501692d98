"""Event files that lie: metadata and records as somebody else may have written them."""

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from written import GLOBAL_NAMES, event, events, histograms, layers, totals, writer

from lightning_calib.dashboard.event_file import Record, RecordWriter
from lightning_calib.tensorboard.contract import HISTOGRAM_COLUMNS

ROWS = ["a.weight", "b.weight"]
GOOD: dict[str, Record] = {
    "layers": layers(ROWS, torch.ones(2, 5)),
    "globals": totals(torch.ones(len(GLOBAL_NAMES))),
    "hist": histograms(["a", "b"], torch.ones(2, 2, len(HISTOGRAM_COLUMNS))),
    "events": events([event(0, "dead", "text")]),
}


def metadata(kind: str, /, **changed: Any) -> bytes:
    """A kind's good metadata with some keys changed; `...` leaves a key out."""
    entries = {"version": 1, **GOOD[kind].about, **changed}
    return json.dumps({key: value for key, value in entries.items() if value is not ...}).encode()


def proto(*shape: int, numbers: int | None = None, dtype: int = DT_FLOAT) -> TensorProto:
    """A tensor that may lie about its shape: `numbers` float32 of content."""
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    count = torch.Size(shape).numel() if numbers is None else numbers
    return TensorProto(dtype=dtype, tensor_shape=dims, tensor_content=b"\0\0\x80?" * count)


def repeated(*shape: int) -> TensorProto:
    """One number that stands for all."""
    return TensorProto(dtype=DT_FLOAT, tensor_shape=proto(*shape, numbers=0).tensor_shape, float_val=[1.0])


def text(content: str | bytes) -> TensorProto:
    return TensorProto(dtype=DT_STRING, string_val=[content if isinstance(content, bytes) else content.encode()])


def texts(*shape: int) -> TensorProto:
    """One text that stands for all."""
    return TensorProto(dtype=DT_STRING, tensor_shape=proto(*shape, numbers=0).tensor_shape, string_val=[b"[]"])


def forge(folder: Path, tag: str, content: bytes, value: TensorProto, step: int = 0) -> None:
    """A run with one forged record."""
    with writer(folder) as out:
        out.write([GOOD["events"]._replace(tag="calib/events.good")], 0)  # so that the run is there in any case
        put(out, tag, content, value, step)


def put(out: RecordWriter, tag: str, content: bytes, value: TensorProto, step: int = 0) -> None:
    """One record with its metadata as they are given."""
    plugin = SummaryMetadata.PluginData(plugin_name="lightning_calib", content=content)
    about = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    summary = Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=value)])
    out.experiment._get_file_writer().add_summary(summary, step)
