"""What was measured, when, and on what: a JSON file, one entry per part."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers

FILE = Path(__file__).parent / "results" / "performance.json"
Results = dict[str, dict[str, Any]]  # by part: "made", how and when, and "data"


def made(command: str, quick: bool, seconds: float) -> dict[str, Any]:
    """The head of one part."""
    own = {name: version(name) for name in ("torch", "lightning", "tensorboard")}
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": command,
        "quick": quick,
        "seconds": round(seconds),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {"lightning-calib": _own(), "python": platform.python_version(), **own},
        "peers": peers.versions(),
    }


def machine() -> str:
    """In words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores ({name}), {memory:.0f} GiB of memory, {platform.system()}, no GPU used"


def load(file: Path = FILE) -> Results:
    return json.loads(file.read_text()) if file.exists() else {}  # type: ignore[no-any-return]


def save(new: Results, file: Path = FILE) -> Results:
    """Put the parts of `new` into the file; the others stay as they are."""
    together = {**load(file), **new}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(together, indent=1) + "\n")
    return together


def _own() -> str:
    import lightning_calib

    return lightning_calib.__version__
