"""Whether the package can be released as it lies here: `make release-check`.

Builds sdist and wheel and tries them as somebody would who has no clone: in environments of their own, in empty
folders, all of which are removed at the end. Needs nothing but a Python with pip and venv.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.parser import Parser
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ("--constraint", str(ROOT / "constraints.txt"))
MAY_BE_PULLED = {"torch", "lightning", "tensorboard", "torchmetrics"}
EXTRAS = {"examples", "plot", "pandas", "docs", "dev"}
SUFFIXES = {".py", ".js", ".css"}  # in the wheel, beside py.typed
IN_THE_SDIST = {
    *("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "SECURITY.md", "Makefile", "pyproject.toml"),
    *("constraints.txt", "constraints-oldest.txt", "docs/findings.md", "docs/images/gradients-light.png"),
    *("tests/conftest.py", "examples/vision.py", "benchmarks/results/performance.json"),
}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
FIT = f"""
import lightning_calib, sys
assert lightning_calib.__file__.startswith(sys.prefix), lightning_calib.__file__
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_calib import GradientMonitor, ZClip
callbacks = [ZClip(warmup_max_norm=1.0), GradientMonitor(histograms=True)]
logger = TensorBoardLogger("logs", name="run", version="")
arguments = {QUIET} | {{"logger": logger, "callbacks": callbacks, "max_epochs": 2, "log_every_n_steps": 1}}
Trainer(**arguments).fit(BoringModel())
"""
WITH_EXTRAS = """
import matplotlib
matplotlib.use("agg")
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning_calib import clip_find, read_events
found = clip_find(Trainer(max_epochs=2, **QUIET), BoringModel(), num_steps=50)
found.plot().savefig("clip.png")
assert len(read_events("logs").to_pandas()) > 0
""".replace("QUIET", repr(QUIET))
NO_TORCH = """
import sys
from importlib.metadata import entry_points
(point,) = entry_points(group="tensorboard_plugins", name="lightning_calib")
assert point.load().__name__ == "GradientsLoader"
from lightning_calib import Report, read_events
found = [name for name in ("torch", "lightning", "pytorch_lightning") if name in sys.modules]
assert not found, found
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("this environment was to have no torch")
"""
ROUTES = {
    "index.js": {},
    "style.css": {},
    "runs": {},
    "report": {"run": "run"},
    "events": {"run": "run"},
    "globals": {"run": "run"},
    "layers": {"run": "run", "stat": "before"},
    "node": {"run": "run", "path": "layer"},
    "hist": {"run": "run", "path": "layer"},
}


class Environment:
    """A new virtual environment, which sees no package but what is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.environ |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(self, program: str, *arguments: str, cwd: Path) -> str:
        """Its output; what it printed is shown where it fails."""
        done = subprocess.run(
            [str(self.bin / program), *arguments], cwd=cwd, env=self.environ, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(
                f"{program} {' '.join(arguments)[:300]} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )
        return done.stdout

    def install(self, *what: str) -> None:
        self.run("python", "-m", "pip", "install", "--quiet", *CONSTRAINTS, *what, cwd=ROOT)


def built(folder: Path, tools: Environment) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it."""
    tools.install("build", "hatchling", "twine")
    tools.run("python", "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder.parent)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    tools.run("python", "-m", "twine", "check", "--strict", str(sdist), str(wheel), cwd=folder)
    return sdist, wheel


def tracked() -> list[str]:
    """The files of the package that are under version control; all that lie there outside of a clone."""
    git = subprocess.run(["git", "ls-files", "lightning_calib"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0 and git.stdout:
        return git.stdout.splitlines()
    return [str(one.relative_to(ROOT).as_posix()) for one in (ROOT / "lightning_calib").rglob("*") if one.is_file()]


def check_files(sdist: Path, wheel: Path) -> Message:
    """The wheel has the package and nothing else, the sdist what belongs to a release; returns the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    wanted = {name for name in tracked() if Path(name).suffix in SUFFIXES or Path(name).name == "py.typed"}
    wanted |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    same("files of the wheel", names, wanted)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    missing = (IN_THE_SDIST | {name for name in tracked() if Path(name).suffix in SUFFIXES}) - inside
    same("files that the sdist lacks", missing, set())
    return metadata


def same(what: str, found: object, wanted: object) -> None:
    if isinstance(found, set) and isinstance(wanted, set):
        found, wanted = sorted(found - wanted), sorted(wanted - found)
        if not found and not wanted:
            return
        raise SystemExit(f"{what}: there should not be {found}, there should be {wanted}")
    if found != wanted:
        raise SystemExit(f"{what}: {found!r} is not {wanted!r}")


def check_metadata(metadata: Message) -> None:
    """What an index shows: dependencies, extras, the dated version, and a README that stands alone."""
    required = [str(one) for one in metadata.get_all("Requires-Dist", [])]
    plain = {re.split(r"[^A-Za-z0-9_-]", one)[0] for one in required if "extra ==" not in one}
    if not plain <= MAY_BE_PULLED:
        raise SystemExit(f"an installation pulls {sorted(plain - MAY_BE_PULLED)}")
    missing = EXTRAS - set(metadata.get_all("Provides-Extra", []))
    same("extras that are missing", missing, set())
    version = str(metadata["Version"])
    dates = re.findall(r"^## \[(\S+)\] - (\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    same("the version on top of the CHANGELOG, with its date", [one for one, _ in dates][:1], [version])
    citation = (ROOT / "CITATION.cff").read_text()
    for line in (f"version: {version}", f'date-released: "{dates[0][1]}"'):
        if line not in citation.splitlines():
            raise SystemExit(f"CITATION.cff must have the line {line!r}")
    links = re.findall(r"\]\(((?!https?://|#)[^)]+)\)", str(metadata.get_payload()))
    same("links of the README that lead nowhere on an index's page", links, [])


def quick_start(clean: Environment, folder: Path) -> None:
    """Every Python block of the README, each in an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    if not blocks:
        raise SystemExit("the README has no Python block")
    for number, block in enumerate(blocks):
        empty = folder / f"quick-start-{number}"
        empty.mkdir()
        (empty / "run.py").write_text(block)
        clean.run("python", "run.py", cwd=empty)


def command_line(clean: Environment, folder: Path) -> None:
    """A fit in an empty folder, and what the command line says of it."""
    (folder / "fit.py").write_text(FIT)
    clean.run("python", "fit.py", cwd=folder)
    clean.run("lightning-calib", "doctor", cwd=folder)
    report = json.loads(clean.run("lightning-calib", "report", "logs", "--format", "json", cwd=folder))
    if "verdict" not in json.dumps(report):
        raise SystemExit(f"`lightning-calib report --format json` gave no verdict: {report}")


@contextmanager
def tensorboard(environment: Environment, folder: Path) -> Iterator[str]:
    """The address of a TensorBoard on the logs, which is ended afterwards."""
    log = folder / "tensorboard.log"
    command = [str(environment.bin / "tensorboard"), "--logdir", "logs", "--port", "0", "--host", "127.0.0.1"]
    with log.open("w") as out:
        board = subprocess.Popen(command, cwd=folder, env=environment.environ, stdout=out, stderr=out)
        try:
            for _ in range(300):
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
                if found or board.poll() is not None:
                    break
                time.sleep(0.2)
            if not found:
                raise SystemExit(f"TensorBoard did not start:\n{log.read_text()}")
            yield found[0]
        finally:
            board.terminate()
            board.wait()


def asked(address: str, route: str, **query: str) -> bytes:
    with urlopen(f"{address}/data/{route}?{urlencode(query)}", timeout=60) as answer:  # of our own TensorBoard
        return bytes(answer.read())


def check_routes(environment: Environment, folder: Path) -> None:
    """The tab is listed, and each of its routes answers with something."""
    with tensorboard(environment, folder) as address:
        listed = json.loads(asked(address, "plugins_listing"))["lightning_calib"]
        same("the tab in TensorBoard's list", (listed["enabled"], listed["tab_name"]), (True, "Gradients"))
        for _ in range(100):  # until it has read the files
            if json.loads(asked(address, "plugin/lightning_calib/runs")):
                break
            time.sleep(0.2)
        for route, query in ROUTES.items():
            try:
                content = asked(address, f"plugin/lightning_calib/{route}", **query)
            except URLError as trouble:
                raise SystemExit(f"the tab's route {route} {query}: {trouble}") from None
            if not content or content in (b"[]", b"{}"):
                raise SystemExit(f"the tab's route {route} {query} has an empty answer")
        verdict = json.loads(asked(address, "plugin/lightning_calib/report", run="run"))
        if verdict.get("failed"):
            raise SystemExit(f"the tab has no report: {verdict['failed']}")


def main(folder: Path) -> None:
    """All checks, each with a line when it has passed."""
    dist, start = folder / "dist", time.monotonic()
    dist.mkdir()

    def passed(what: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {what}", flush=True)

    tools, clean, bare = (Environment(folder / name) for name in ("tools", "clean", "bare"))
    sdist, wheel = built(dist, tools)
    passed("sdist, the wheel that is built from it, twine check")
    metadata = check_files(sdist, wheel)
    passed(f"nothing in the wheel but the package ({wheel.stat().st_size / 1e3:,.0f} kB), nothing missing in the sdist")
    check_metadata(metadata)
    passed("dependencies, extras, the dated version, a README without links that lead nowhere")
    clean.install("torch", str(wheel))
    passed("the wheel in a new environment")
    quick_start(clean, folder)
    passed("the README's programs from the wheel, in empty folders")
    command_line(clean, folder)
    passed("a fit, and the command line")
    check_routes(clean, folder)
    passed("the tab's routes")
    clean.install(f"{wheel}[plot,pandas]")
    clean.run("python", "-c", WITH_EXTRAS, cwd=folder)
    passed("the extras plot and pandas")
    bare.install("tensorboard")
    bare.install("--no-deps", str(wheel))
    bare.run("python", "-c", NO_TORCH, cwd=folder)
    passed("the plugin loads where there is no torch")
    check_routes(bare, folder)
    passed("the tab's routes there")
    print("This can be released.")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="release-check-") as name:
        main(Path(name).resolve())
