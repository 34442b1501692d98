"""The records of the callbacks' own stream are what the tab reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from board import LOADERS, board
from written import NAMES, norms, owner, whole, writer

from lightning_calib.dashboard.record_stream import RecordStream
from lightning_calib.dashboard.records import Logged, Rows

STEPS = 45


@pytest.mark.parametrize("loader", LOADERS)
def test_a_stream_is_served_as_it_was_told(tmp_path: Path, loader: str) -> None:
    size = len(NAMES)
    owners = tuple(owner(name) for name in NAMES)
    stream = RecordStream(Rows(1, "SGD", "/1", NAMES, owners, (2,) * size, (False,) * size))
    modules, told = stream.rows.modules, []
    with writer(tmp_path) as out:
        for step in range(STEPS):
            counts = torch.full((2, len(modules), 67), float(step)) if stream.histogram_due else None
            told.append(norms(NAMES, step, STEPS))
            row = Logged(step, told[-1], whole(told[-1], step, STEPS), counts, torch.zeros(size, dtype=torch.bool))
            records, stream = stream.after(row)
            out.write(records, step)
    with board(tmp_path, loader) as tab:
        tab.until(lambda tab: tab.runs() and tab.runs()["."]["optimizers"][0]["last_step"] == STEPS - 1)
        (optimizer,) = tab.runs()["."]["optimizers"]
        assert optimizer["kinds"] == ["layers", "globals", "hist", "events"]
        assert (optimizer["optimizer"], optimizer["name"], tab.runs()["."]["problems"]) == (1, "SGD", [])
        layers = tab.frame("layers", run=".", optimizer=1, stat="peak")
        assert (layers.header["rows"], layers.header["owners"]) == (list(NAMES), list(owners))
        np.testing.assert_array_equal(layers.values, torch.stack([value[:, 2] for value in told], dim=1).numpy())
        hist = tab.frame("hist", run=".", optimizer=1, path=modules[0])
        assert hist.header["steps"] == [0, 10, 20, 30, 40]
        assert hist.values[:, 0, 5].tolist() == [0, 10, 20, 30, 40]
        kinds = {each["kind"] for each in tab.json("events", run=".", optimizer=1)["events"]}
        assert {"nonfinite", "skip"} <= kinds
