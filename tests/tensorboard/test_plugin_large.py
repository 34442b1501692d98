"""A thousand layers over a thousand steps: answered at once; and what does not fit in one read."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from board import LOADERS, Board, board
from written import GLOBAL_NAMES, layers, totals, writer

from lightning_calib.tensorboard import reading

LAYERS = STEPS = 1000
NAMES = [f"model.blocks.{i // 10}.part{i % 10}.weight" for i in range(LAYERS)]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    with writer(folder) as out:
        value = torch.arange(LAYERS * 5.0).reshape(LAYERS, 5)
        for step in range(STEPS):
            value[123, 2] = 1e6 if step == 777 else 1.0  # a spike
            out.write([layers(NAMES, value), totals(torch.full((len(GLOBAL_NAMES),), float(step)))], step)
    return folder


@pytest.fixture(scope="module", params=LOADERS)
def tab(request: pytest.FixtureRequest, logs: Path) -> Iterator[Board]:
    with board(logs, request.param) as tab:
        tab.until(lambda tab: tab.runs() and tab.runs()["."]["optimizers"][0]["last_step"] == STEPS - 1, seconds=30)
        yield tab


def test_a_million_numbers_come_in_four_megabytes_and_at_once(tab: Board) -> None:
    start = time.perf_counter()
    answer = tab.ask("layers", run=".", stat="peak")
    assert time.perf_counter() - start < 5.0  # 0.3 s on two shared cores
    assert answer.status_code == 200
    assert 0 <= len(answer.data) - 4 * LAYERS * STEPS < 200_000
    found = tab.frame("layers", run=".", stat="peak")
    assert found.values.shape == (LAYERS, STEPS)
    assert np.argwhere(found.values == 1e6).tolist() == [[123, 777]]


def test_a_module_of_a_thousand_layers_is_folded_at_once(tab: Board) -> None:
    start = time.perf_counter()
    found = tab.frame("node", run=".", path="")
    assert time.perf_counter() - start < 5.0
    assert found.values.shape == (5, STEPS)
    expected = torch.arange(LAYERS * 5.0, dtype=torch.float64).reshape(LAYERS, 5)[:, 0].norm()
    assert found.row("before")[0] == pytest.approx(expected.item(), rel=1e-6)
    assert found.row("peak")[777] == 1e6


def test_what_does_not_fit_in_one_read_is_thinned_and_said_so(tab: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 2**20)
    found = tab.frame("layers", run=".", stat="peak")
    assert found.header["thinned"] is True
    assert found.values.shape == (LAYERS, 2**20 // (4 * (LAYERS * 5 + len(GLOBAL_NAMES))))
    assert found.header["steps"] == sorted(set(found.header["steps"]))
    assert found.header["steps"][-1] == STEPS - 1
    assert tab.frame("globals", run=".").header["thinned"] is False
