"""The LightningCLI example: config.yaml makes the callbacks that it describes, and the command line changes them."""

import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch
import yaml
from helpers.run_example import EXAMPLES

from lightning_calib import (
    GradientClip,
    GradientMonitor,
    LearningRateControl,
    NonFiniteGuard,
    Percentile,
    SpikeBackoff,
    ZScore,
)

SCRIPT = EXAMPLES / "cli" / "main.py"
CONFIG = ["--config", str(EXAMPLES / "cli" / "config.yaml")]
FAST = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def cli():
    spec = importlib.util.spec_from_file_location("cli_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])  # LightningCLI warns if there are any besides its own


def fit(cli, folder, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    return cli.main(["fit", *CONFIG, *FAST, *arguments])


def test_the_script_trains_and_reports(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    command = [sys.executable, str(SCRIPT), "fit", *CONFIG, *FAST, "--trainer.max_epochs", "3"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    accuracy, summary, charts = result.stdout.splitlines()[-3:]
    assert float(accuracy.split()[1]) > float(accuracy.split()[-1].rstrip(")")), accuracy
    assert "In 135 optimizer steps the gradient norm ran from" in summary
    assert "GradientClip(fixed), a dry run, would have reduced" in summary
    assert charts.endswith("--logdir lightning_logs")
    (run,) = (tmp_path / "lightning_logs").iterdir()
    saved = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved[1]["init_args"]["rules"]["head.weight"]["init_args"]["z_max"] == 3.0


def test_the_file_makes_every_callback_with_its_policies_rules_and_learning_rate_rule(cli, tmp_path, monkeypatch):
    made = fit(cli, tmp_path, monkeypatch).trainer.callbacks
    guard, clip, dry, rates, monitor = [one for one in made if type(one).__module__.startswith("lightning_calib")]
    assert [type(one) for one in (guard, clip, dry, rates, monitor)] == [
        NonFiniteGuard,
        GradientClip,
        GradientClip,
        LearningRateControl,
        GradientMonitor,
    ]
    assert guard.action == "skip"
    assert clip.policy == Percentile(95, window=200, warmup_steps=20)
    assert clip.rules == {"head.weight": ZScore(z_max=3.0), "*.bias": None}
    assert clip.scope == "layer"
    assert dry.dry_run
    assert not dry._needs.acts
    assert rates.rule == SpikeBackoff(ZScore(z_max=3.0, decay=0.98), backoff=0.5)
    assert rates.min_factor == 0.1


def test_the_command_line_changes_the_last_callback_and_adds_another(cli, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "lightning_calib"):
        made = fit(
            cli,
            tmp_path,
            monkeypatch,
            "--trainer.callbacks.every_n_steps=5",
            "--trainer.callbacks+=lightning_calib.AutoClip",
        )
    ours = [one for one in made.trainer.callbacks if type(one).__module__.startswith("lightning_calib")]
    assert [type(one).__name__ for one in ours][-2:] == ["GradientMonitor", "AutoClip"]
    assert ours[-2].every_n_steps == 5
    assert "AutoClip" in caplog.text


def test_print_config_shows_the_defaults_that_the_file_does_not_name(cli, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", *CONFIG, "--print_config"])
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert shown[1]["init_args"]["rules"]["head.weight"]["init_args"]["decay"] == 0.97
    assert shown[3]["init_args"]["rule"]["init_args"]["recovery"] == 1.05
    assert shown[4]["init_args"]["every_n_steps"] is None


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--trainer.callbacks.every_n_step=5", "every_n_step"),
        ("--trainer.callbacks+=lightning_calib.ZClipp", "ZClipp"),
        ("--trainer.callbacks={class_path: lightning_calib.ZClip, init_args: {z_max: many}}", "z_max"),
    ],
)
def test_a_misspelt_name_or_a_wrong_type_is_refused(cli, capsys, argument, named):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", *CONFIG, argument])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err.splitlines()
    assert any(named in line for line in shown[:8]), "before the reader has to scroll"
    assert not any("usage" in line for line in shown)


# Lightning's ModelCheckpoint says so of every checkpoint that is tested in a run of its own.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_is_tested_by_the_same_file(cli, tmp_path, monkeypatch):
    fitted = fit(cli, tmp_path, monkeypatch)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert set(torch.load(checkpoint, weights_only=True)["callbacks"]) >= {"GradientClip", "GradientClip.fixed"}
    tested = cli.main(["test", "--config", str(EXAMPLES / "cli" / "config.yaml"), "--ckpt_path", str(checkpoint)])
    reached = fitted.trainer.callback_metrics["val/accuracy"]
    torch.testing.assert_close(tested.trainer.callback_metrics["test/accuracy"], reached, atol=0, rtol=0)
