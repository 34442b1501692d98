"""Every example as a user runs it with ``--fast``, recorded from outside: its own module, its own callbacks."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from helpers.plain_recorder import PlainRecorder
from helpers.run_example import EXAMPLES, example
from lightning.pytorch import Trainer
from report.planted.fit import Case

from lightning_calib.report.run import Run


@contextlib.contextmanager
def recorded(recorder: PlainRecorder) -> Iterator[None]:
    """Every fit in here has the recorder before its callbacks."""
    original = Trainer.fit

    def fit(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks[:] = recorder.around(trainer.callbacks)
        original(trainer, *args, **kwargs)

    Trainer.fit = fit  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.fit = original  # type: ignore[method-assign]


def _folder() -> str:
    """Removed when the process ends: the thread of an event file's writer may write after the fit."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def script(name: str, *arguments: str) -> Callable[[PlainRecorder], None]:
    """A file of examples/ with these arguments."""

    def fit(recorder: PlainRecorder) -> None:
        with recorded(recorder), silent():
            example(name).main([*arguments, "--log-dir", _folder()])

    return fit


def command_line(recorder: PlainRecorder) -> None:
    """LightningCLI with its configuration, for two epochs."""
    sys.path.insert(0, str(EXAMPLES / "cli"))
    try:
        with recorded(recorder), silent():
            config = ["fit", "--config", str(EXAMPLES / "cli" / "config.yaml")]
            example("cli.main").main([*config, "--trainer.max_epochs=3", f"--trainer.default_root_dir={_folder()}"])
    finally:
        sys.path.remove(str(EXAMPLES / "cli"))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class TwoProcesses(Case):
    """The distributed example needs processes of its own; the first one's recorder is handed back in a file."""

    def run(self, seed: int = 0, recorder_of: Callable[[int], Any] = PlainRecorder) -> list[Run]:
        with tempfile.TemporaryDirectory() as folder:
            kind = type(recorder_of(self.rows))
            command = [sys.executable, "-W", "ignore", "-m", "report.planted.example_runs"]
            command += [folder, kind.__module__, kind.__name__]
            paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=300)
            return pickle.loads(Path(folder, "runs.pkl").read_bytes())


def main(folder: str, module: str, kind: str) -> None:
    """What `TwoProcesses` starts, and Lightning once more."""
    recorder = getattr(import_module(module), kind)(5)
    arguments = ["--fast", "--accelerator", "cpu", "--devices", "2", "--log-dir", folder]
    with recorded(recorder):
        example("distributed").main(arguments)
    if recorder.trainer.is_global_zero:
        Path(folder, "runs.pkl").write_bytes(pickle.dumps(recorder.runs()))


CASES = [
    Case("example-vision", script("vision", "--fast"), part=True),
    Case("example-vision-nfnet", script("vision", "--fast", "--model", "nfnet"), 10),
    Case("example-vision_gan", script("vision_gan", "--fast")),
    Case("example-language_model", script("language_model", "--fast")),
    Case("example-recommendation", script("recommendation", "--fast")),
    Case("example-speech", script("speech", "--fast", "--cut", "0")),
    Case("example-text_classification", script("text_classification", "--fast")),
    Case("example-cli", command_line),
    TwoProcesses("example-distributed", lambda recorder: None),
]

if __name__ == "__main__":
    main(*sys.argv[1:])
