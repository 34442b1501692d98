"""The data of the study, each in three parts: to train on, to choose by, and to be looked at once."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import sysconfig
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = {  # below --data-dir, and the SHA-256 of what the published rows were made from
    "tinyshakespeare/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "clinc_oos/data_imbalanced.json": "4886730b20c51eece26aa392ecae2717bfe9908680419e96255351c6148eb4cc",
    "movietweetings/ratings.dat": "c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6",
    "fsdd/fsdd.zip": "4c1f8dd97a13777976c1ba6c4d45412f015d87d10c57ea968e5bfbbcc7d57523",
}
WORDS, LONGEST = 4096, 40  # rows of the hashed table; words and pairs of a text that are read
CONTEXT = 32
Part = tuple[Tensor, Tensor]


class Data(NamedTuple):
    """Inputs and answers of the three parts, how many answers there are, and a checksum of all."""

    train: Part
    validation: Part
    test: Part
    classes: int
    checksum: str
    seen: Tensor | None = None  # recommendation: which items a user has rated in training


def checksum_of(*parts: Part) -> str:
    return hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for part in parts for one in part)).hexdigest()[
        :12
    ]


def file_of(folder: Path | None, name: str) -> Path:
    """The file of a real set; another file of the same name is refused."""
    if folder is None or not (folder / name).is_file():
        raise FileNotFoundError(f"data: expected {name} below --data-dir, got {folder}. Give the folder that has it.")
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if found != REAL[name]:
        raise ValueError(
            f"data: {name} must have the SHA-256 {REAL[name][:12]}..., got {found[:12]}.... "
            "Take the file that the page names, or write an experiment of your own for yours."
        )
    return folder / name


def parts_of(x: Tensor, y: Tensor, classes: int) -> Data:
    """A half to train on, a quarter to choose by, a quarter to test with; the same in every run."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2026))
    half, three = len(x) // 2, 3 * len(x) // 4
    parts = [(x[i], y[i]) for i in (order[:half], order[half:three], order[three:])]
    return Data(parts[0], parts[1], parts[2], classes, checksum_of(*parts))


@cache
def digits() -> Data:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.data).float().reshape(-1, 1, 8, 8)
    return parts_of((x - x.mean()) / x.std(), torch.from_numpy(found.target), 10)


@cache
def prose(folder: Path | None) -> Data:
    """Windows of text, and the symbol after each symbol; the middle of a text is for choosing, the end for testing."""
    if folder is None:
        source = Path(sysconfig.get_path("stdlib"), "pydoc_data/topics.py").read_text()
        topics = next(ast.literal_eval(one.value) for one in ast.parse(source).body if isinstance(one, ast.Assign))
        text = "\n".join(topics[name] for name in sorted(topics))
    else:
        text = file_of(folder, "tinyshakespeare/input.txt").read_text()
    symbols = torch.tensor(list(text.encode("ascii", "replace")))
    ends = [round(len(symbols) * share) for share in (0.8, 0.9)]
    train = symbols[: ends[0]].unfold(0, CONTEXT + 1, 1)
    held = [one.unfold(0, CONTEXT + 1, CONTEXT) for one in (symbols[ends[0] : ends[1]], symbols[ends[1] :])]
    some = [one[torch.linspace(0, len(one) - 1, 200).long()] for one in held]  # from all over
    parts = [(one[:, :-1], one[:, 1:]) for one in (train, *some)]
    return Data(parts[0], parts[1], parts[2], 128, checksum_of(*parts[1:]))


def hashed(text: str) -> list[int]:
    words = re.findall(r"\w+", text.lower())
    pairs = [f"{left} {right}" for left, right in pairwise(words)]
    found = [1 + zlib.crc32(one.encode()) % (WORDS - 1) for one in words + pairs][:LONGEST]
    return found + [0] * (LONGEST - len(found))


def texts(examples: list[tuple[str, str]], names: list[str]) -> Part:
    return torch.tensor([hashed(text) for text, _ in examples]), torch.tensor([names.index(one) for _, one in examples])


@cache
def documents(folder: Path | None) -> Data:
    """Docstrings of Python's packages, many classes of unequal size; or the queries of CLINC150, imbalanced."""
    if folder is None:
        sys.path.insert(0, str(EXAMPLES))
        from text_classification_data import docstrings

        found = sorted(docstrings(Path(sysconfig.get_path("stdlib"))))
        names = sorted({name for _, name in found})
        return parts_of(*texts(found, names), len(names))
    raw = json.loads(file_of(folder, "clinc_oos/data_imbalanced.json").read_text())
    names = sorted({name for _, name in raw["train"]})
    parts = [texts(raw[part], names) for part in ("train", "val", "test")]
    return Data(parts[0], parts[1], parts[2], len(names), checksum_of(*parts))


@cache
def ratings(folder: Path | None) -> Data:
    """Pairs of user and item in the order of time: what was rated earlier trains, what came later is to be found."""
    sys.path.insert(0, str(EXAMPLES))
    from recommendation_data import find, plant

    path = file_of(folder, "movietweetings/ratings.dat") if folder else None
    rows = sorted(find(path) if path else plant(), key=lambda row: row[3])
    ends = [round(len(rows) * share) for share in (0.8, 0.9)]
    counts: list[dict[str, int]] = [{}, {}]
    for row in rows[: ends[0]]:
        for side in (0, 1):
            counts[side][row[side]] = counts[side].get(row[side], 0) + 1
    kept = [sorted(one for one, count in side.items() if count >= 3) for side in counts]
    places = [{name: i for i, name in enumerate(side)} for side in kept]
    pairs = [
        torch.tensor([(places[0][a], places[1][b]) for a, b, *_ in part if a in places[0] and b in places[1]])
        for part in (rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] :])
    ]
    seen = torch.zeros(len(kept[0]), len(kept[1]), dtype=torch.bool)
    seen[pairs[0][:, 0], pairs[0][:, 1]] = True
    parts = [(one, one[:, 1]) for one in pairs]
    return Data(parts[0], parts[1], parts[2], len(kept[1]), checksum_of(*parts), seen)


@cache
def speech(folder: Path | None) -> Data:
    """Spoken digits of six speakers as 24 frames of 20 bands; two speakers are kept for choosing and testing."""
    import io
    import wave
    import zipfile

    x, y, who = [], [], []
    with zipfile.ZipFile(file_of(folder, "fsdd/fsdd.zip")) as archive:
        for name in sorted(one for one in archive.namelist() if one.endswith(".wav")):
            with wave.open(io.BytesIO(archive.read(name))) as sound:
                samples = torch.frombuffer(bytearray(sound.readframes(sound.getnframes())), dtype=torch.int16).float()
            power = torch.stft(samples, 256, 160, window=torch.hann_window(256), return_complex=True).abs()
            bands = torch.nn.functional.adaptive_avg_pool2d(power[None, 1:], (20, 24))[0]
            digit, speaker, _ = Path(name).stem.split("_")
            x.append(bands.clamp(min=1e-3).log().T)
            y.append(int(digit))
            who.append(speaker)
    inputs, answers, speakers = torch.stack(x), torch.tensor(y), sorted(set(who))
    inputs = (inputs - inputs.mean()) / inputs.std()
    chosen = torch.tensor([max(0, speakers.index(one) - 3) for one in who])
    parts = [(inputs[chosen == part], answers[chosen == part]) for part in range(3)]
    return Data(parts[0], parts[1], parts[2], 10, checksum_of(*parts))
