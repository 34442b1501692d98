"""What `lightning-calib` says of real fits: in words, as JSON, by exit codes; and what it answers to bad questions."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.logged_fits import logged_fit
from helpers.rewrite_events import as_first_edition, event_file
from helpers.tiny_modules import Tiny, TwoNets
from torch import nn

from lightning_calib import GradientClip, refine_schedule
from lightning_calib.cli import main
from lightning_calib.commands.runs import Progress
from lightning_calib.doctor import Health, bad_combinations, examine, release

PAGE = Path(__file__).parent.parent / "docs" / "command-line.md"
ADAM = partial(torch.optim.AdamW, lr=0.003)


class Learnable(Tiny):
    """The same batch at every step, so that the loss falls."""

    def loss(self, net: nn.Module, step: int) -> torch.Tensor:
        return super().loss(net, 0)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main(arguments)
    return code, *capsys.readouterr()


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightning_calib", *arguments], capture_output=True, text=True, check=False
    )


def healthy(folder: str = "healthy") -> None:
    logged_fit(Learnable(ADAM), 60, folder)


def far_too_fast(folder: str = "fast") -> None:
    logged_fit(Learnable(partial(torch.optim.SGD, lr=30.0)), 30, folder)


# --- report


def test_is_it_clipping(capsys) -> None:
    """US1."""
    logged_fit(Learnable(partial(ADAM, lr=1e-3), gains=dict.fromkeys(range(40), 100.0)), 40, gradient_clip_val=0.25)
    code, out, _ = told(capsys, "report", "logs", "--format", "json")
    (run,) = json.loads(out)["runs"]
    assert code == 0
    (clipper,) = run["clippers"]
    assert clipper == {
        "name": "Trainer(gradient_clip_val=0.25)",
        "clip_rate": 1.0,
        "kind": "fixed",
        "optimizer": 0,
        "max_norm": 0.25,
    }


def test_is_my_threshold_right(capsys) -> None:
    """US2: with Adam it does not matter, with SGD it is a cut of the rate, and one that never fired says so."""
    logged_fit(Learnable(ADAM), 60, "adam", callbacks=[GradientClip(0.01)])
    assert "clip-always" in told(capsys, "report", "adam")[1]
    logged_fit(Learnable(), 60, "sgd", callbacks=[GradientClip(0.01)])
    (run,) = json.loads(told(capsys, "report", "sgd", "--format", "json")[1])["runs"]
    finding = next(one for one in run["findings"] if one["code"] == "clip-cuts-rate")
    left = run["optimizers"][0]["mean_factor"]
    assert finding["evidence"]["mean_factor"] == pytest.approx(left, rel=0.1)
    logged_fit(Learnable(), 200, "never", callbacks=[GradientClip(1e6)])
    assert "clip-never" in told(capsys, "report", "never")[1]


class Parts(Learnable):
    """One layer that nothing depends on, one that is frozen, one behind a ReLU that is always zero."""

    def __init__(self) -> None:
        super().__init__(ADAM)
        self.unused, self.frozen, self.dead = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        nn.init.constant_(self.dead.bias, -1e3)

    def loss(self, net: nn.Module, step: int) -> torch.Tensor:
        x = torch.ones(4, 4)
        return super().loss(net, step) + self.dead(self.frozen(x)).relu().sum()


def test_what_is_dead_or_unused(capsys) -> None:
    """US12."""
    logged_fit(Parts(), 220)
    (run,) = json.loads(told(capsys, "report", "logs", "--format", "json")[1])["runs"]
    layers = {one["code"]: set(one["layers"]) for one in run["findings"]}
    assert layers["dead-layer"] == {"dead.weight"}
    assert layers["unused-parameter"] == {"unused.weight", "unused.bias"}
    assert layers["frozen"] == {"frozen.weight", "frozen.bias"}


def test_a_healthy_run_takes_few_lines_and_nothing_is_said_beside_it(capsys) -> None:
    """US6."""
    healthy()
    code, out, errors = told(capsys, "report", "healthy")
    assert (code, errors) == (0, "")
    assert out.startswith("Nothing is wrong")
    assert len(out.splitlines()) <= 5


def test_several_runs_stand_side_by_side(capsys) -> None:
    """US7: a folder of versions, as Lightning makes it."""
    for version in (2, 10):
        healthy(f"runs/version_{version}")
    far_too_fast("runs/version_11")
    out = told(capsys, "report", "runs")[1]
    table, *reports = out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["run", "version_2", "version_10", "version_11"]
    assert [one.splitlines()[0] for one in reports] == ["version_2", "version_10", "version_11"]
    assert re.search(r"^version_2 +AdamW +none +60 ", table, re.MULTILINE)
    markdown = told(capsys, "report", "runs", "--format", "markdown")[1]
    assert "| version_10 | AdamW | none | 60 |" in markdown
    assert "## version_11\n" in markdown
    names = [one["run"] for one in json.loads(told(capsys, "report", "runs", "--format", "json")[1])["runs"]]
    assert names == ["version_2", "version_10", "version_11"]
    two = told(capsys, "report", "runs/version_2", "runs/version_10")[1]
    assert [line.split()[0] for line in two.splitlines()[:3]] == ["run", "runs/version_2", "runs/version_10"]


def test_the_keys_of_json_stay(capsys) -> None:
    healthy()
    found = json.loads(told(capsys, "report", "healthy", "--format", "json")[1])
    assert (set(found), found["schema"]) == ({"schema", "runs"}, 1)
    assert set(found["runs"][0]) == {
        *("schema", "verdict", "next", "suggestion", "findings", "optimizers", "clippers", "layers", "shadow"),
        "bad_steps",
        *("run", "problems"),
    }
    found = json.loads(told(capsys, "check", "healthy", "--format", "json")[1])
    assert set(found) == {"schema", "exit_code", "runs"}
    assert set(found["runs"][0]) == {"run", "paragraph", "next", "findings", "problems"}
    found = json.loads(told(capsys, "refine-schedule", "healthy")[1])
    assert set(found) == {"schema", "run", "optimizer", "name", "kind", "steps", "factors"}
    found = json.loads(told(capsys, "doctor", "--format", "json")[1])
    assert set(found) == {"schema", "versions", "tab", "gpu", "problems"}


def test_which_clip_value(capsys) -> None:
    """The same as the fit's own report says; of several runs a line each."""
    healthy("runs/version_0")
    far_too_fast("runs/version_1")
    code, out, errors = told(capsys, "suggest", "runs")
    assert (code, errors) == (0, "")
    assert re.match(r"version_0: You need none\. .*\nversion_1: No value can be told from this run\. ", out)
    assert told(capsys, "suggest", "runs", "--format", "markdown")[1].startswith("- **version_0**: You need none. ")
    found = json.loads(told(capsys, "suggest", "runs", "--format", "json")[1])
    assert (set(found), found["schema"]) == ({"schema", "runs"}, 1)
    assert [set(one) for one in found["runs"]] == [{"run", "problems", "suggestion"}] * 2
    assert [one["suggestion"][0]["answer"] for one in found["runs"]] == ["none", "unknown"]


def test_of_two_optimizers_each_has_a_clip_value(capsys) -> None:
    logged_fit(TwoNets(ADAM, ADAM), 60)
    lines = told(capsys, "suggest", "logs")[1].splitlines()
    assert [line.split(":")[0] for line in lines] == ["logs, optimizer 0", "logs, optimizer 1"]


def test_files_of_the_first_edition_have_a_report(capsys) -> None:
    healthy()
    as_first_edition(event_file(Path("healthy")))
    code, out, errors = told(capsys, "report", "healthy")
    assert (code, errors) == (0, "")
    assert out.startswith("Nothing is wrong")


def test_output_goes_into_a_file(capsys) -> None:
    healthy()
    assert told(capsys, "report", "healthy", "--output", "page.md", "--format", "markdown") == (0, "", "")
    assert Path("page.md").read_text().startswith("**Nothing is wrong")
    code, _, errors = told(capsys, "report", "healthy", "--output", "none/page.md")
    assert code == 2
    assert "`--output` must be a file in a folder that exists, got none/page.md" in errors


def test_a_format_that_a_command_has_not_is_refused_in_words(capsys) -> None:
    for command, wrong, known in (
        ("check", "html", "text, json, markdown"),
        ("suggest", "html", "text, json, markdown"),
        ("report", "pdf", "text, json, markdown, html"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([command, ".", "--format", wrong])
        assert stop.value.code == 2
        assert f"`--format` must be one of {known}, got '{wrong}'. Use markdown" in capsys.readouterr().err


# --- check


def test_exit_codes_of_check() -> None:
    healthy()
    far_too_fast()
    done = process("check", "healthy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "Next: nothing has to be changed."
    done = process("check", "fast")
    assert (done.returncode, done.stderr) == (1, "")
    paragraph, following = done.stdout.splitlines()
    assert paragraph.startswith("fast: ")
    assert following.startswith("Next: ")
    assert "lr=" in following
    done = process("check", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lightning-calib: `logdir` must be a folder with event files, got nowhere")
    assert process("check").returncode == 2


def test_one_bad_run_among_several_is_enough(capsys) -> None:
    healthy("runs/a")
    far_too_fast("runs/b")
    code, out, _ = told(capsys, "check", "runs", "--format", "json")
    found = json.loads(out)
    assert code == found["exit_code"] == 1
    assert [one["next"] == "" for one in found["runs"]] == [True, False]
    code, out, _ = told(capsys, "check", "runs/a", "--format", "markdown")
    assert (code, out.splitlines()[-1]) == (0, "**Next**: nothing has to be changed.")


# --- files that cannot be read, or not to their end


def test_a_run_without_a_row_is_told_from_one_with_rows(capsys) -> None:
    logged_fit(Tiny(), 4, "runs/short", log_every_n_steps=10)
    code, out, errors = told(capsys, "report", "runs")
    assert (code, out) == (2, "")
    assert "short must have a row of lightning-calib" in errors
    assert "GradientMonitor(every_n_steps=1)" in errors
    healthy("runs/long")
    code, out, errors = told(capsys, "report", "runs")
    assert code == 0
    assert errors == "lightning-calib: short has no row yet, and is left out.\n"


def test_a_half_written_file_is_read_and_what_is_missing_is_said(capsys) -> None:
    healthy()
    path = event_file(Path("healthy"))
    path.write_bytes(path.read_bytes()[:-3000])
    code, out, errors = told(capsys, "check", "healthy")
    assert code == 0
    assert "Nothing is wrong" in out
    assert "ends within a record or is damaged after step" in errors


def test_rubbish_cannot_be_read(capsys) -> None:
    Path("logs").mkdir()
    Path("logs/events.out.tfevents.1").write_bytes(b"calib/ " * 100)
    code, _, errors = told(capsys, "check", "logs")
    assert code == 2
    assert "is damaged: 700 of its 700 bytes are left out" in errors
    assert "must have a row of lightning-calib" in errors


def test_a_reader_that_leaves_early_is_no_error() -> None:
    healthy()
    command = f"{shlex.quote(sys.executable)} -m lightning_calib report healthy --format json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_report_and_check_load_neither_torch_nor_lightning() -> None:
    healthy()
    code = "import sys; from lightning_calib.cli import main; main(['check', 'healthy']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "lightning", "pytorch_lightning"}


def test_progress_is_shown_on_a_terminal_and_only_where_much_is_read(capsys, monkeypatch) -> None:
    def shown(total: int, *, terminal: bool) -> str:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
        progress = Progress(total)
        progress(total // 2)
        progress(total)
        progress.end()
        return capsys.readouterr().err

    assert shown(2**24, terminal=True) == "\rreading 16 MiB: 50 %\rreading 16 MiB: 100 %\r\033[K"
    assert shown(2**24, terminal=False) == ""
    assert shown(2**10, terminal=True) == ""


# --- refine-schedule


def test_a_schedule_from_a_run_is_that_of_its_norms(capsys) -> None:
    monitor = logged_fit(Tiny(), 40)
    code, out, _ = told(capsys, "refine-schedule", "logs")
    found, rows = json.loads(out), monitor.report().runs[0].scalars
    assert (code, found["kind"], found["name"]) == (0, "sgd", "SGD")
    assert found["steps"] == rows.step.tolist()
    wanted = refine_schedule(rows.grad_norm_before.tolist(), "sgd")
    torch.testing.assert_close(torch.tensor(found["factors"], dtype=torch.float64), wanted, rtol=1e-6, atol=1e-9)
    header, *lines = told(capsys, "refine-schedule", "logs", "--format", "csv", "--smoothing", "0")[1].splitlines()
    assert header == "step,factor"
    assert len(lines) == len(rows.step)


def test_questions_about_schedules_that_have_no_answer(capsys) -> None:
    logged_fit(Tiny(partial(torch.optim.Rprop, lr=0.01)), 20)
    code, _, errors = told(capsys, "refine-schedule", "logs")
    assert code == 2
    assert "`--kind` must be given for Rprop" in errors
    assert told(capsys, "refine-schedule", "logs", "--kind", "adam")[0] == 0
    code, _, errors = told(capsys, "refine-schedule", "logs", "--optimizer", "1")
    assert code == 2
    assert "`--optimizer` must be one of [0] in logs, got 1" in errors
    code, _, errors = told(capsys, "refine-schedule", "logs", "--kind", "adam", "--smoothing", "2")
    assert code == 2
    assert "`smoothing` must be" in errors


# --- doctor


def test_doctor_finds_what_is_here(capsys) -> None:
    code, out, _ = told(capsys, "doctor")
    assert code == 0
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", out, re.MULTILINE)
    assert re.search(r"^Gradients tab +found$", out, re.MULTILINE)
    assert "| GPU |" in told(capsys, "doctor", "--format", "markdown")[1]
    assert examine().exit_code == 0


HERE = {"torch": "2.13.0", "lightning": "2.6.6", "tensorboard": "2.21.0", "numpy": "2.0", "setuptools": "84.0"}
BOUNDS = {"torch": "2.13", "lightning": "2.5", "tensorboard": "2.21"}


@pytest.mark.parametrize(
    ("versions", "severity", "sentence"),
    [
        ({"torch": None}, "stop", "torch is not installed"),
        ({"lightning": "2.6.2"}, "stop", "steals credentials when it is imported (GHSA-w37p-236h-pfx3)"),
        ({"pytorch-lightning": "2.6.3"}, "stop", "pytorch-lightning 2.6.3 has code that steals credentials"),
        ({"lightning": "2.6.1"}, "look", "runs code that a checkpoint names (GHSA-qqmf-gpg7-g8gw)"),
        ({"torch": "2.12.1+cu128"}, "look", "torch 2.12.1+cu128 is older than 2.13"),
        ({"tensorboard": "2.20.0"}, "look", "tensorboard 2.20.0 does not start: it needs `pkg_resources`"),
        ({"tensorboard": "2.20.0", "setuptools": None}, "look", "an environment without setuptools"),
    ],
)
def test_combinations_that_are_known_to_be_bad(versions, severity: str, sentence: str) -> None:
    found = [one for one in bad_combinations({**HERE, **versions}, BOUNDS) if sentence in one.sentence]
    assert [one.severity for one in found] == [severity]
    assert found[0].advice
    assert Health({}, True, "", tuple(found)).exit_code == (severity == "stop")


def test_combinations_that_are_right() -> None:
    assert bad_combinations(HERE, BOUNDS) == []
    old = bad_combinations({**HERE, "tensorboard": "2.20.0", "setuptools": "80.9.0"}, BOUNDS)
    assert ["pkg_resources" in one.sentence for one in old] == [False]
    assert release("2.13.0+cpu") < release("2.13.1rc1")


# --- the page


def test_the_page_shows_what_is_printed(capsys) -> None:
    """Every command of the page runs on the runs that it names, and what it shows without "..." is printed."""
    page = PAGE.read_text()
    healthy("lightning_logs/version_0")
    far_too_fast("lightning_logs/version_1")
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        for command, shown in re.findall(r"^\$ lightning-calib (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
            code, out, errors = told(capsys, *shlex.split(command))
            assert code in (0, 1), errors
            for line in shown.splitlines():
                assert re.search(".*".join(map(re.escape, line.split("..."))), out), line


def test_the_page_and_the_help_have_every_command() -> None:
    page, text = PAGE.read_text(), process("--help").stdout
    assert 'lightning-calib = "lightning_calib.cli:main"' in (PAGE.parent.parent / "pyproject.toml").read_text()
    for command in ("report", "check", "suggest", "refine-schedule", "doctor"):
        assert f"lightning-calib {command}" in page
        assert command in text
