"""Records into the event file that the logger has open: one summary per step, binary tensors, metadata once."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_calib.tensorboard.contract import PLUGIN, VERSION


class Record(NamedTuple):
    """One value of one tag.

    Attributes:
        tag: As in the module ``contract``.
        about: What the tab must know to read it, as JSON; written with the first value of the tag only.
        value: A float32 tensor on the CPU, of any shape, or a text.
    """

    tag: str
    about: Mapping[str, Any]
    value: Tensor | str


class RecordWriter:
    """Writes records through a ``SummaryWriter``: a second event file of our own would freeze one of the two."""

    def __init__(self, experiment: SummaryWriter) -> None:
        self.experiment = experiment
        self._known: set[str] = set()

    def write(self, records: Sequence[Record], step: int) -> None:
        """Append all records of a step as one summary."""
        summary = Summary(value=[self._value(record) for record in records])
        self.experiment._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]

    def _value(self, record: Record) -> Summary.Value:
        value = Summary.Value(tag=record.tag, tensor=_proto(record.value))
        if record.tag not in self._known:
            self._known.add(record.tag)
            content = json.dumps({"version": VERSION, **record.about}).encode()
            plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=content)
            value.metadata.CopyFrom(SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR))
        return value


def record_writer(logger: Any) -> RecordWriter | None:
    """A writer into a logger's own file; None where it has no ``SummaryWriter``, as on other ranks than zero."""
    try:
        experiment = logger.experiment
    except Exception:  # somebody else's logger, which will say so itself
        return None
    return RecordWriter(experiment) if isinstance(experiment, SummaryWriter) else None


def _proto(value: Tensor | str) -> TensorProto:
    if isinstance(value, str):
        return TensorProto(dtype=DT_STRING, string_val=[value.encode()])
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in value.shape])
    content = value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return TensorProto(dtype=DT_FLOAT, tensor_shape=shape, tensor_content=content)
