"""What is installed by people who did not clone the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import lightning_calib
from lightning_calib.tensorboard.assets import FOLDER, TYPES

ROOT = Path(lightning_calib.__file__).parents[1]


def test_the_wheel_holds_the_front_end_and_the_entry_point(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "lightning_calib = lightning_calib.tensorboard.loader:GradientsLoader" in wheel.read(points).decode()
        assert "[tensorboard_plugins]" in wheel.read(points).decode()
    served = {path.name for path in FOLDER.iterdir() if path.suffix in TYPES}
    assert "index.js" in served
    assert {f"lightning_calib/panels/{name}" for name in served} <= names
    assert {f"lightning_calib/tensorboard/{name}.py" for name in ("loader", "plugin", "contract")} <= names
    assert "lightning_calib/dashboard/event_file.py" in names
