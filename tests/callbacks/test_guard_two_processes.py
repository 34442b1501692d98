"""Two processes, something bad on rank 1 only: both skip, the right batch is saved, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.tiny_modules import same_bits

SCENES = ["loss", "input", "gradient", "accumulated", "scaler", "fused"]
DETACHED = ["detached", "detached, SpikeGuard"]
SKIPPED = {"accumulated": [2, 3, 6, 7]}  # batches: the first of a window of two never steps

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """All scenes in one script, so that torch is loaded once; its folder, and its lines by scene."""
    folder = tmp_path_factory.mktemp("ranks")
    scenes = [*SCENES, "limit", "forward", "backward", *DETACHED]
    for scene in scenes:
        (folder / scene).mkdir()
    command = [sys.executable, "-m", "two_processes.guard", *scenes]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, _ = script.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(script.pid, signal.SIGKILL)  # its ranks wait for each other
        raise
    assert script.returncode == 0
    lines, scene = {}, ""
    for line in output.splitlines():
        if line.startswith("SCENE "):
            scene = line.removeprefix("SCENE ")
        elif line.startswith(("SAID ", "RAISED ")):
            lines.setdefault(scene, []).append(line)
    return folder, lines


def ends(folder, scene):
    return [torch.load(folder / scene / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("scene", SCENES)
def test_both_ranks_skip_and_stay_the_same(played, scene):
    zero, one = ends(played[0], scene)
    skipped = SKIPPED.get(scene, [3, 6])
    taken = [i for i, moved in enumerate(zero["moved"]) if moved]
    assert taken == [i for i in range(10) if i not in skipped and (scene != "accumulated" or i % 2)]
    for part in ("moved", "scales", "weights", "optimizer"):
        same_bits(zero[part], one[part])
    assert zero["guard"]["total"] == one["guard"]["total"] == 2
    assert all(value.isfinite().all() for end in (zero, one) for value in end["weights"] + end["buffers"])
    assert zero["scales"][-1] == (2.0**4 if scene in ("scaler", "fused") else 1.0)


@pytest.mark.parametrize("scene", [scene for scene in SCENES if scene != "gradient"])
def test_the_right_rank_saves_its_batch_and_is_named(played, scene):
    folder, lines = played
    steps = (1, 3) if scene == "accumulated" else (3, 6)
    files = sorted((folder / scene / "bad").iterdir())
    assert [path.name for path in files] == [f"step{step:08d}-rank1.pt" for step in steps]
    for path, batch in zip(files, (3, 6), strict=True):
        saved = torch.load(path, weights_only=True)
        assert saved["rank"] == 1
        assert [one["batch_idx"] for one in saved["batches"]] == [batch]
        same_bits(saved["batches"][0]["batch"], torch.tensor([batch]))
        assert "the loss was not finite on rank 1 of 2" in saved["incident"]
    assert len(lines[scene]) == 2, "rank zero alone speaks"
    assert all("the loss was not finite on rank 1 of 2" in line for line in lines[scene])
    assert f"saves its batch to {scene}/bad." in lines[scene][0]


def test_if_no_loss_was_bad_the_rank_cannot_be_told(played):
    folder, lines = played
    names = [path.name for path in sorted((folder / "gradient" / "bad").iterdir())]
    assert names == [f"step{step:08d}-rank{rank}.pt" for step in (3, 6) for rank in (0, 1)]
    assert "the loss was finite on every rank, so the rank cannot be told" in lines["gradient"][0]


def test_beyond_the_limit_the_run_ends_on_both(played):
    said = [line for line in played[1]["limit"] if line.startswith("SAID")]
    assert len(said) == 3
    assert "the run ends here, 3 in a row" in said[-1]
    raised = played[1]["limit"][-1]
    assert "NonFiniteGradientError: 3 gradients in a row were not finite, more than max_consecutive=2." in raised


def test_the_loss_is_that_of_the_bad_rank(played):
    assert all("; loss nan, learning rate" in line for line in played[1]["loss"])
    assert all("; loss inf, learning rate" in line or "; loss nan," in line for line in played[1]["input"])


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ("forward", "on rank 1 the first in the forward pass is operation div in planted (Planted), which read 16x1"),
        ("backward", "on rank 1 the first in the backward pass is SqrtBackward0 in planted (Planted), which read 16x1"),
    ],
)
def test_the_operation_of_the_bad_rank_is_named(played, scene, words):
    """Every rank runs its batches again, so that their collectives meet; rank zero tells."""
    folder, lines = played
    assert len(lines[scene]) == 2
    assert all(words in line for line in lines[scene])
    zero, one = ends(folder, scene)
    for part in ("moved", "weights", "optimizer"):
        same_bits(zero[part], one[part])


@pytest.mark.parametrize("scene", DETACHED)
def test_a_lost_loss_of_one_rank_is_told_once_and_every_step_is_taken(played, scene):
    """By the rank that has it; where SpikeGuard brings the mean over the ranks, by rank zero."""
    folder, lines = played
    (line,) = lines[scene]
    assert "step 3 (epoch 0, batch 3): the loss is nan" in line
    assert ("on rank 1, and the gradient is finite" in line) == (scene == "detached")
    zero, one = ends(folder, scene)
    assert all(zero["moved"])
    assert zero["guard"]["total"] == 0
    same_bits(zero["weights"], one["weights"])
