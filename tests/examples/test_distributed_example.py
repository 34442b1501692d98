"""Two processes run the distributed example, started by Lightning and by torchrun, on whole and on cut parameters."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.run_example import EXAMPLES

SCRIPT = EXAMPLES / "distributed.py"
FAST = ["--accelerator", "cpu", "--fast"]
# The example, and a look at its parameters once training has begun.
LOOK = """
import sys
sys.path.insert(0, {folder!r})
import distributed
from torch.distributed.tensor import DTensor

class Watched(distributed.Perceptron):
    def on_train_start(self):
        halves = [2 * one.to_local().numel() == one.numel() for one in self.parameters() if isinstance(one, DTensor)]
        print(f"HALVES {{sum(halves)}} of {{len(list(self.parameters()))}} on rank {{self.global_rank}}", flush=True)

if __name__ == "__main__":
    distributed.Perceptron = Watched
    distributed.main()
"""

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


def start(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ends(process: subprocess.Popen[str]) -> str:
    """What it printed; its ranks wait for each other, so all of them are ended if it takes too long."""
    try:
        output, _ = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    return output


def results(output: str) -> tuple[float, float]:
    (line,) = re.findall(r"^val/accuracy (\S+) \(trivial baseline: nearest class mean (\S+)\)$", output, re.MULTILINE)
    return float(line[0]), float(line[1])


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the run prints under either strategy, with a NaN on the last process, and its folder."""
    folder = tmp_path_factory.mktemp("distributed")
    script = folder / "look.py"
    script.write_text(LOOK.format(folder=str(EXAMPLES)))
    command = [sys.executable, str(script), *FAST, "--devices", "2", "--spoil", "--strategy"]
    return {strategy: ends(start(folder, [*command, strategy])) for strategy in ("ddp", "fsdp2")}, folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_nan_on_one_process_is_skipped_by_both_and_told_once(printed, strategy):
    output = printed[0][strategy]
    reached, baseline = results(output)
    assert reached > baseline > 0.8
    assert len(re.findall("the loss was not finite on rank 1 of 2; .* the step is skipped", output)) == 1
    assert re.search(r"In 66 optimizer steps .*; 1 step was skipped\.$", output, re.MULTILINE)
    assert output.rstrip().splitlines()[-1].endswith("--logdir lightning_logs")


def test_one_process_writes_the_charts(printed):
    runs = [list(run.iterdir()) for run in (printed[1] / "lightning_logs" / "distributed").iterdir()]
    assert [len(files) for files in runs] == [2, 2], "a run of either strategy: events and hyper-parameters"


def test_sharded_parameters_give_the_norms_and_the_accuracy_of_whole_ones(printed):
    whole, sharded = printed[0]["ddp"], printed[0]["fsdp2"]
    assert set(re.findall(r"HALVES \d of \d on rank \d", whole)) == {f"HALVES 0 of 6 on rank {rank}" for rank in (0, 1)}
    assert set(re.findall(r"HALVES \d of \d on rank \d", sharded)) == {
        f"HALVES 6 of 6 on rank {rank}" for rank in (0, 1)
    }
    assert results(sharded) == results(whole)
    said = [re.findall("In 66 optimizer steps .*", output)[-1:] for output in (whole, sharded)]
    assert said[0] == said[1]  # three digits of every norm
    assert len(said[0]) == 1


@pytest.mark.slow
def test_two_machines_that_are_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *address]
    script = [str(SCRIPT), *FAST, "--devices", "1", "--num-nodes", "2"]
    nodes = [start(tmp_path, [*launcher, "--node-rank", node, *script]) for node in ("0", "1")]
    first, second = map(ends, nodes)
    reached, baseline = results(first)
    assert reached > baseline
    assert "trivial baseline" not in second, "the first machine alone speaks"
