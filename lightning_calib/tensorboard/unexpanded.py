"""Records as they lie in the event file, seen before TensorBoard expands them: a few bytes may promise any size."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

from numpy.typing import NDArray
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING, DataType
from tensorboard.data.grpc_provider import GrpcDataProvider

# Whether the records of a tag may be expanded, given the tag, their steps, and the records (``TensorProto``).
Admit = Callable[[str, Sequence[int], Sequence[Any]], bool]


class Form(NamedTuple):
    """What a record is, known without its values.

    Attributes:
        kind: "float32", "text", or the name of another type.
        shape: As it says itself.
        held: What it holds: bytes of numbers; of text the number of texts.
    """

    kind: str
    shape: tuple[int, ...]
    held: int


def form_of_proto(record: Any) -> Form:
    """Of a ``TensorProto`` as it was written."""
    shape = tuple(axis.size for axis in record.tensor_shape.dim)
    if record.dtype == DT_FLOAT:  # the order of TensorBoard's `make_ndarray`: the bytes, if there are any
        return Form("float32", shape, len(record.tensor_content) or 4 * len(record.float_val))
    if record.dtype == DT_STRING:
        return Form("text", shape, 0 if record.tensor_content else len(record.string_val))
    names = {number: name for name, number in DataType.items()}
    return Form(names.get(record.dtype, f"type {record.dtype}"), shape, 0)


def form_of_array(value: NDArray[Any]) -> Form:
    """Of a record that was expanded."""
    if value.dtype.kind in "OSU":
        return Form("text", value.shape, value.size)
    return Form(str(value.dtype), value.shape, value.nbytes)


def screened(provider: Any, admit: Admit) -> Any | None:
    """A data provider that expands only the records of tags that are admitted; the others have none.

    TensorBoard's interface of data providers gives expanded records only, so what stands behind its two providers is
    asked: the multiplexer of the Python loader, and the connection to the data server. Both hold records as written.

    Args:
        provider: TensorBoard's data provider; it stays as it is.
        admit: Asked once for each tag that is read.

    Returns:
        None if the provider is neither of the two.
    """
    for kind, name, source in _SOURCES:
        if isinstance(provider, kind) and hasattr(provider, name):
            found = copy(provider)
            setattr(found, name, source(getattr(provider, name), admit))
            return found
    return None


class _Multiplexer:
    def __init__(self, multiplexer: Any, admit: Admit) -> None:
        self._multiplexer, self._admit = multiplexer, admit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._multiplexer, name)

    def Tensors(self, run: str, tag: str) -> list[Any]:  # noqa: N802  # TensorBoard's name
        found = list(self._multiplexer.Tensors(run, tag))
        admitted = self._admit(tag, [event.step for event in found], [event.tensor_proto for event in found])
        return found if admitted else []


class _Stub:
    def __init__(self, stub: Any, admit: Admit) -> None:
        self._stub, self._admit = stub, admit

    def ReadTensors(self, request: Any) -> Any:  # noqa: N802  # TensorBoard's name
        answer = self._stub.ReadTensors(request)
        for run in answer.runs:
            for tag in run.tags:
                if not self._admit(tag.tag_name, tag.data.step, tag.data.value):
                    tag.ClearField("data")
        return answer


_SOURCES: tuple[tuple[Any, str, Callable[[Any, Admit], Any]], ...] = (
    (MultiplexerDataProvider, "_multiplexer", _Multiplexer),
    (GrpcDataProvider, "_stub", _Stub),
)
