"""What stock TensorBoard is given to show the scalars well: charts, a text on how to read them, and links."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch.utils.tensorboard import SummaryWriter

from lightning_calib.tensorboard.contract import LOGGED, PLUGIN, SCALARS

_CHARTS = {
    chart: tuple(scalar.name for scalar in SCALARS if scalar.chart == chart)
    for chart in dict.fromkeys(scalar.chart for scalar in SCALARS if scalar.chart)
}
# Value, lower and upper edge: what was used, and the largest since the last row.
_BAND = (
    "gradient norm, up to the largest since the last row",
    ("grad_norm_before", "grad_norm_after", "grad_norm_max"),
)
_PINNED = ("grad_norm_before", "grad_norm_after", "clip_fraction", "update_ratio")
_HOST = "http://localhost:6006/"
_TEXT = """\
Gradient norms are 2-norms, unscaled, after accumulation. Look at them on a logarithmic axis, without smoothing.

| tag | how to read it |
|---|---|
{rows}

The tab **Gradients** has every layer: [open it]({tab}). In Time Series, [with these cards pinned]({pinned}).
"""


def charts(suffixes: Sequence[str]) -> dict[str, Any]:
    """The layout of Custom Scalars, one category per optimizer; tags of several lines are regular expressions there."""
    layout = {}
    for suffix in suffixes:
        lines: dict[str, Any] = {
            title: ["Multiline", [f"^{re.escape(f'calib/{name}{suffix}')}$" for name in names]]
            for title, names in _CHARTS.items()
        }
        title, edges = _BAND
        lines[title] = ["Margin", [f"calib/{name}{suffix}" for name in edges]]
        layout["gradients" + (f" of optimizer {suffix.removeprefix('/')}" if suffix else "")] = lines
    return layout


class Address:
    """Where TensorBoard shows a run when it is started on the folder above.

    Args:
        folder: The run's own folder.
    """

    logdir: str
    run: str

    def __init__(self, folder: str) -> None:
        path = Path(folder)
        self.logdir, self.run = str(path.parent), path.name
        if "://" in folder:  # a bucket's address, of whose slashes `Path` would take one
            self.logdir, _, self.run = folder.rstrip("/").rpartition("/")

    @property
    def command(self) -> str:
        """What starts TensorBoard."""
        return f"tensorboard --logdir {self.logdir if ' ' not in self.logdir else json.dumps(self.logdir)}"

    @property
    def tab(self) -> str:
        """Our tab with this run."""
        return f"{_HOST}#{PLUGIN}&p.{PLUGIN}.run={quote(self.run, safe='')}"

    def pinned(self, suffixes: Sequence[str]) -> str:
        """Time Series with the scalars that matter pinned, and without smoothing."""
        cards = [{"plugin": "scalars", "tag": f"calib/{name}{suffix}"} for suffix in suffixes for name in _PINNED]
        pinned = json.dumps(cards[:10], separators=(",", ":"))  # it pins ten at most
        return f"{_HOST}?pinnedCards={quote(pinned, safe='')}&smoothing=0#timeseries"


def furnish(experiment: SummaryWriter, suffixes: Sequence[str]) -> Address:
    """Write charts and text into a run's event file, once; returns where they are seen."""
    address = Address(str(experiment.log_dir))
    experiment.add_custom_scalars(charts(suffixes))
    rows = "\n".join(f"| `calib/{scalar.name}` | {scalar.reading} |" for scalar in LOGGED)
    text = _TEXT.format(rows=rows, tab=address.tab, pinned=address.pinned(suffixes))
    experiment.add_text("calib/how to read", text)
    return address
