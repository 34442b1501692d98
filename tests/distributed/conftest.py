"""What several processes have found: all cases of a kind are played once, in one process group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from two_processes import flat, flat_slow, flat_values, values
from two_processes.launch import CASES, FOUR, SKIPPED, SLOW, WORLD, named

FLAT = (flat, flat_values, flat_slow)


def _played(folder: Path, names: list[str], processes: int = WORLD, limit: int = 300) -> Callable[[str], None]:
    """Fails with what the processes have told about a case, if anything."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PROCESSES"] = str(processes)
    command = [sys.executable, "-m", "two_processes.launch", str(folder), *names]
    script = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        script.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(script.pid, signal.SIGKILL)  # they wait for each other; what they have told before is kept
    told: list[dict[str, str]] = []
    for rank in range(processes):
        file = folder / f"rank{rank}.jsonl"
        told.append(dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {})

    def check(name: str) -> None:
        for rank in range(processes):
            trouble = told[rank].get(name, "It was not reached, or never ended.")
            if trouble.startswith(SKIPPED):
                pytest.skip(trouble.removeprefix(SKIPPED))
            assert not trouble, f"process {rank}: {trouble}"

    return check


@pytest.fixture(scope="session")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Of fits under DDP, FSDP2 and tensor parallel."""
    names = [name for name in CASES if name not in named(CASES, values, *FLAT)]
    return _played(tmp_path_factory.mktemp("ranks"), names)


@pytest.fixture(scope="session")
def passed_values(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Of DTensors without a fit; apart, so that two workers can play them side by side."""
    return _played(tmp_path_factory.mktemp("values"), named(CASES, values))


@pytest.fixture(scope="session")
def passed_flat(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Of FSDP1."""
    return _played(tmp_path_factory.mktemp("flat"), named(CASES, *FLAT))


@pytest.fixture(scope="session")
def passed_slow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """What takes long."""
    return _played(tmp_path_factory.mktemp("slow"), list(SLOW), limit=900)


@pytest.fixture(scope="session")
def passed_four(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """What four processes have found."""
    return _played(tmp_path_factory.mktemp("four"), list(FOUR), 4)
