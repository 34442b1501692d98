"""The example runs with and without the callbacks, on clean and on spoilt data, and its charts are there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.run_example import EXAMPLES, example
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = EXAMPLES / "vision.py"


@pytest.fixture(scope="module")
def vision():
    return example("vision")


def test_a_fast_run_trains_reports_and_writes_the_charts(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--fast"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    lines = result.stdout.splitlines()
    accuracy = next(line for line in lines if line.startswith("test/accuracy "))
    reached, baseline = float(accuracy.split()[1]), float(accuracy.split()[-1].rstrip(")"))
    assert reached > baseline > 0.8
    assert "(trivial baseline: nearest class mean " in accuracy
    summary = lines[lines.index(accuracy) + 2 : -1]
    assert "norm" in " ".join(summary)
    program, *arguments = lines[-1].removeprefix("to see the charts: ").split()
    assert arguments == ["--logdir", "lightning_logs"]
    assert Path(tmp_path, program).exists()

    (run,) = (tmp_path / "lightning_logs" / "vision").iterdir()
    events = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("calib/")]
    assert {"calib/grad_norm_before", "calib/grad_norm_after", "calib/clip_fraction", "calib/clip_threshold"} <= set(
        tags
    )
    assert len(tags) <= 12
    assert len(events.Scalars("calib/grad_norm_before")) == 6
    assert all(point.value > 0 for point in events.Scalars("calib/grad_norm_before"))


def run(vision, folder, capsys, *arguments):
    result = vision.main(["--log-dir", str(folder), "--fast", *arguments])
    return result, capsys.readouterr().out


@pytest.mark.parametrize("calibrate", ["none", "monitor", "clip"])
def test_every_set_of_callbacks_gives_the_same_figures(vision, tmp_path, capsys, calibrate):
    result, output = run(vision, tmp_path, capsys, "--calibrate", calibrate, "--precise-batch-norm")
    assert set(result) == {"accuracy", "balanced_accuracy", "baseline", "balanced_baseline"}
    assert result["accuracy"] > result["baseline"]
    said = {"none": "", "monitor": "and nothing clipped it.", "clip": "ZClip "}
    assert said[calibrate] in output
    assert ("the gradient norm ran from" in output) == (calibrate != "none")


@pytest.mark.slow
def test_without_normalisation_the_rate_needs_agc(vision, tmp_path, capsys):
    arguments = ["--model", "nfnet", "--calibrate"]
    plain, _ = run(vision, tmp_path, capsys, *arguments, "none")
    clipped, output = run(vision, tmp_path, capsys, *arguments, "full")
    assert plain["accuracy"] < 0.2, "the rate is so low that this example shows nothing"
    assert clipped["accuracy"] > 0.5
    assert "AGC reduced" in output
    assert "Nothing is wrong: the loss fell" in output


def test_a_long_tail_falls_exponentially(vision):
    labels = torch.arange(10).repeat_interleave(200)
    torch.manual_seed(0)
    sizes = labels[vision.long_tail(labels, 10, 100.0)].bincount()
    assert sizes.tolist() == [round(200 * 100 ** (-c / 9)) for c in range(10)] == [200, 120, 72, 43, 26, 15, 9, 6, 3, 2]
    few = torch.tensor([0, 0, 0, 1, 2])
    assert few[vision.long_tail(few, 3, 1e6)].bincount().tolist() == [3, 1, 1], "no class may vanish"


def test_wrong_labels_are_as_many_as_asked_for_and_really_wrong(vision):
    labels = torch.arange(10).repeat(300)
    torch.manual_seed(0)
    noisy = vision.with_noise(labels, 10, 0.4)
    assert int((noisy != labels).sum()) == 1200
    counts = noisy[noisy != labels].bincount(minlength=10)
    assert counts.min() > 80, "each of the other classes is equally likely: 120 of 1,200 on average"
    assert counts.max() < 160


def test_only_the_training_set_is_spoilt(vision, tmp_path, capsys):
    clean, _ = run(vision, tmp_path, capsys, "--calibrate", "none")
    spoilt, output = run(vision, tmp_path, capsys, "--calibrate", "none", "--imbalance", "100", "--label-noise", "0.4")
    assert 0.2 < spoilt["accuracy"] < clean["accuracy"]
    assert spoilt["baseline"] < clean["baseline"]
    assert f"test/balanced_accuracy {spoilt['balanced_accuracy']:.4f} " in output


@pytest.mark.parametrize(
    "arguments",
    [["--imbalance", "0.5"], ["--label-noise", "40"], ["--batch-size", "0"], ["--steps", "0"], ["--seed", "x"]],
)
def test_an_option_out_of_range_is_refused(vision, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        vision.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_model_takes_every_size_and_channel_count_that_the_loader_gives(vision):
    for shape in [(6, 1, 8, 8), (6, 1, 28, 28), (6, 3, 32, 32), (6, 1, 1, 1)]:
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert vision.Classifier(images, 4)(images).shape == (6, 4)


def test_a_constant_image_set_does_not_divide_by_zero(vision):
    images = torch.full((6, 1, 8, 8), 7, dtype=torch.uint8)
    assert torch.isfinite(vision.Classifier(images, 2)(images)).all()
