"""Whether the package can run here: versions, the tab, the GPU, combinations that are known to be bad."""

import platform
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from typing import Any, Literal, NamedTuple

PACKAGES = ("lightning-calib", "torch", "lightning", "pytorch-lightning", "tensorboard", "numpy", "setuptools")
_NEEDED = ("torch", "lightning", "tensorboard", "numpy")
_MALWARE = ("2.6.2", "2.6.3")
_PARTS = ("torch", "lightning_calib.callbacks", "lightning_calib.tensorboard.plugin")  # what has to be importable


class Problem(NamedTuple):
    """Something that is wrong here.

    Attributes:
        severity: "stop": the package cannot, or must not, run here; "look": something of it will not work.
        sentence: What was found.
        advice: What to do.
    """

    severity: Literal["stop", "look"]
    sentence: str
    advice: str


class Health(NamedTuple):
    """What was found.

    Attributes:
        versions: By package; None where it is not installed.
        tab: Whether TensorBoard finds the tab.
        gpu: What torch can use, in words.
        problems: What is wrong.
    """

    versions: Mapping[str, str | None]
    tab: bool
    gpu: str
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """1 where the package cannot run."""
        return int(any(one.severity == "stop" for one in self.problems))

    def as_dict(self) -> dict[str, Any]:
        """Of builtins that JSON knows."""
        problems = [one._asdict() for one in self.problems]
        return {"versions": dict(self.versions), "tab": self.tab, "gpu": self.gpu, "problems": problems}

    def to_markdown(self) -> str:
        """A table of versions, and what is wrong."""
        rows = [f"| {name} | {found} |" for name, found in self._lines()]
        found = [f"- **{one.severity}**: {one.sentence} {one.advice}" for one in self.problems]
        return "\n".join(["| what | found |", "|---|---|", *rows, "", *(found or ["Nothing is wrong."])])

    def __str__(self) -> str:
        rows = [f"{name:<{max(map(len, PACKAGES))}}  {found}" for name, found in self._lines()]
        found = [f"[{one.severity}] {one.sentence} {one.advice}" for one in self.problems]
        return "\n".join([*rows, *(found or ["Nothing is wrong."])])

    def _lines(self) -> list[tuple[str, str]]:
        named = [(name, found or "not installed") for name, found in self.versions.items()]
        return [*named, ("Gradients tab", "found" if self.tab else "not found"), ("GPU", self.gpu)]


def examine() -> Health:
    """Look at what is installed, and import it unless that is dangerous."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    problems = bad_combinations(versions, _bounds())
    gpu = "not looked for"
    if not any(one.severity == "stop" for one in problems):
        gpu, failed = _imported()
        problems += failed
    found = [one for one in entry_points(group="tensorboard_plugins") if one.name == "lightning_calib"]
    if not found:
        problems.append(
            Problem(
                "look",
                "TensorBoard does not find the Gradients tab: the package is not installed where this Python looks.",
                "`pip install lightning-calib` into the environment that TensorBoard starts from.",
            )
        )
    return Health(versions, bool(found), gpu, tuple(problems))


def bad_combinations(versions: Mapping[str, str | None], bounds: Mapping[str, str]) -> list[Problem]:
    """What is known to be wrong with installed versions.

    Args:
        versions: By package; None where it is not installed.
        bounds: The oldest version of each package that is supported.
    """
    found = [
        Problem("stop", f"{name} is not installed.", f"`pip install {name}`.") for name in _NEEDED if not versions[name]
    ]
    for name in ("lightning", "pytorch-lightning"):
        if versions.get(name) in _MALWARE:
            found.append(
                Problem(
                    "stop",
                    f"{name} {versions[name]} has code that steals credentials when it is imported "
                    "(GHSA-w37p-236h-pfx3).",
                    f"Do not import it: `pip uninstall {name}`, change every password and token that this machine has "
                    "seen, and install 2.6.6 or newer.",
                )
            )
        elif (mine := versions.get(name)) and release(mine) < (2, 6, 6):
            found.append(
                Problem(
                    "look",
                    f"{name} {mine} runs code that a checkpoint names (GHSA-qqmf-gpg7-g8gw).",
                    "Load no checkpoint of strangers, or install 2.6.6 or newer.",
                )
            )
    for name, oldest in bounds.items():
        if (mine := versions.get(name)) and release(mine) < release(oldest):
            advice = f"`pip install --upgrade {name}`; docs/contributing.md says what fails below."
            found.append(Problem("look", f"{name} {mine} is older than {oldest}, the oldest that was tried.", advice))
    board, tools = versions.get("tensorboard"), versions.get("setuptools")
    if board and release(board) < (2, 21) and (not tools or release(tools) >= (81,)):
        found.append(
            Problem(
                "look",
                f"tensorboard {board} does not start: it needs `pkg_resources`, which "
                f"{f'setuptools {tools}' if tools else 'an environment without setuptools'} does not have.",
                "`pip install 'tensorboard>=2.21'`, or `'setuptools<81'`.",
            )
        )
    return found


def release(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^0-9.]", text)[0])))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _bounds() -> dict[str, str]:
    """What the package's own metadata ask for at least."""
    try:
        asked = requires("lightning-calib") or []
    except PackageNotFoundError:  # a checkout that is not installed
        return {}
    pairs = [re.match(r"([\w-]+)[^;]*>=([\d.]+)", one) for one in asked if "extra" not in one]
    return {pair[1]: pair[2] for pair in pairs if pair}


def _imported() -> tuple[str, list[Problem]]:
    for name in _PARTS:
        try:
            import_module(name)
        except Exception as trouble:  # whatever it is, that is what was asked for
            what = f"{name} cannot be imported: {type(trouble).__name__}: {trouble}"
            return "not looked for", [Problem("stop", what, "Install it anew in a fresh environment.")]
    torch = import_module("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (CUDA {torch.version.cuda or torch.version.hip})", []
    if torch.backends.mps.is_available():
        return "Apple MPS", []
    if torch.version.cuda:
        what = f"torch is built for CUDA {torch.version.cuda} and finds no GPU."
        return "none", [Problem("look", what, "Everything runs on the CPU; `nvidia-smi` says whether there is one.")]
    return "none: everything runs on the CPU", []
