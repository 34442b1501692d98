"""What the speech example cannot use is refused in one line: the path, and what was expected there."""

import struct

import pytest
from helpers.run_example import example as example_module
from helpers.run_example import refused
from helpers.write_wav import write_digits, write_wav


@pytest.fixture(scope="module")
def speech():
    return example_module("speech")


def no_folder(root):
    return root / "nowhere", "not a folder; expected <digit>_<speaker>_<take>.wav"


def empty_folder(root):
    return root, "no data found; expected <digit>_<speaker>_<take>.wav"


def one_speaker(root):
    write_digits(root, ["anna"])
    return root, "expected two speakers or more, one of them for testing, found only anna"


def wrong_name(root):
    write_digits(root)
    write_wav(root / "seven.wav")
    return root / "seven.wav", "expected a name like 7_anna_0.wav"


def yes_and_no_of_kaldi(root):
    for name in ("0_0_0_0_1_1_1_1", "0_0_1_0_1_0_1_1", "1_0_0_0_0_0_0_0"):
        write_wav(root / f"{name}.wav")
    path = root / "0_0_0_0_1_1_1_1.wav"
    return path, "expected a name like 7_anna_0.wav, got the speaker '0_0_0_1_1_1', which is nothing but digits"


def only_folders_of_other_words(root):
    for name in ("yes/anna_0", "no/bert_0"):
        write_wav(root / f"{name}.wav")
    return root, "no data found, but wav files in no, yes; expected <digit>_<speaker>_<take>.wav"


def a_file(root):
    write_digits(root)
    return root / "0_anna_0.wav", f"a file; give its folder, {root}; expected <digit>_<speaker>_<take>.wav"


def empty_file(root):
    write_digits(root)
    (root / "0_anna_0.wav").write_bytes(b"")
    return root / "0_anna_0.wav", "(RIFF, WAVE, PCM); got a file that ends at byte 0"


def truncated_header(root):
    write_digits(root)
    path = root / "0_bert_0.wav"
    path.write_bytes(path.read_bytes()[:30])
    return path, "got a file that ends at byte 30"


def truncated_sound(root):
    write_digits(root)
    path = root / "0_bert_0.wav"
    path.write_bytes(path.read_bytes()[:-300])
    return path, "expected 800 bytes of sound (more than 0), as its header says, got 500; is the file complete?"


def no_sound(root):
    write_digits(root)
    write_wav(root / "1_anna_0.wav", count=0)
    return root / "1_anna_0.wav", "expected 0 bytes of sound (more than 0)"


def not_a_wav_file(root):
    write_digits(root)
    (root / "1_anna_0.wav").write_bytes(b"ID3 this is an mp3 file, renamed")
    return root / "1_anna_0.wav", "expected a wav file of uncompressed samples (RIFF, WAVE, PCM); got "


def floating_point(root):
    write_digits(root)
    path = root / "1_anna_0.wav"
    content = path.read_bytes()
    path.write_bytes(content[:20] + struct.pack("<H", 3) + content[22:])
    return path, "expected a wav file of uncompressed samples (RIFF, WAVE, PCM); got unknown format: 3"


def twenty_four_bits(root):
    write_digits(root)
    write_wav(root / "1_anna_0.wav", width=3)
    return (
        root / "1_anna_0.wav",
        "expected samples of 8 or 16 bits in one or two channels, got 24 bits and 1 channel(s)",
    )


def six_channels(root):
    write_digits(root)
    write_wav(root / "1_anna_0.wav", channels=6)
    return root / "1_anna_0.wav", "got 16 bits and 6 channel(s)"


def another_rate(root):
    write_digits(root)
    write_wav(root / "1_anna_0.wav", rate=16000)
    return root / "1_anna_0.wav", "expected 8000 samples per second as in 0_anna_0.wav, got 16000"


def too_slow(root):
    write_digits(root)
    write_wav(root / "0_anna_0.wav", rate=1000)
    return root / "0_anna_0.wav", "expected 4000 samples per second or more, got 1000"


REFUSED = [
    no_folder,
    empty_folder,
    one_speaker,
    wrong_name,
    yes_and_no_of_kaldi,
    only_folders_of_other_words,
    a_file,
    empty_file,
    truncated_header,
    truncated_sound,
    no_sound,
    not_a_wav_file,
    floating_point,
    twenty_four_bits,
    six_channels,
    another_rate,
    too_slow,
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(speech, tmp_path, capsys, case):
    path, expected = case(tmp_path)
    line = refused(speech, ["--data-dir", str(path if case in (no_folder, a_file) else tmp_path)], capsys)
    assert f": {path}: " in line
    assert expected in line
