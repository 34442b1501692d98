"""What two processes have found: all cases are played once, in one process group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from two_processes.launch import WORLD


@pytest.fixture(scope="session")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Fails with what the processes have told about a case, if anything."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "two_processes.launch", str(folder)]
    script = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        script.wait(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(script.pid, signal.SIGKILL)  # they wait for each other; what they have told before is kept
    told: list[dict[str, str]] = []
    for rank in range(WORLD):
        file = folder / f"rank{rank}.jsonl"
        told.append(dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {})

    def check(name: str) -> None:
        for rank in range(WORLD):
            trouble = told[rank].get(name, "It was not reached, or never ended.")
            assert not trouble, f"process {rank}: {trouble}"

    return check
