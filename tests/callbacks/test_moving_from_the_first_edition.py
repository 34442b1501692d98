"""A script of the first edition, moved by the lines of the CHANGELOG alone, runs and means the same."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_modules import Tiny, make_trainer
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

import lightning_calib
from lightning_calib import SpikeBackoff

MOVES = (Path(__file__).parents[2] / "CHANGELOG.md").read_text().split("\n### How to move\n")[1].split("\n### ")[0]
PAIRS = re.findall(r"`([^`]+)` is now\s+`([^`]+)`", MOVES)


def run_network(module: Any, batch: Any) -> None:
    """For `PreciseBatchNorm`."""


PUBLIC = {name: getattr(lightning_calib, name) for name in lightning_calib.__all__}
NAMES = {**PUBLIC, "rule": SpikeBackoff(), "run_network": run_network}
KINDS = {name for name, found in PUBLIC.items() if isinstance(found, type) and issubclass(found, Callback)}
# In the order of the first edition.
FIRST = {
    "GradientMonitor": "every_n_steps layers histograms",
    "GradientClip": "policy scope norm_type rules dry_run name",
    "GradientNormalize": "target scope name",
    "AutoClip": "percentile window name rules dry_run",
    "ZClip": "z_max decay warmup_steps robust name rules dry_run",
    "AGC": "factor min_weight_norm exclude name rules dry_run",
    "AdaGC": "factor decay warmup_steps warmup_max_norm name rules dry_run",
    "NonFiniteGuard": "action max_consecutive max_total save_batch_to",
    "LearningRateControl": "rule min_factor max_factor name",
    "PreciseBatchNorm": "num_batches forward",
}
SCRIPT = """
callbacks = [
    NonFiniteGuard("skip", 5, 100),
    ZClip(2.5, 0.97, 25, True),
    AGC(0.01, 1e-3, ["head.*"], "rows"),
    GradientMonitor(50, True, True),
]
"""


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=[before for before, _ in PAIRS])
def test_each_line_moves_a_call_to_the_same_arguments(before, after):
    kind = before.partition("(")[0]
    if kind not in KINDS:
        pytest.skip("no callback")
    with pytest.raises(TypeError, match="positional argument"):
        eval(before, dict(NAMES))
    given = eval(f"(lambda *given: given){before[len(kind) :]}", dict(NAMES))
    by_name = dict(zip(FIRST[kind].split(), given, strict=False))
    assert repr(PUBLIC[kind](**by_name)) == repr(eval(after, dict(NAMES)))


def test_every_callback_with_a_second_argument_has_its_line():
    several = {name for name in set(KINDS) - {"SpikeGuard"} if len(inspect.signature(PUBLIC[name]).parameters) > 1}
    assert several == set(FIRST)
    assert {before.partition("(")[0] for before, _ in PAIRS} >= several


def test_a_script_moved_by_the_changelog_runs():
    with pytest.raises(TypeError, match="positional argument"):
        exec(SCRIPT, dict(NAMES))
    moved = SCRIPT
    for before, after in PAIRS:  # as far as the line goes; what follows is named alike
        moved = moved.replace(before[:-1], after[:-1])
    moved = moved.replace('["head.*"], "rows"', '["net.4.*"], name="rows"')
    room: dict[str, Any] = dict(NAMES)
    exec(moved, room)
    trainer: Trainer = make_trainer(room["callbacks"], 4)
    trainer.fit(Tiny())
    assert trainer.global_step == 4
