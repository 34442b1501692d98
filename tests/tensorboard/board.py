"""TensorBoard's own application over a log directory, with either of its loaders, and a client to ask it."""

import json
import struct
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray
from tensorboard import default, program
from tensorboard.backend import application
from tensorboard.data import server_ingester
from tensorboard.plugins.core.core_plugin import CorePluginLoader
from werkzeug.test import Client, TestResponse

ROUTES = "/data/plugin/lightning_calib/"


def _loaders() -> tuple[str, ...]:
    """The data server exists for some platforms only; elsewhere TensorBoard reads in Python."""
    try:
        server_ingester.get_server_binary()
    except server_ingester.NoDataServerError:
        return ("python",)
    return ("rust", "python")


LOADERS = _loaders()


class Board:
    """A TensorBoard that is up; `ask` for anything of the tab."""

    def __init__(self, app: Any, ingester: Any, prefix: str = "") -> None:
        self.client, self.ingester, self.prefix = Client(app), ingester, prefix

    def get(self, path: str, /, **query: Any) -> TestResponse:
        return self.client.get(self.prefix + path + (f"?{urlencode(query)}" if query else ""))

    def ask(self, route: str, /, **query: Any) -> TestResponse:
        return self.get(ROUTES + route, **query)

    def json(self, route: str, /, **query: Any) -> Any:
        response = self.ask(route, **query)
        assert (response.status_code, response.content_type) == (200, "application/json"), response.text
        return json.loads(response.data, parse_constant=_not_json)

    def frame(self, route: str, /, **query: Any) -> "Frame":
        response = self.ask(route, **query)
        assert (response.status_code, response.content_type) == (200, "application/octet-stream"), response.text
        return Frame.read(response.data)

    def refusal(self, code: int, route: str, /, **query: Any) -> str:
        """The reason of an answer that must be a refusal."""
        response = self.ask(route, **query)
        assert (response.status_code, response.content_type) == (code, "application/json"), response.text
        return str(json.loads(response.data)["error"])

    def runs(self) -> dict[str, Any]:
        return {run["run"]: run for run in self.json("runs")["runs"]}

    def reload(self) -> None:
        """What the Python loader does every few seconds; the data server does it by itself."""
        if multiplexer := getattr(self.ingester, "deprecated_multiplexer", None):
            multiplexer.Reload()

    def until(self, reached: Any, seconds: float = 10.0) -> None:
        """Wait until the loader has seen what was written."""
        end = time.monotonic() + seconds
        while not reached(self):
            assert time.monotonic() < end, self.runs()
            time.sleep(0.02)
            self.reload()


class Frame(NamedTuple):
    header: dict[str, Any]
    values: NDArray[np.float32]

    @classmethod
    def read(cls, data: bytes) -> "Frame":
        (size,) = struct.unpack_from("<I", data)
        assert size % 4 == 0
        header = json.loads(data[4 : 4 + size].decode("ascii"), parse_constant=_not_json)
        return cls(header, np.frombuffer(data[4 + size :], "<f4").reshape(header["shape"]))

    def row(self, name: str) -> NDArray[np.float32]:
        """Of a layers frame, by the layer's name; of a node frame, by the statistic's."""
        labels = self.header["rows"] if "stat" in self.header else [each["name"] for each in self.header["stats"]]
        return self.values[labels.index(name)]


def _not_json(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


@contextmanager
def board(logdir: Path | None, loader: str, *flags: str, prefix: str = "") -> Iterator[Board]:
    """TensorBoard with the core and whatever is installed as an entry point, as the command line would start it."""
    served = program.TensorBoard([CorePluginLoader(), *default.get_dynamic_plugins()])
    where = [f"--logdir={logdir}"] if logdir else []
    fast = loader == "rust"
    reload = ["--load_fast=true", "--reload_interval=1"]
    if not fast:
        reload = ["--load_fast=false", "--reload_interval=0", "--reload_task=blocking"]
    served.configure(["tensorboard", *where, *reload, f"--path_prefix={prefix}", *flags])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the data server's Popen is dropped while it runs
        ingester = served._make_data_ingester()
    app = application.TensorBoardWSGIApp(
        served.flags,
        served.plugin_loaders,
        ingester.data_provider,
        served.assets_zip_provider,
        getattr(ingester, "deprecated_multiplexer", None),
    )
    try:
        yield Board(app, ingester, prefix)
    finally:
        if fast:
            ingester._stdin_handle.close()  # on which the data server ends
