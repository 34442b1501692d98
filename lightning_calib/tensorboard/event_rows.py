"""What a run has logged, read back from its event files as arrays: every number with its name, its layer, its step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.layer_rows import LayerRows
from lightning_calib.report.run import Floats
from lightning_calib.report.shadow_rows import ShadowRows
from lightning_calib.tensorboard.facts_record import FactsRecord


class OptimizerRows(NamedTuple):
    """The rows of one optimizer.

    Attributes:
        optimizer: Its index.
        name: Its class; empty if not known.
        step: Of the rows of scalars, (R,), ascending.
        scalars: Each of shape (R,), by the name of its tag without ``calib/``, such as "grad_norm_before" or
            "clip_fraction.mine"; and those that have no tag, such as "loss".
        layers: Rows of tensors; None without any.
        facts: What stays the same; None in files of the first edition.
        events: What happened to it, as in `EventRows`.
        shadows: Of policies that were judged and never applied; None without any.
    """

    optimizer: int
    name: str
    step: NDArray[np.int64]
    scalars: Mapping[str, Floats]
    layers: LayerRows | None
    facts: FactsRecord | None
    events: tuple[Mapping[str, Any], ...] = ()
    shadows: ShadowRows | None = None


@dataclass(frozen=True, eq=False)
class EventRows:
    """Everything of ours in the event files of one run; `read_events` makes one.

    In every array **nan means that there is no such number** (no gradient, no step taken, not measured), **and inf that
    it was inf or nan**.

    Attributes:
        run: Name of its folder.
        optimizers: The rows of each optimizer.
        events: What happened, in words and in the order of steps: each with ``step``, ``kind``, ``text``, ``layer``,
            ``value``.
        problems: What could not be read, in words.
    """

    run: str
    optimizers: tuple[OptimizerRows, ...]
    events: tuple[Mapping[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    folder: Path = field(default=Path(), repr=False)

    def to_pandas(self) -> Any:
        """One ``DataFrame``, a line for each number: ``optimizer``, ``step``, ``layer``, ``name``, ``value``.

        Numbers that do not belong to a layer have an empty one there. Numbers that there are none of are left out.

        Raises:
            ImportError: Without pandas, which this package does not install.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise ImportError(
                "`to_pandas` needs pandas, which is not installed. `pip install pandas`, or use the arrays."
            ) from None
        columns: dict[str, list[Any]] = {key: [] for key in ("optimizer", "step", "layer", "name", "value")}
        for parts in self._parts():
            for column, part in zip(columns.values(), parts, strict=True):
                column.append(part)
        return pandas.DataFrame(
            {key: np.concatenate(parts) if parts else np.zeros(0) for key, parts in columns.items()}
        )

    def _parts(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Of each statistic the five columns."""
        for one in self.optimizers:
            tables: list[tuple[str, NDArray[np.int64], tuple[str, ...], Floats]] = [
                (name, one.step, ("",), values[:, None]) for name, values in one.scalars.items()
            ]
            if (layers := one.layers) is not None:
                tables += [(name, layers.step, layers.names, values) for name, values in layers.values.items()]
            for name, steps, names, values in tables:
                row, column = np.nonzero(~np.isnan(values))
                labels, size = np.array(names, object), len(row)
                index, called = np.full(size, one.optimizer), np.full(size, name, object)
                yield index, steps[row], labels[column], called, values[row, column]
