"""A run with --fast that ends below the trivial baseline says that it is too short for it; no other run says so."""

import os
import subprocess
import sys

import pytest
from helpers.run_example import EXAMPLES, example
from helpers.write_text import write_tsv
from helpers.write_wav import write_digits

pytestmark = pytest.mark.slow
SAID = "--fast is too short to reach the trivial baseline; it is there to see that everything works."


def says_so(name, capsys, tmp_path, *arguments):
    result = example(name).main(["--log-dir", str(tmp_path / "logs"), *arguments])  # its writer may outlive the test
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(SAID) in (0, 1)
    if SAID in lines:
        assert "(trivial baseline: " in "".join(lines[lines.index(SAID) - 2 : lines.index(SAID)]), "it stands below it"
    return result, SAID in lines


@pytest.mark.parametrize("rate", ["1e-6", "0.2"])
def test_vision(capsys, tmp_path, rate):
    result, said = says_so("vision", capsys, tmp_path, "--fast", "--lr", rate, "--calibrate", "none")
    assert said == (result["accuracy"] < result["baseline"]) == (rate == "1e-6")


def test_vision_that_diverged_was_not_too_short(capsys, tmp_path):
    result, said = says_so("vision", capsys, tmp_path, "--fast", "--model", "nfnet", "--calibrate", "none")
    assert result["accuracy"] < result["baseline"]
    assert not said


@pytest.mark.parametrize("rate", ["1e-7", "4e-3"])
def test_vision_gan(capsys, tmp_path, rate):
    result, said = says_so("vision_gan", capsys, tmp_path, "--fast", "--lr", rate, "--calibrate", "none")
    assert said == (result["frechet"] > result["baseline"]) == (rate == "1e-7")


def test_language_model(capsys, tmp_path):
    result, said = says_so("language_model", capsys, tmp_path, "--fast", "--steps", "20")
    assert result["bits_per_character"] > result["bigram"]
    assert said
    (tmp_path / "a.txt").write_text("aabb" * 2000)  # an a is followed by either with equal chances, for a bigram
    result, said = says_so("language_model", capsys, tmp_path, "--fast", "--data-dir", str(tmp_path))
    assert result["bits_per_character"] < result["bigram"]
    assert not said


def test_text_classification(capsys, tmp_path):
    data = ["--data-dir", str(write_tsv(tmp_path / "data.tsv"))]
    result, said = says_so("text_classification", capsys, tmp_path, *data, "--fast", "--lr", "1e-6")
    assert result["macro_f1"] < result["bayes_macro_f1"]
    assert said
    result, said = says_so("text_classification", capsys, tmp_path, *data, "--fast")
    assert result["macro_f1"] == result["bayes_macro_f1"] == 1
    assert not said
    assert not says_so("text_classification", capsys, tmp_path, *data, "--steps", "5", "--lr", "1e-6")[1], (
        "without --fast"
    )


def test_speech(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(example("speech"), "FAST_UTTERANCES", (60, 20))
    write_digits(tmp_path / "digits")
    arguments = ["--fast", "--epochs", "1", "--calibrate", "none", "--data-dir", str(tmp_path / "digits"), "--cut"]
    result, said = says_so("speech", capsys, tmp_path, *arguments, "0")
    assert result["wer"] > result["baseline"]
    assert said
    result, said = says_so("speech", capsys, tmp_path, *arguments, "3")
    assert result["finite"] == 0
    assert not said, "it diverged"


@pytest.mark.parametrize("rate", ["1e-9", "300", "1e9"])
def test_recommendation(capsys, tmp_path, rate):
    clip = {"1e-9": "none", "300": "clip", "1e9": "none"}[rate]  # the last one diverges
    result, said = says_so(
        "recommendation", capsys, tmp_path, "--fast", "--epochs", "2", "--calibrate", clip, "--lr", rate
    )
    assert said == (rate == "1e-9")
    assert (result["recall"] > result["baseline"]) == (rate == "300")


@pytest.mark.parametrize(("rate", "spoil"), [("1e-9", []), ("0.1", []), ("0.1", ["--spoil", "--calibrate", "none"])])
def test_distributed(tmp_path, rate, spoil):
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import distributed; distributed.LR = {rate}; "
    arguments = ["--fast", "--accelerator", "cpu", "--devices", "1", *spoil]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    run = subprocess.run(
        [sys.executable, "-c", code + "distributed.main(sys.argv[1:])", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert (SAID in run.stdout.splitlines()) == (rate == "1e-9")
