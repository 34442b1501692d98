"""Code that uses the public names as a user would, with types, passes mypy as strict as it gets."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_calib import GradientClip, LearningRateControl, LearningRateRule, Measurement, Observation, Policy
from lightning_calib import SegmentReport, ZScore
from lightning_calib.functional import State, clip_grad_


class Seen(NamedTuple):
    seen: Tensor


@dataclass(frozen=True)
class Mine(Policy):
    needs_weights: ClassVar[bool] = True

    def init(self, norms: Tensor) -> Seen:
        return Seen(torch.zeros_like(norms))

    def __call__(self, observation: Observation, state: Seen) -> tuple[Tensor, Seen]:
        return observation.norms / 2, Seen(state.seen + observation.observed)


@dataclass(frozen=True)
class MyRule(LearningRateRule):
    def init(self, norms: Tensor) -> Seen:
        return Seen(torch.zeros_like(norms))

    def __call__(self, measurement: Measurement, state: Seen) -> tuple[Tensor, Seen]:
        return torch.ones_like(measurement.norms), state


class Loop:
    def __init__(self) -> None:
        self.state: State | None = None

    def step(self, model: nn.Module, policy: Policy | float) -> SegmentReport:
        report, self.state = clip_grad_(model, policy, self.state, scope="layer")
        return report


model = nn.Linear(2, 1)
state = None
for policy in (ZScore(), Mine(), 1.0):
    report, state = clip_grad_(model, policy)
    saved: dict[str, Any] = state._asdict()
    report, state = clip_grad_(model, policy, saved)
    names: list[str] = list(report.names)
    clipped: Tensor = report.clipped
    sizes: list[int] = [one.numel() for one in state]
callbacks = [GradientClip(Mine(), rules={"*bias": Mine()}), LearningRateControl(MyRule())]
"""


def test_a_users_script_passes_mypy_strict(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", "script.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
