"""The language model learns more than counts, tells what it clipped, and refuses what is not text."""

import math
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from helpers.run_example import EXAMPLES, refused
from helpers.run_example import example as example_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_calib import GradientMonitor, NonFiniteGuard, ZClip

KEYS = {"bits_per_character", "bigram", "unigram", "spikes", "clipped"}


@pytest.fixture(scope="module")
def data():
    return example_module("language_model_data")


@pytest.fixture(scope="module")
def example():
    return example_module("language_model")


# ---- the run ----


def test_a_fast_run_beats_the_unigrams_reports_and_writes_the_charts(tmp_path):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "language_model.py"), "--fast"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    lines = run.stdout.splitlines()
    found = next(line for line in lines if line.startswith("val/bits_per_character "))
    assert "(trivial baseline: bigrams " in found
    counts = lines[lines.index(found) + 1].split()
    assert counts[0] == "unigrams"
    assert float(found.split()[1]) < float(counts[1].rstrip(";"))
    assert lines[-2].startswith("Nothing is wrong: the loss fell from ")
    assert ". In 150 optimizer steps the gradient norm ran from " in lines[-2]
    assert lines[-1].endswith("--logdir lightning_logs")
    (logs,) = Path(tmp_path, "lightning_logs", "language_model").iterdir()
    events = EventAccumulator(str(logs)).Reload()
    assert {"calib/grad_norm_before", "calib/clip_fraction", "val/loss"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("calib/grad_norm_before")) == 15


@pytest.mark.parametrize("mode", ["none", "monitor", "clip", "full"])
def test_every_mode_gives_the_same_numbers_and_explains_them_where_it_can(example, capsys, mode):
    result = example.main(["--fast", "--calibrate", mode, "--steps", "30"])
    assert result.keys() == KEYS
    assert all(math.isfinite(value) for value in result.values())
    assert result["bigram"] < result["unigram"]
    lines = capsys.readouterr().out.splitlines()
    assert any("optimizer steps the gradient norm ran" in line for line in lines) == (mode != "none")
    assert lines[-1].endswith("--logdir lightning_logs")


def test_what_each_mode_asks_for(example):
    kinds = {mode: [type(one) for one in example.callbacks(mode)] for mode in ("none", "monitor", "clip", "full")}
    assert kinds == {
        "none": [],
        "monitor": [GradientMonitor],
        "clip": [ZClip, GradientMonitor],
        "full": [NonFiniteGuard, ZClip, GradientMonitor],
    }


def test_clipped_steps_are_counted_as_the_summary_counts_them(example, capsys, monkeypatch):
    monkeypatch.setattr(example, "ZClip", lambda: ZClip(z_max=0.3, warmup_steps=5))  # fires on ordinary steps, too
    result = example.main(["--fast", "--steps", "40"])
    assert 0 < result["clipped"] < 35
    assert f"ZClip reduced {100 * result['clipped'] / 40:.3g} % of the steps" in capsys.readouterr().out


def test_a_gradient_that_sticks_out_is_a_spike_once_the_usual_is_known(example):
    model = example.GPT(1e-3)
    for norm in [100.0, *[1.0] * example.SPIKE_WINDOW, 4.9, 5.1, 1.0, math.nan]:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        model.norm.weight.grad[0] = norm
        model.on_before_optimizer_step(None)
    assert model.spikes == 2


def test_the_learning_rate_rises_then_falls_to_a_tenth(example):
    model = example.GPT(1.0)
    model.trainer = type("Steps", (), {"estimated_stepping_batches": 1000})()
    factor = model.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    factors = [factor(step) for step in range(1000)]
    assert max(factors) == factors[example.WARMUP_STEPS] == 1
    assert factors == sorted(factors[: example.WARMUP_STEPS]) + sorted(factors[example.WARMUP_STEPS :], reverse=True)
    torch.testing.assert_close(factors[-1], example.MIN_LR_FACTOR, atol=1e-4, rtol=0)  # one step before the end


def test_decay_is_for_matrices_and_every_parameter_is_in_one_group(example):
    model = example.GPT(1.0)
    model.trainer = type("Steps", (), {"estimated_stepping_batches": 1000})()
    matrices, vectors = model.configure_optimizers()["optimizer"].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (example.WEIGHT_DECAY, 0)
    assert all(parameter.dim() > 1 for parameter in matrices["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_no_byte_sees_a_later_one(example):
    model = example.GPT(1.0).eval()
    symbols = torch.randint(0, 256, (1, 20))
    changed = symbols.clone()
    changed[0, 12:] = 7
    torch.testing.assert_close(model(symbols)[:, :12], model(changed)[:, :12], atol=1e-6, rtol=0)  # another blocking
    assert not torch.equal(model(symbols)[:, 12:], model(changed)[:, 12:])


# ---- the baselines and the loader: what it takes ----


def test_the_baselines_are_the_code_lengths_of_counts(data):
    counts = data.count_baselines("abababab", "aab")
    unigram = [(4 + 1) / (8 + 256)] * 2
    bigram = [unigram[0] / 5, (4 + unigram[1]) / 5]  # after a: four times b, and one observation shared
    for name, chances in (("unigram", unigram), ("bigram", bigram)):
        wanted = -sum(map(math.log2, chances)) / 3
        torch.testing.assert_close(counts[name], wanted, rtol=1e-5, atol=0)  # float32


def test_the_default_is_the_same_long_text_every_time(data):
    train, validation = data.load(None, 640)
    assert (train, validation) == data.load(None, 640)
    assert len(train) > 300_000
    torch.testing.assert_close(
        len(validation) / (len(train) + len(validation)), 0.1, atol=1e-5, rtol=0
    )  # whole characters
    assert "raise an exception" in train


def test_the_end_of_every_file_is_held_out_in_the_order_of_names(data, tmp_path):
    (tmp_path / "b.txt").write_text("é" * 10, encoding="utf-8")
    (tmp_path / "a.txt").write_text("x" * 20)
    (tmp_path / "a.md").write_text("not mine")
    assert data.load(tmp_path, 5) == ("x" * 18 + "é" * 9, "x" * 2 + "é")


def test_a_file_may_stand_in_place_of_its_folder(data, tmp_path):
    (tmp_path / "a.txt").write_text("x" * 20)
    (tmp_path / "b.txt").write_text("y" * 20)
    assert data.load(tmp_path / "b.txt", 5) == ("y" * 18, "y" * 2)


def test_windows_hold_one_byte_more_than_the_model_sees(data):
    windows = data.windows("abcdefg", 3, 2).tensors[0]
    assert windows.tolist() == [list(b"abcd"), list(b"cdef")]


# ---- the loader: what it refuses ----


def no_folder(root):
    return root / "nowhere", "no such file or folder; expected a text file, or a folder with .txt files"


def a_short_file(root):
    (root / "a.txt").write_text("short")
    return root / "a.txt", "expected a text with more than 640 characters, got 5"


def no_text(root):
    (root / "a.csv").write_text("1,2")
    return root, "expected .txt files with more than 640 characters in all, got 0 in 0 files"


def too_short(root):
    (root / "a.txt").write_text("short")
    return root, "expected .txt files with more than 640 characters in all, got 5 in 1 files"


def empty(root):
    (root / "a.txt").write_text("x" * 1000)
    (root / "b.txt").write_bytes(b"")
    return root / "b.txt", "expected text, got an empty file"


def truncated(root):
    (root / "a.txt").write_bytes(b"x" * 1000 + "é".encode()[:1])
    return root / "a.txt", "byte 1000 is 0xc3, unexpected end of data; expected UTF-8"


def latin_1(root):
    (root / "a.txt").write_bytes(b"x" * 700 + "é".encode("latin-1") + b"x" * 700)
    return root / "a.txt", "byte 700 is 0xe9, invalid continuation byte; expected UTF-8"


def utf_16(root):
    (root / "a.txt").write_bytes(("x" * 1000).encode("utf-16-le"))
    return root / "a.txt", "byte 1 is 0x00; expected text"


REFUSED = [no_folder, a_short_file, no_text, too_short, empty, truncated, latin_1, utf_16]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_is_not_text_is_refused_in_one_line_that_names_it(example, tmp_path, capsys, case):
    path, expected = case(tmp_path)
    line = refused(example, ["--data-dir", str(path if case in (no_folder, a_short_file) else tmp_path)], capsys)
    assert f": {path}: {expected}" in line


def test_a_python_without_its_sources_is_told_what_is_missing(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        example.main([])
    assert stopped.value.code == 2
    path = tmp_path / "pydoc_data" / "topics.py"
    told = f": {path}: no such file; expected Python's standard library as text, or --data-dir\n"
    assert capsys.readouterr().err.endswith(told)


def test_a_python_whose_texts_are_kept_otherwise_is_told_so(example, tmp_path, capsys, monkeypatch):
    path = tmp_path / "pydoc_data" / "topics.py"
    path.parent.mkdir()
    path.write_text("topics = load_topics()\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        example.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f": {path}: expected nothing but one dictionary of texts; see --data-dir\n")
