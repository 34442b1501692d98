"""TensorBoard starts, whatever is wrong with us; and the tab costs nothing until it is opened."""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from board import LOADERS, ROUTES, board
from written import NAMES, append, run, writer

from lightning_calib.tensorboard.loader import GradientsLoader

# Runs with some libraries missing, as on a machine that has TensorBoard alone.
WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""


def python(code: str, *arguments: str, names: tuple[str, ...] = ()) -> str:
    source = WITHOUT.format(names=names) + code
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_entry_point_leads_to_the_loader() -> None:
    (found,) = [each for each in entry_points(group="tensorboard_plugins") if each.name == "lightning_calib"]
    assert found.load() is GradientsLoader


def test_the_loader_needs_neither_torch_nor_lightning_nor_numpy() -> None:
    code = """
import threading
from lightning_calib.tensorboard.loader import GradientsLoader
GradientsLoader().fix_flags(None)
print(sorted(name for name in sys.modules if name.startswith("lightning_calib")), threading.active_count())
"""
    out = python(code, names=("torch", "lightning", "pytorch_lightning", "numpy"))
    modules = [
        f"lightning_calib{rest}" for rest in ("", ".tensorboard", ".tensorboard.contract", ".tensorboard.loader")
    ]
    assert out.strip() == f"{modules} 1"


SERVE = f"""
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from board import board
with board(Path(sys.argv[1]), "python") as tab:
    print(sorted(tab.get("/data/plugins_listing").json), tab.ask("runs").status_code)
"""


def test_the_tab_itself_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    run(tmp_path, 2)
    out = python(SERVE, str(tmp_path), names=("torch", "lightning", "pytorch_lightning"))
    assert "['lightning_calib', 'projector'] 200" in out


def test_a_tab_that_cannot_be_loaded_leaves_a_reason_and_the_others(tmp_path: Path) -> None:
    out = python(SERVE, str(tmp_path), names=("lightning_calib.tensorboard.plugin",))
    assert "No Gradients tab: ModuleNotFoundError: import of lightning_calib.tensorboard.plugin halted" in out
    assert "['projector'] 404" in out
    assert "Traceback" not in out


def test_without_a_data_provider_there_is_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    context = argparse.Namespace(data_provider=None)
    assert GradientsLoader().load(context) is None
    assert "--generic_data" in caplog.text


@pytest.mark.parametrize(("given", "expected"), [({}, 0), ({"scalars": 5}, 0), ({"lightning_calib": 7}, 7)])
def test_all_records_are_kept_unless_the_user_says_otherwise(given: dict[str, int], expected: int) -> None:
    flags = argparse.Namespace(samples_per_plugin=dict(given))
    GradientsLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {**given, "lightning_calib": expected}


@pytest.mark.parametrize("loader", LOADERS)
def test_the_flag_of_the_user_reaches_the_loader(tmp_path: Path, loader: str) -> None:
    run(tmp_path, 40)
    with board(tmp_path, loader, "--samples_per_plugin=lightning_calib=7") as tab:
        tab.until(lambda tab: tab.runs()["."]["optimizers"][0]["last_step"] == 39 if tab.runs() else False)
        assert len(tab.frame("globals", run=".").values) == 7


@pytest.mark.skipif("rust" not in LOADERS, reason="TensorBoard has no data server for this platform")
def test_a_data_server_that_is_gone_is_said_without_a_stack_trace(tmp_path: Path) -> None:
    run(tmp_path, 2, every_hist=0)
    with board(tmp_path, "rust") as tab:
        tab.until(lambda tab: tab.runs())
        tab.ingester._stdin_handle.close()
        end = time.monotonic() + 10
        while (answer := tab.ask("runs")).status_code == 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert (answer.status_code, answer.content_type) == (500, "application/json")
        assert "log" in answer.json["error"]
        assert "Traceback" not in answer.text


def test_the_command_serves_the_tab(tmp_path: Path) -> None:
    """The real thing: a process, a port, the data server where there is one."""
    with writer(tmp_path / "run") as out:
        append(out, range(5))
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={tmp_path}", "--port=0", "--load_fast=auto"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = next(line.split()[3] for line in process.stderr if "http://" in line).rstrip("/")
            end = time.monotonic() + 20
            while not (runs := json.loads(fetched(url + ROUTES + "runs"))["runs"]):
                assert time.monotonic() < end
                time.sleep(0.05)
            (optimizer,) = runs[0]["optimizers"]
            assert (runs[0]["run"], optimizer["name"], optimizer["last_step"]) == ("run", "AdamW", 4)
            assert NAMES[1].encode() in fetched(url + ROUTES + "layers?run=run&stat=before")
            assert b"render" in fetched(url + ROUTES + "index.js")
        finally:
            process.terminate()
            process.wait()


def fetched(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read()
