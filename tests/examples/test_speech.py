"""The speech example learns digits, names its broken utterances, and reads wav files."""

import struct
import wave

import pytest
import torch
from helpers.run_example import example as example_module
from helpers.write_wav import write_digits, write_wav

from lightning_calib import AutoClip, GradientMonitor, NonFiniteGuard


@pytest.fixture(scope="module")
def data():
    return example_module("speech_data")


@pytest.fixture(scope="module")
def speech():
    return example_module("speech")


# ---- the run ----


def test_the_guard_names_the_broken_utterances_and_the_run_beats_the_best_constant_answer(speech, capsys, said):
    result = speech.main(["--fast"])
    lines = capsys.readouterr().out.splitlines()
    assert result["finite"] == 1
    assert result["wer"] < result["baseline"] - 0.1
    told = [line for line in lines if ": utterance " in line]
    count = speech.FAST_UTTERANCES[0]
    named = {int(line.split(": utterance ")[1].split()[0]) for line in told}
    assert named == set(range(count - speech.CUT, count))
    assert result["broken"] == len(told) == speech.CUT
    assert all(".pt, batch " in line and ", sample " in line and "has 0.05 s of sound" in line for line in told)
    assert any("loss inf" in line and "the step is skipped" in line for line in said())
    assert next(line for line in lines if line.startswith("test/wer ")).endswith(f"{result['baseline']:.4f})")
    assert lines[-1].startswith("to see the charts: ")
    assert lines[-1].endswith("--logdir lightning_logs")


@pytest.mark.parametrize("calibrate", [pytest.param("none", marks=pytest.mark.slow), "monitor", "clip"])
def test_without_the_guard_one_broken_utterance_makes_every_weight_nan(speech, capsys, monkeypatch, calibrate):
    monkeypatch.setattr(speech, "FAST_UTTERANCES", (60, 20))
    result = speech.main(["--fast", "--epochs", "1", "--calibrate", calibrate])
    assert result["finite"] == 0
    assert result["wer"] == 1
    output = capsys.readouterr().out
    assert "The weights are not finite: the model hears nothing." in output
    assert ("optimizer steps" in output) == (calibrate != "none")
    assert "to see the charts: " in output


def test_clean_data_need_no_guard(speech, capsys, monkeypatch):
    monkeypatch.setattr(speech, "FAST_UTTERANCES", (60, 20))
    assert speech.main(["--fast", "--epochs", "1", "--calibrate", "none", "--cut", "0"])["finite"] == 1
    assert "not finite" not in capsys.readouterr().out


def test_each_word_of_the_command_line_brings_its_callbacks(speech, tmp_path):
    kinds = {
        word: [type(one) for one in speech.callbacks(word, tmp_path)] for word in ("none", "monitor", "clip", "full")
    }
    assert kinds["none"] == []
    assert kinds["monitor"] == [GradientMonitor]
    assert kinds["clip"] == [AutoClip, GradientMonitor]
    assert kinds["full"] == [NonFiniteGuard, AutoClip, GradientMonitor]


def test_it_learns_from_wav_files(speech, tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "FAST_UTTERANCES", (60, 20))
    write_digits(tmp_path / "digits")
    result = speech.main(["--fast", "--epochs", "1", "--data-dir", str(tmp_path / "digits")])
    assert result["finite"] == 1
    assert result["broken"] == speech.CUT


# ---- the parts ----


def test_the_loss_is_inf_for_the_cut_utterance_alone_and_padding_changes_nothing(speech, data):
    recordings, rate = data.load(None, 2, 1)
    utterances = data.Utterances(recordings, 4, rate, cut=1)
    torch.manual_seed(0)
    model = speech.Recogniser(rate).eval()
    batch = data.collate([utterances[i] for i in range(4)])
    losses = model.losses(batch)
    assert losses.isfinite().tolist() == [True, True, True, False]
    alone = torch.cat([model.losses(data.collate([utterances[i]])) for i in range(3)])
    # The last 16 ms of a padded sound see zeros where an unpadded one is mirrored.
    torch.testing.assert_close(losses[:3], alone, rtol=2e-2, atol=0)


def test_mel_bands_cover_every_frequency_between_the_outer_centres(speech):
    bank = speech.mel_bank(8000, 512)
    assert bank.shape == (speech.MELS, 257)
    assert (bank >= 0).all()
    assert (bank.sum(1) > 0).all()
    inner = bank[:, bank.argmax(1)[0] + 1 : bank.argmax(1)[-1]].sum(0)
    torch.testing.assert_close(inner, torch.ones_like(inner), rtol=1e-4, atol=0)  # triangles add up to 1


def test_nobody_is_heard_in_training_and_in_testing(data):
    recordings, _ = data.load(None, 4, 1)
    train, test = data.split(recordings)
    assert {one[1] for one in train} == {"voice00", "voice01", "voice02"}
    assert {one[1] for one in test} == {"voice03"}
    assert sorted({one[0] for one in test}) == list(range(10))


# ---- the loader: what it takes ----


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("channels", [1, 2])
def test_8_and_16_bits_and_one_or_two_channels_are_read(data, tmp_path, width, channels):
    top, middle, bottom = {1: (255, 128, 0), 2: (32767, 0, -32768)}[width]
    values = [value for value in (top, middle, bottom) for _ in range(channels)]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((channels, width, 8000, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(values)}{'B' if width == 1 else 'h'}", *values))
    rate, sound = data.read_wav(tmp_path / "a.wav")
    assert rate == 8000
    torch.testing.assert_close(sound, torch.tensor([1.0, 0.0, -1.0]), atol=1 / 100, rtol=0)  # 255 is 127/128


def test_two_channels_are_averaged(data, tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(struct.pack("<4h", 16384, 0, -16384, 16384))
    torch.testing.assert_close(data.read_wav(tmp_path / "a.wav")[1], torch.tensor([0.25, 0.0]))


def test_names_and_folders_tell_digit_and_speaker(data, tmp_path):
    for name in ("7_anna_0", "7_van_der_berg_12", "3/carl_nohash_0", "zero/dora_1"):
        write_wav(tmp_path / f"{name}.wav")
    (tmp_path / "_background_noise_").mkdir()
    write_wav(tmp_path / "7_01_0.wav")  # a speaker may be a number
    recordings, rate = data.load(tmp_path, 1, 1)
    assert rate == 8000
    assert [one[:2] for one in recordings] == [(7, "01"), (7, "anna"), (7, "van_der_berg"), (0, "dora"), (3, "carl")]
    assert all(one[2].shape == (400,) for one in recordings)


def test_folders_that_are_no_digits_are_left_out_and_named(data, tmp_path, capsys):
    for name in ("3/carl_0", "zero/dora_0", "bed/anna_0", "_background_noise_/tap"):
        write_wav(tmp_path / f"{name}.wav")
    (tmp_path / "notes").mkdir()
    assert [one[:2] for one in data.load(tmp_path, 1, 1)[0]] == [(0, "dora"), (3, "carl")]
    told = f"{tmp_path}: left out, because the names of these folders are no digits: _background_noise_, bed\n"
    assert capsys.readouterr().out == told


def test_nothing_is_said_where_nothing_is_left_out(data, tmp_path, capsys):
    write_digits(tmp_path)
    data.load(tmp_path, 1, 1)
    assert capsys.readouterr().out == ""
