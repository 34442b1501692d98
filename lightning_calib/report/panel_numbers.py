"""The numbers of one optimizer as a page holds them: thinned and rounded until they fit, compressed, as text."""

import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.layer_rows import LayerRows
from lightning_calib.report.run import Floats, Layers, Run

# As in the records of event files: what stands where there is no number, and how a module's value follows from those
# of its tensors.
ABSENT, ABSENT_SIGNED = -1.0, float("-inf")
SIGNED = ("loss", "loss_max", "loss_first", "val_loss")
FOLDS = {"before": "l2", "after": "l2", "peak": "max", "weight": "l2", "update": "l2"}
LEAST_COLUMNS = 64  # below which layers are not thinned, however many there are
_EXACT = 2**16  # elements of a tensor; of a larger one weight and update are measured on a sample
_WORDS = {
    "nonfinite": "A guard found a gradient that was not finite.",
    "spike": "A guard found a spike of the gradient or of the loss.",
    "rewind": "The weights were set back to a snapshot.",
}


class Pictured(NamedTuple):
    """What the panels show of one optimizer.

    Attributes:
        optimizer: Its index.
        name: Its class.
        step: Of the rows of scalars, (R,), ascending.
        scalars: Each of shape (R,), by name; nan and inf as in `LayerRows`.
        layers: None without any.
        events: Each with ``step``, ``kind``, ``text``, ``layer``, ``value``, of what JSON knows.
    """

    optimizer: int
    name: str
    step: NDArray[np.int64]
    scalars: Mapping[str, Floats]
    layers: LayerRows | None = None
    events: Sequence[Mapping[str, Any]] = ()


def pictured(run: Run) -> Pictured:
    """What a fit in memory knows: rows of scalars and layers, and which steps a guard has told of."""
    scalars = run.scalars._asdict()
    step = scalars.pop("step")
    layers = None if run.layers is None else _table(run.layers)
    return Pictured(
        run.facts.position, run.facts.optimizer, step, scalars, layers, [_event(one) for one in run.bad_steps]
    )


def _table(layers: Layers) -> LayerRows:
    estimated = tuple(size > _EXACT for size in layers.sizes)
    values = {name: getattr(layers, name) for name in FOLDS}
    return LayerRows(layers.names, layers.owners, layers.dims, estimated, layers.step, values)


def _event(one: BadStep) -> dict[str, Any]:
    return {
        "step": one.step,
        "kind": one.kind,
        "text": _WORDS.get(one.kind, one.kind),
        "layer": one.layer,
        "value": None,
    }


class Packed(NamedTuple):
    """An optimizer as JSON.

    Attributes:
        held: What the page holds.
        width: Logged rows of layers in one column, 1 where nothing was thinned.
    """

    held: dict[str, Any]
    width: int


def packed(one: Pictured, share: int) -> Packed:
    """One optimizer as the page holds it.

    Args:
        one: The optimizer.
        share: Characters that the values of its layers may take.
    """
    names, layers, width = [*one.scalars], None, 1
    if one.layers is not None:
        layers, width = _fitted(one.layers, share)
    columns = [_marked(one.scalars[name], ABSENT_SIGNED if name in SIGNED else ABSENT) for name in names]
    kinds = [kind for kind, there in (("layers", layers), ("globals", len(one.step)), ("hist", layers)) if there]
    last = max([int(one.step[-1])] if len(one.step) else [0], default=0)
    held = {
        "about": {"optimizer": one.optimizer, "name": one.name, "kinds": kinds, "last_step": last},
        "globals": {"names": names, "steps": one.step.tolist(), "columns": _text(np.array(columns, np.float32), 4)},
        "layers": layers,
        "events": [dict(event) for event in one.events],
    }
    return Packed(held, width)


def _fitted(table: LayerRows, share: int) -> tuple[dict[str, Any], int]:
    """Of as many logged rows as need be the largest value, so that no spike and nothing that is not finite is lost."""
    wire = {name: _marked(table.values[name], ABSENT) for name in FOLDS if name in table.values}
    width = 1
    while True:
        starts = np.arange(0, len(table.step), width)
        joined = wire if width == 1 else {name: np.maximum.reduceat(one, starts) for name, one in wire.items()}
        texts = {name: _text(one.T, 2) for name, one in joined.items()}
        if sum(map(len, texts.values())) <= share or len(starts) < 2 * LEAST_COLUMNS:
            break
        width *= 2
    ends = np.append(starts[1:], len(table.step)) - 1
    named = {"rows": table.names, "owners": table.owners, "dims": table.dims, "estimated": table.estimated}
    of_stats = [{"name": name, "fold": FOLDS[name]} for name in texts]
    lists = {key: list(values) for key, values in named.items()}
    steps = table.step[ends].tolist()
    return {**lists, "stats": of_stats, "steps": steps, "thinned": width > 1, "values": texts}, width


def _marked(values: Floats, absent: float) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which the panels show as such
        return np.where(np.isnan(values), absent, values).astype(np.float32)


def _text(values: NDArray[np.float32], kept: int) -> str:
    """Base64 of the deflated bytes of each number, all first bytes before all second ones.

    Args:
        values: In row-major order.
        kept: Bytes of each number, from its sign on: 4 is all of it, 2 has eight bits of fraction (bfloat16).
    """
    bits = np.ascontiguousarray(values, ">f4").view(">u4").astype(np.uint64)
    if kept == 2:
        finite = np.isfinite(values)
        bits = np.where(finite, bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1)), bits)
    planes = bits.astype(">u4").reshape(-1, 1).view(np.uint8).T[:kept]
    return b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes())).decode()
