"""DeepSpeed on two processes: what GradientMonitor tells is what it tells of the same model without DeepSpeed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

pytest.importorskip("deepspeed", reason="`make test-deepspeed` has it")

from zero.fits import CASES, WORLD


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Fails with what the processes have told about a case, if anything."""
    folder = tmp_path_factory.mktemp("zero")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = subprocess.Popen([sys.executable, "-m", "zero.fits", str(folder)], env=environment, start_new_session=True)
    try:
        script.wait(timeout=900)
    except subprocess.TimeoutExpired:
        os.killpg(script.pid, signal.SIGKILL)  # they wait for each other; what they have told before is kept
    files = [folder / f"rank{rank}.jsonl" for rank in range(WORLD)]
    told = [dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {} for file in files]

    def check(name: str) -> None:
        for rank, one in enumerate(told):
            trouble = one.get(name, "It was not reached, or never ended.")
            assert not trouble, f"process {rank}: {trouble}"

    return check


@pytest.mark.parametrize("name", CASES)
def test_two_processes_agree_that(name: str, passed: Callable[[str], None]) -> None:
    passed(name)
