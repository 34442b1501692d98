"""The text of language_model.py, read from files or from Python's standard library, and what counting makes of it.

What is not text is refused in one line that names the file and the byte.
"""

import ast
import sysconfig
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

SYMBOLS = 256  # bytes: no text has a symbol that the model does not know
VALIDATION_SHARE = 0.1  # the end of every text
TOPICS = "pydoc_data/topics.py"  # of the standard library: the language reference that help() shows, English prose


class DataError(Exception):
    """The data cannot be used; the message names the path and what was expected there."""


def load(source: Path | None, least: int) -> tuple[str, str]:
    """Returns the text to learn from and the text to be tested on: the end of every file."""
    if source is None:
        paths = [Path(sysconfig.get_path("stdlib"), TOPICS)]
    elif not source.exists():
        raise DataError(f"{source}: no such file or folder; expected a text file, or a folder with .txt files")
    else:
        paths = [source] if source.is_file() else sorted(path for path in source.rglob("*.txt") if path.is_file())
    texts = [read(path) if source else prose(path) for path in paths]
    ends = [round((1 - VALIDATION_SHARE) * len(text)) for text in texts]
    train = "".join(text[:end] for text, end in zip(texts, ends, strict=True))
    validation = "".join(text[end:] for text, end in zip(texts, ends, strict=True))
    if len(train) + len(validation) <= least:
        wanted, got = f"more than {least} characters", f"got {len(train) + len(validation)}"
        if paths == [source]:
            raise DataError(f"{source}: expected a text with {wanted}, {got}")
        raise DataError(f"{source}: expected .txt files with {wanted} in all, {got} in {len(paths)} files")
    return train, validation


def read(path: Path) -> str:
    """Reads text, and refuses what is none."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected Python's standard library as text, or --data-dir") from None
    except UnicodeDecodeError as error:
        got = error.object[error.start]
        wanted = "expected UTF-8; save the file as UTF-8, or remove it"
        raise DataError(f"{path}: byte {error.start} is 0x{got:02x}, {error.reason}; {wanted}") from error
    if not text.strip():
        raise DataError(f"{path}: expected text, got an empty file")
    if "\0" in text:
        wanted = "expected text; is this a binary file, or UTF-16?"
        raise DataError(f"{path}: byte {len(text[: text.index(chr(0))].encode())} is 0x00; {wanted}")
    return text


def prose(path: Path) -> str:
    """Returns the texts of a module that is nothing but a dictionary of texts; it is not run."""
    values = [node.value for node in ast.parse(read(path)).body if isinstance(node, ast.Assign)]
    if len(values) != 1 or not isinstance(values[0], ast.Dict):
        raise DataError(f"{path}: expected nothing but one dictionary of texts; see --data-dir")
    topics = ast.literal_eval(values[0])
    return "\n\n".join(topics[name] for name in sorted(topics))


def windows(text: str, context: int, stride: int) -> TensorDataset:
    """Returns windows of `context` bytes and the one that follows, as a view: nothing is copied."""
    return TensorDataset(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).unfold(0, context + 1, stride))


def count_baselines(train: str, validation: str) -> dict[str, float]:
    """The trivial baselines, in bits per character: how often a byte occurs, and how often after the one before it."""
    known, new = (torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long() for text in (train, validation))
    unigram = (known.bincount(minlength=SYMBOLS) + 1.0) / (len(known) + SYMBOLS)  # add-one smoothing
    pairs = (known[:-1] * SYMBOLS + known[1:]).bincount(minlength=SYMBOLS**2).reshape(SYMBOLS, SYMBOLS)
    bigram = (pairs + unigram) / (pairs.sum(1, keepdim=True) + 1)  # one more observation, shared as the unigrams are
    scores = {"unigram": unigram[new[1:]], "bigram": bigram[new[:-1], new[1:]]}
    return {name: float(-score.log2().sum()) / len(validation) for name, score in scores.items()}
