"""Utterances of spoken digits for speech.py: from wav files, or from a synthesis by formants that needs no file.

Peterson and Barney, *Control methods used in a study of the vowels*, JASA 1952, measured the vowels' formants.
"""

import math
import re
import wave
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, interpolate
from torch.utils.data import Dataset

TEST_SHARE = 1 / 3  # of the speakers: nobody is heard in training and in testing
LONGEST = 5  # digits in an utterance, at most
PAUSE = 0.05  # seconds between two digits
SPEEDS = 0.85, 1.15  # training utterances are played slower or faster, pitch included: more voices than there are
CUT_SECONDS = 0.05  # of sound that are left in a broken utterance: fewer steps than the text needs
RATE = 8000  # samples per second of the synthetic digits
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMATS = "expected <digit>_<speaker>_<take>.wav files, or folders 0 to 9 (or zero to nine) of <speaker>_<take>.wav"

# Three formants in Hz, loudness, noise (0: a voice, 1: a hiss), seconds.
PHONES = """\
iy 270 2290 3010 1.0 0 0.12 | ih 390 1990 2550 1.0 0 0.08 | eh 530 1840 2480 1.0 0 0.09 | uh 640 1190 2390 1.0 0 0.11
aa 730 1090 2440 1.0 0 0.11 | ao 570 840 2410 1.0 0 0.13 | uw 300 870 2240 1.0 0 0.14 | r 310 1060 1380 0.7 0 0.06
w 290 610 2150 0.7 0 0.06 | n 250 1400 2300 0.4 0 0.08 | v 220 1100 2080 0.3 0.5 0.06 | z 240 3300 3800 0.3 0.6 0.08
s 3000 3400 3800 0.3 1 0.10 | f 1100 2100 3500 0.1 1 0.10 | th 1400 2600 3300 0.08 1 0.08
k 600 1800 2600 0.2 1 0.04 | t 900 3000 3700 0.2 1 0.04 | - 500 1500 2500 0.001 1 0.05"""  # -: the mouth is closed
SPOKEN = "z iy r ao uw|w uh n|t uw|th r iy|f ao r|f aa iy v|s ih - k s|s eh v uh n|eh iy - t|n aa iy n"

Recording = tuple[int, str, Tensor]  # digit, speaker, samples in [-1, 1]


class DataError(Exception):
    """The data cannot be used; the message names the path and what was expected there."""


def load(folder: Path | None, voices: int, takes: int) -> tuple[list[Recording], int]:
    """Returns the recordings and their samples per second; `voices` and `takes` are for the synthesis."""
    if folder is None:
        return synthesise(voices, takes), RATE
    if not folder.is_dir():
        found = f"a file; give its folder, {folder.parent}" if folder.is_file() else "not a folder"
        raise DataError(f"{folder}: {found}; {FORMATS}")
    named = [(path, *parse(path)) for path in sorted(folder.glob("*.wav"))]
    others = sorted({path.parent.name for path in folder.glob("*/*.wav")} - {*"0123456789", *WORDS})
    for digit, word in enumerate(WORDS):
        for inside in (folder / str(digit), folder / word):
            named += [(path, digit, path.stem.split("_")[0]) for path in sorted(inside.glob("*.wav"))]
    if not named:
        found = f", but wav files in {', '.join(others)}" if others else ""
        raise DataError(f"{folder}: no data found{found}; {FORMATS}")
    if len({speaker for _, _, speaker in named}) < 2:
        raise DataError(f"{folder}: expected two speakers or more, one of them for testing, found only {named[0][2]}")
    recordings, first = [], 0
    for path, digit, speaker in named:
        rate, sound = read_wav(path)
        first = first or rate
        if rate != first:
            raise DataError(f"{path}: expected {first} samples per second as in {named[0][0].name}, got {rate}")
        recordings.append((digit, speaker, sound))
    if others:
        print(f"{folder}: left out, because the names of these folders are no digits: {', '.join(others)}")
    return recordings, first


def parse(path: Path) -> tuple[int, str]:
    """Returns the digit and the speaker."""
    digit, _, rest = path.stem.partition("_")
    speaker, _, take = rest.rpartition("_")
    if len(digit) != 1 or digit not in "0123456789" or not speaker or not take:
        raise DataError(f"{path}: expected a name like 7_anna_0.wav; {FORMATS}")
    if "_" in speaker and not speaker.strip("0123456789_"):  # kaldi's yesno: 0_0_0_0_1_1_1_1.wav says no and yes
        got = f"got the speaker {speaker!r}, which is nothing but digits and underscores"
        raise DataError(f"{path}: expected a name like 7_anna_0.wav, {got}; rename or remove the file; {FORMATS}")
    return int(digit), speaker


def read_wav(path: Path) -> tuple[int, Tensor]:
    """Returns samples per second and the samples, shape (N,); two channels are averaged."""
    try:
        with wave.open(str(path)) as file:
            channels, width, rate, count = file.getparams()[:4]
            content = file.readframes(count)
    except (wave.Error, EOFError) as error:
        got = str(error) or f"a file that ends at byte {path.stat().st_size}"
        raise DataError(f"{path}: expected a wav file of uncompressed samples (RIFF, WAVE, PCM); got {got}") from error
    if width > 2 or channels > 2:
        got = f"{8 * width} bits and {channels} channel(s)"
        raise DataError(f"{path}: expected samples of 8 or 16 bits in one or two channels, got {got}")
    if rate < 4000:
        raise DataError(f"{path}: expected 4000 samples per second or more, got {rate}")
    if count == 0 or len(content) != count * width * channels:
        wanted = f"{count * width * channels} bytes of sound (more than 0), as its header says"
        raise DataError(f"{path}: expected {wanted}, got {len(content)}; is the file complete?")
    sound = torch.frombuffer(bytearray(content), dtype=torch.uint8 if width == 1 else torch.int16).float()
    sound = (sound - 128) / 128 if width == 1 else sound / 32768  # 8 bits have no sign, 16 bits have one
    return rate, sound.reshape(-1, channels).mean(1)


def synthesise(speakers: int, takes: int) -> list[Recording]:
    """Digits from three formants: every speaker has a pitch, a vocal tract and a tempo, every take differs a little."""
    random = torch.Generator().manual_seed(0)
    table = {name: [float(value) for value in values] for name, *values in map(str.split, re.split(r"[|\n]", PHONES))}

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    found = []
    for speaker in range(speakers):
        pitch, tract, tempo = between(90, 230), between(0.85, 1.2), between(0.8, 1.3)
        for digit in [d for d in range(10) for _ in range(takes)]:
            phones = torch.tensor([table[name] for name in SPOKEN.split("|")[digit].split()])
            phones[:, :3] *= tract * (1 + 0.04 * torch.randn(len(phones), 3, generator=random))
            lengths = (phones[:, 5] * tempo * between(0.85, 1.15) * RATE).long()
            track = phones[:, :5].repeat_interleave(lengths, 0).T[None]
            track = avg_pool1d(track, 321, 1, 160, count_include_pad=False)[0]  # 40 ms from one to the next
            melody = pitch * between(0.9, 1.1) * torch.linspace(1.1, 0.85, track.shape[1])
            partials = torch.arange(1, int(RATE / 2 / melody.max()))[:, None]
            gain = sum(1 / (1 + ((partials * melody - formant) / 80) ** 2) for formant in track[:3])
            wander = torch.randn(len(partials), track.shape[1], generator=random).cumsum(1) * 0.3
            phase = partials * (2 * math.pi / RATE) * melody.cumsum(0) + wander * track[4]
            sound = (gain * phase.cos()).sum(0) * track[3] * between(0.03, 0.1)
            found.append((digit, f"voice{speaker:02}", sound + 1e-3 * torch.randn(len(sound), generator=random)))
    return found


def split(recordings: list[Recording]) -> tuple[list[Recording], list[Recording]]:
    """Keeps the last speakers, in the order of their names, for testing."""
    speakers = sorted({speaker for _, speaker, _ in recordings})
    held = set(speakers[-max(1, round(TEST_SHARE * len(speakers))) :])
    return [one for one in recordings if one[1] not in held], [one for one in recordings if one[1] in held]


class Utterances(Dataset):
    """Recordings of one speaker joined to sequences of digits; of the last `cut` of them most of the sound is lost."""

    def __init__(self, recordings: list[Recording], count: int, rate: int, cut: int = 0, varied: bool = False):
        random = torch.Generator().manual_seed(0)  # the same utterances whatever the seed of the training
        speakers: dict[str, list[int]] = {}
        for i, (_, speaker, _) in enumerate(recordings):
            speakers.setdefault(speaker, []).append(i)
        self.recordings, self.varied, self.whole = recordings, varied, count - cut
        self.pause, self.left = torch.zeros(round(PAUSE * rate)), round(CUT_SECONDS * rate)
        self.parts: list[list[int]] = []
        for i in range(count):
            own = list(speakers.values())[i % len(speakers)]
            length = LONGEST if i >= self.whole else int(torch.randint(1, LONGEST + 1, (), generator=random))
            self.parts.append([own[j] for j in torch.randint(len(own), (length,), generator=random).tolist()])

    def __len__(self) -> int:
        return len(self.parts)

    def text(self, i: int) -> Tensor:
        """The symbols of one utterance."""
        return torch.tensor([self.recordings[j][0] + 1 for j in self.parts[i]])

    def texts(self) -> list[str]:
        """What is said in each utterance."""
        return [spell(self.text(i)) for i in range(len(self))]

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        sound = torch.cat([piece for j in self.parts[i] for piece in (self.recordings[j][2], self.pause)])
        if self.varied:
            speed = SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * float(torch.rand(()))
            sound = interpolate(sound[None, None], scale_factor=1 / speed, mode="linear")[0, 0]
        return i, sound[: self.left] if i >= self.whole else sound, self.text(i)


def collate(samples: list[tuple[int, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Pads to the longest; `utterance` is there for whoever reads a batch that the guard has saved."""
    numbers, sounds, texts = zip(*samples, strict=True)
    return {
        "utterance": torch.tensor(numbers),
        "sound": nn.utils.rnn.pad_sequence(sounds, batch_first=True),
        "samples": torch.tensor([len(sound) for sound in sounds]),
        "text": nn.utils.rnn.pad_sequence(texts, batch_first=True),
        "length": torch.tensor([len(text) for text in texts]),
    }


def spell(symbols: Tensor) -> str:
    """Writes symbols (a digit and 1) as a text."""
    return " ".join(str(symbol - 1) for symbol in symbols.tolist())
