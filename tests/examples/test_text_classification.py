"""The classifier learns rare classes with AGC, and its loaders take the formats that they name."""

import math
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.run_example import EXAMPLES
from helpers.run_example import example as example_module
from helpers.write_text import ROWS, write_classes, write_csv, write_json, write_tsv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_calib import AGC, GradientMonitor, NonFiniteGuard

KEYS = {"macro_f1", "rare_recall", "majority_macro_f1", "majority_rare_recall", "bayes_macro_f1", "bayes_rare_recall"}
UTF8 = "utf-8"


@pytest.fixture(scope="module")
def data():
    return example_module("text_classification_data")


@pytest.fixture(scope="module")
def example():
    return example_module("text_classification")


@pytest.fixture(scope="module")
def standard(data):
    return data.load(None, UTF8)


# ---- the run ----


def test_a_fast_run_beats_the_majority_reports_and_writes_the_charts(tmp_path):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "text_classification.py"), "--fast"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    lines = run.stdout.splitlines()
    assert any(" classes of " in line and "worst recalls: " in line for line in lines)
    found = next(line for line in lines if line.startswith("test/macro_f1 ")).split()
    assert found[2:6] == ["(trivial", "baseline:", "naive", "Bayes"]
    assert float(found[1]) > 0.05 + float(found[-1].rstrip(")"))
    assert "optimizer steps the gradient norm ran from" in lines[-2]
    assert lines[-1].endswith("--logdir lightning_logs")
    (logs,) = Path(tmp_path, "lightning_logs", "text_classification").iterdir()
    events = EventAccumulator(str(logs)).Reload()
    assert {"calib/grad_norm_before", "calib/clip_fraction", "test/macro_f1"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("mode", ["none", "monitor", "clip", "full"])
def test_every_mode_gives_the_same_numbers_and_explains_them_where_it_can(example, tmp_path, capsys, mode):
    arguments = ["--data-dir", str(write_tsv(tmp_path / "data.tsv")), "--steps", "20"]
    result = example.main([*arguments, "--calibrate", mode])
    assert result.keys() == KEYS
    assert all(math.isfinite(value) for value in result.values())
    lines = capsys.readouterr().out.splitlines()
    assert any("optimizer steps the gradient norm ran" in line for line in lines) == (mode != "none")
    assert lines[-1].endswith("--logdir lightning_logs")


def test_what_each_mode_asks_for(example):
    kinds = {mode: [type(one) for one in example.callbacks(mode)] for mode in ("none", "monitor", "clip", "full")}
    assert kinds == {
        "none": [],
        "monitor": [GradientMonitor],
        "clip": [AGC, GradientMonitor],
        "full": [NonFiniteGuard, AGC, GradientMonitor],
    }


@pytest.mark.slow
def test_agc_lets_the_rare_packages_learn_at_a_rate_that_is_too_high_without_it(example, standard, tmp_path):
    path = write_json(tmp_path, train=standard[0], test=standard[1])
    arguments = ["--data-dir", str(path), "--steps", "350", "--lr", "20", "--calibrate"]
    plain, clipped = (example.main([*arguments, mode]) for mode in ("none", "clip"))
    assert clipped["macro_f1"] > plain["macro_f1"] + 0.1
    assert clipped["rare_recall"] > plain["rare_recall"] + 0.1
    assert plain["bayes_macro_f1"] == clipped["bayes_macro_f1"]


# ---- the parts ----


def test_features_are_words_and_pairs_the_same_in_every_process(example):
    assert example.hashed("A b!") == [zlib.crc32(one) % example.BUCKETS for one in (b"a", b"b", b"!", b"a b", b"b !")]
    assert example.hashed("a b") != example.hashed("b a")
    assert example.hashed("  ") == []


def test_texts_are_laid_end_to_end_and_found_again(example):
    features, starts, labels = example.collate([([5, 6], 1), ([7], 0), ([8, 9, 9], 2)])
    assert (features.tolist(), starts.tolist(), labels.tolist()) == ([5, 6, 7, 8, 9, 9], [0, 2, 3], [1, 0, 2])


def test_noise_changes_the_share_of_labels_that_it_is_asked_for(example):
    train = [([i], i % 3) for i in range(100)]
    noisy = example.with_noise(train, 3, 0.3)
    assert [features for features, _ in noisy] == [features for features, _ in train]
    assert sum(noisy[i] != train[i] for i in range(100)) == 30
    assert {label for _, label in noisy} == {0, 1, 2}
    assert example.with_noise(train, 3, 0.0) == train


def test_naive_bayes_weighs_words_by_class_and_classes_by_size(example):
    train = [([1, 1], 0), ([1], 0), ([2], 1)]
    found = example.naive_bayes(train, [([1], 0), ([2], 1), ([3], 0), ([], 0)], 2, 0.1)
    # 3 was never seen: 0.1 / (3 + 0.1 B) * 2/3 against 0.1 / (1 + 0.1 B) * 1/3, so the larger class
    assert found.tolist() == [0, 1, 0, 0]


def test_every_class_counts_alike_in_the_scores(example):
    scores = example.metrics(2)(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
    assert scores["recall"].tolist() == [1, 0]
    torch.testing.assert_close(float(scores["macro_f1"]), (6 / 7 + 0) / 2, rtol=1e-6, atol=0)  # float32


# ---- the loaders: what they take ----


def test_the_default_is_long_tailed(data, standard):
    train, test = standard
    counts = Counter(label for _, label in train)
    assert set(counts) == {label for _, label in test} == set(data.PACKAGES.split())
    assert max(counts.values()) > 10 * min(counts.values())


def test_json_keeps_its_halves_and_leaves_other_lists_aside(data, tmp_path):
    path = write_json(tmp_path)
    (tmp_path / "LICENSE").write_text("free")
    for source in (path, tmp_path):
        assert data.load(source, UTF8) == (ROWS, [("a dog", "dog")])


def test_a_fifth_of_every_class_of_one_tsv_is_held_out(data, tmp_path):
    train, test = data.load(write_tsv(tmp_path / "all.tsv"), UTF8)
    assert Counter(label for _, label in test) == {"cat": 2, "dog": 1}
    assert sorted(train + test) == sorted(ROWS)
    assert data.load(tmp_path, UTF8) == (train, test)


def test_train_and_test_files_are_kept_apart(data, tmp_path):
    write_tsv(tmp_path / "train.tsv")
    write_tsv(tmp_path / "test.tsv", ROWS[:1])
    assert data.load(tmp_path, UTF8) == (ROWS, ROWS[:1])


def test_csv_finds_its_columns_by_the_header_and_reads_quotes(data, tmp_path):
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "test.csv", ROWS[:2])
    assert data.load(tmp_path, UTF8)[1] == [("cat number 0, yes", "cat"), ("cat number 1, yes", "cat")]


@pytest.mark.parametrize(
    "header", ["id,category,text", "id,class,tweet", "id,Label,Text", "id,CATEGORY,Tweet", "Tweet,label,text"]
)
def test_csv_takes_the_usual_names_of_the_columns_in_any_case(data, tmp_path, header):
    write_csv(tmp_path / "train.csv", header=header)
    write_csv(tmp_path / "test.csv", ROWS[:2])
    assert data.load(tmp_path, UTF8)[0] == [(f"{text}, yes", label) for text, label in ROWS]


def test_a_byte_order_mark_is_no_part_of_the_text(data, tmp_path):
    path = write_csv(tmp_path / "all.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"id,label,text", b"text,label,id"))
    assert len(data.load(path, UTF8)[0]) == 12


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_one_file_per_class_takes_its_suffix_where_the_names_are_alike(data, tmp_path, encoding):
    write_classes(tmp_path, encoding)
    train, test = data.load(tmp_path, encoding)
    assert sorted(train + test) == [
        ("bad", "neg"), ("good", "pos"), ("mauvais", "neg"), ("super", "pos"), ("très bien", "pos"),
    ]  # fmt: skip


def test_one_file_per_class_takes_its_name_otherwise(data, tmp_path):
    for name in ("spam.txt", "ham.TXT", "test-drive"):
        (tmp_path / name).write_text("one\ntwo\n")
    assert {label for _, label in data.load(tmp_path, UTF8)[0]} == {"spam", "ham", "test-drive"}
