"""What a record of the tab is of, and a logged row on its way into one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

from torch import Tensor

from lightning_calib.dashboard.event_file import Record
from lightning_calib.report.shadow_rows import ShadowNames
from lightning_calib.steps.step_record import GuardEvent
from lightning_calib.tensorboard.contract import (
    GLOBAL_NAMES,
    GLOBALS,
    HISTOGRAM_COLUMNS,
    HISTOGRAMS,
    LAYERS,
    LOW_EXPONENT,
    SHADOW_COLUMNS,
    SHADOWS,
    SIDES,
    STATISTICS,
)


class Logged(NamedTuple):
    """A logged row, on the host.

    Attributes:
        step: Its x.
        layers: Shape (T, 5), see ``STATISTICS``.
        totals: Shape (23,), see ``GLOBAL_NAMES``.
        histograms: Shape (2, M, 67), see ``HISTOGRAM_COLUMNS``; None where none was taken.
        idle: Shape (T,), bool: tensors that are meant to have no gradient.
        incidents: What guards have found since the last row.
        shadows: Shape (S, 8), see ``SHADOW_COLUMNS``; None without shadows.
    """

    step: int
    layers: Tensor
    totals: Tensor
    histograms: Tensor | None
    idle: Tensor
    incidents: tuple[GuardEvent, ...] = ()
    shadows: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """What the numbers of a record are of.

    Attributes:
        optimizer: Its index.
        kind: Its class.
        suffix: Of the tags.
        names: The parameters.
        owners: For each the module that owns it.
        dims: For each its number of dimensions.
        estimated: For each whether the norms of weight and update are estimates.
        shadows: What the numbers of a shadows record are of.
    """

    optimizer: int
    kind: str
    suffix: str
    names: tuple[str, ...]
    owners: tuple[str, ...]
    dims: tuple[int, ...]
    estimated: tuple[bool, ...]
    shadows: ShadowNames = field(default=ShadowNames())  # a tuple

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The modules that own parameters, each once."""
        return tuple(dict.fromkeys(self.owners))

    @cached_property
    def module_of(self) -> tuple[int, ...]:
        """The position of each parameter's module among them."""
        place = {name: i for i, name in enumerate(self.modules)}
        return tuple(place[name] for name in self.owners)

    def record(self, kind: str, value: Tensor | str) -> Record:
        """One value of a tag; the tag carries a digest of the rows, so that other rows have another tag."""
        about: dict[str, Any] = {"kind": kind, "optimizer": self.optimizer, "optimizer_name": self.kind}
        digest = ""
        if kind == LAYERS:
            stats = [{"name": name, "fold": fold} for name, fold in STATISTICS.items()]
            about |= {"rows": self.names, "owners": self.owners, "dims": self.dims}
            about |= {"estimated": self.estimated, "stats": stats}
            digest = _digest(self.names)
        elif kind == GLOBALS:
            about |= {"names": GLOBAL_NAMES}
        elif kind == HISTOGRAMS:
            about |= {"rows": self.modules, "sides": SIDES, "columns": HISTOGRAM_COLUMNS, "low": LOW_EXPONENT}
            digest = _digest(self.modules)
        elif kind == SHADOWS:
            names, policies, scopes = self.shadows
            about |= {"rows": names, "policies": policies, "scopes": scopes, "columns": SHADOW_COLUMNS}
            digest = _digest(names)
        return Record(f"calib/{kind}{digest}{self.suffix}", about, value)


def _digest(names: Sequence[str]) -> str:
    return "." + sha256(json.dumps(names).encode()).hexdigest()[:8]
