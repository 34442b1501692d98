"""The GAN example: manual optimization, one network clipped and the other not, charts of each, and an honest score."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.run_example import EXAMPLES, example
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = EXAMPLES / "vision_gan.py"
MAX_NORM = 1.0


@pytest.fixture(scope="module")
def gan():
    return example("vision_gan")


def run(gan, folder, capsys, *arguments):
    """The metrics, what was printed, and the charts: a list of values for every tag."""
    result = gan.main(["--log-dir", str(folder), "--fast", *arguments])
    (run,) = (folder / "vision_gan").iterdir()
    events = EventAccumulator(str(run)).Reload()
    charts = {tag: [point.value for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return result, capsys.readouterr().out, charts


def test_a_fast_run_draws_better_than_noise_and_reports(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    command = [sys.executable, str(SCRIPT), "--fast"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    score, real, *summary, charts = result.stdout.splitlines()[-4:]
    reached, baseline = float(score.split()[2]), float(score.split()[-1].rstrip(")"))
    assert score.startswith("frechet distance ")
    assert "(trivial baseline: noise per pixel " in score
    assert float(real.split()[4].rstrip(";")) < reached < baseline
    assert "Optimizer 0 (Adam): in 550 optimizer steps" in summary[0]
    assert charts.endswith("--logdir lightning_logs")


@pytest.mark.slow
def test_either_optimizer_has_its_own_charts_and_only_the_generator_is_clipped(gan, tmp_path, capsys):
    _, output, charts = run(gan, tmp_path, capsys)
    for index in (0, 1):
        assert sum(tag.startswith("calib/") and tag.endswith(f"/{index}") for tag in charts) in range(5, 13)
    before, after = ([charts[f"calib/grad_norm_{when}/{index}"] for index in (0, 1)] for when in ("before", "after"))
    assert max(before[0]) > MAX_NORM
    assert max(after[0]) <= MAX_NORM * 1.0001  # float32 norms of a rescaled gradient
    assert max(charts["calib/clip_fraction/0"]) == 1.0
    assert after[1] == before[1]
    assert max(before[1]) > MAX_NORM, "it would have been clipped, had it been named"
    assert "optimizer 1 (Adam): in 550 optimizer steps" in output


@pytest.mark.slow
def test_the_other_one_can_be_clipped_instead(gan, tmp_path, capsys):
    _, _, charts = run(gan, tmp_path, capsys, "--calibrate", "clip", "--clip", "discriminator")
    assert charts["calib/grad_norm_after/0"] == charts["calib/grad_norm_before/0"]
    assert max(charts["calib/grad_norm_after/1"]) <= MAX_NORM * 1.0001 < max(charts["calib/grad_norm_before/1"])


@pytest.mark.slow
def test_the_figures_have_the_same_names_without_callbacks_and_a_monitor_changes_none(gan, tmp_path, capsys):
    plain, output, charts = run(gan, tmp_path / "none", capsys, "--calibrate", "none")
    watched, _, _ = run(gan, tmp_path / "monitor", capsys, "--calibrate", "monitor")
    assert set(plain) == {"frechet", "baseline", "real", "largest_class"}
    assert plain == watched
    assert "gradient norm" not in output
    assert not [tag for tag in charts if tag.startswith("calib/")]


def test_the_distance_is_that_of_two_normal_distributions(gan):
    torch.manual_seed(0)
    same = torch.randn(20_000, 3)
    assert gan.frechet(same, same) == pytest.approx(0.0, abs=1e-6)
    other = same * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([0.0, 0.0, 4.0])
    # |m - m'|^2 = 16, and (s - s')^2 = 0, 1 and 4; within the sampling error of 20,000 draws
    assert gan.frechet(same, other) == pytest.approx(21.0, rel=0.03)


def test_the_judge_tells_digits_apart(gan):
    torch.manual_seed(0)
    digits = gan.load_digits()
    images, labels = torch.from_numpy(digits.data).float() / 8 - 1, torch.from_numpy(digits.target)
    network = gan.judge(images[:1400], labels[:1400])
    assert float((network(images[1400:]).argmax(1) == labels[1400:]).float().mean()) > 0.85
