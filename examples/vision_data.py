"""The loaders of vision.py: scikit-learn's digits, IDX files, CIFAR-10's batches, image folders.

Each returns unsigned bytes and refuses, in one line that names the path, what is not what it should be.
"""

import gzip
import math
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

SPLIT_SEED = 1  # of the split where the data come without a test set: the same images are held out in every run
TEST_SHARE = 0.2  # of every class, where the data come without a test set
IMAGE_SIZE = 32  # image folders only: every image is resized to this square
IMAGE_MODE = "RGB"  # image folders only: Pillow's name; "L" for grey images saves two thirds of the input
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CIFAR = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
IN_FOLDER = re.compile(r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?|(data_batch_\d|test_batch)(\.bin)?")
CIFAR_SHAPE = (3, 32, 32)  # red, green and blue one after the other
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")  # of the data: no classes
FORMATS = (
    "expected the four IDX files of MNIST (train-images-idx3-ubyte and so on, plain or .gz), the six batches of "
    "CIFAR-10 (data_batch_1 to data_batch_5 and test_batch, as pickles or .bin) or an image folder "
    "(one sub-folder per class, directly or inside train/ and test/)"
)

Half = tuple[Tensor, list]  # images, unsigned bytes of shape (N, C, H, W), and their N classes


class DataError(Exception):
    """The data cannot be used; the message names the path and what was expected there."""


def load(folder: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Returns images and labels for training, the same for testing, and the number of classes."""
    if folder is not None and folder.is_file() and IN_FOLDER.fullmatch(folder.name):
        folder = folder.parent
    if folder is None:
        digits = load_digits()
        halves = split(torch.from_numpy(digits.images).byte().unsqueeze(1), digits.target.tolist())
    elif not folder.is_dir():
        found = "a file; give the folder of the data" if folder.is_file() else "no such folder"
        raise DataError(f"{folder}: {found}; {FORMATS}")
    elif any(folder.glob("*-ubyte")) or any(folder.glob("*-ubyte.gz")):
        halves = read_idx_half(folder, "train"), read_idx_half(folder, "t10k")
    elif any(folder.glob("data_batch_*")) or any(folder.glob("test_batch*")):
        halves = read_cifar_half(folder, "train"), read_cifar_half(folder, "test")
    elif (folder / "train").is_dir() and (folder / "test").is_dir():
        halves = read_classes(folder / "train"), read_classes(folder / "test")
    else:
        refuse_other_layouts(folder)
        halves = split(*read_classes(folder), folder)
    (images, names), (test_images, test_names) = halves
    classes = sorted(set(names))
    if unseen := sorted(set(test_names) - set(classes)):
        raise DataError(f"{folder}: expected every class of the test set in the training set too; {unseen[0]} is not")
    if len(classes) < 2:
        raise DataError(f"{folder}: expected two classes or more, found only {classes[0]}")
    if images.shape[1:] != test_images.shape[1:]:
        sizes = [" x ".join(map(str, half.shape[2:])) for half in (images, test_images)]
        raise DataError(f"{folder}: expected test images of {sizes[0]} as in the training set, found {sizes[1]}")
    index = {name: i for i, name in enumerate(classes)}
    train, test = ((half[0], torch.tensor([index[name] for name in half[1]])) for half in halves)
    return train, test, len(classes)


def split(images: Tensor, names: list, folder: Path | None = None) -> tuple[Half, Half]:
    """Moves the same share of every class, and one image at least, to the test set."""
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    train, test = [], []
    for name in sorted(set(names)):
        members = [i for i in order if names[i] == name]
        if len(members) == 1:
            raise DataError(f"{folder / name}: expected two images or more, one of them for testing; found 1")
        size = max(1, round(TEST_SHARE * len(members)))
        test += members[:size]
        train += members[size:]
    return (images[train], [names[i] for i in train]), (images[test], [names[i] for i in test])


def read_idx_half(folder: Path, half: str) -> Half:
    """Reads the images and the labels of "train" or "t10k"."""
    found = []
    for kind, dims in (("images", 3), ("labels", 1)):
        spellings = [f"{half}-{kind}{mark}idx{dims}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
        path = next((folder / name for name in spellings if (folder / name).is_file()), None)
        if path is None:
            raise DataError(f"{folder / spellings[0]}: no such file, nor with .gz; {FORMATS}")
        found.append((path, read_idx(path, dims)))
    (path, images), (labels_path, labels) = found
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: expected {len(images)} labels, as many as {path.name} has; got {len(labels)}")
    return images.unsqueeze(1), labels.tolist()


def read_idx(path: Path, dims: int) -> Tensor:
    """Reads unsigned bytes: the magic number 0, 0, 8, dims, then the sizes as big-endian words, then the data."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":  # gzip's own magic; the name may lie: browsers unpack a file and keep its .gz
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: expected a complete gzip file; {error}") from error
    if content[:4] != bytes([0, 0, 8, dims]):
        got = content[:4].hex(" ") or "an empty file"
        raise DataError(f"{path}: expected an IDX file of bytes (it begins with 00 00 08 0{dims}), got {got}")
    start = 4 + 4 * dims
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) < start or len(content) - start != math.prod(sizes) or 0 in sizes:
        wanted = f"{' x '.join(map(str, sizes))} bytes (none of them 0) after a header of {start}"
        raise DataError(f"{path}: expected {wanted}, got {len(content)} bytes in all; is the file complete?")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(sizes)


def read_cifar_half(folder: Path, half: str) -> Half:
    """Reads the batches of "train" or "test", each as a pickle or, with .bin, as plain records."""
    images, labels = [], []
    for name in CIFAR[half]:
        path = next((folder / spelling for spelling in (name, f"{name}.bin") if (folder / spelling).is_file()), None)
        if path is None:
            raise DataError(f"{folder / name}: no such file, nor with .bin; {FORMATS}")
        pixels, found = (read_cifar_records if path.suffix else read_cifar_pickle)(path)
        if wrong := [label for label in found if label not in range(10)]:
            raise DataError(f"{path}: expected labels from 0 to 9, got {wrong[0]!r}")
        images.append(pixels.reshape(-1, *CIFAR_SHAPE))
        labels += found
    return torch.cat(images), labels


def read_cifar_records(path: Path) -> Half:
    """Reads records of one byte for the label and 3 x 32 x 32 for the image."""
    content, size = path.read_bytes(), 1 + math.prod(CIFAR_SHAPE)
    if not content or len(content) % size:
        raise DataError(f"{path}: expected records of {size} bytes, got {len(content)} bytes; is the file complete?")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, size)
    return records[:, 1:], records[:, 0].tolist()


class ArraysOnly(pickle.Unpickler):
    """A pickle may name any function and have it called; this one may name what makes an array, and nothing else."""

    _reconstruct = numpy.empty(0).__reduce__()[0]
    _allowed = {
        "numpy.ndarray": numpy.ndarray,
        "numpy.dtype": numpy.dtype,
        "numpy.core.multiarray._reconstruct": _reconstruct,  # as the files that are handed out say
        "numpy._core.multiarray._reconstruct": _reconstruct,  # as NumPy 2 says
    }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what the pickle names, if it may."""
        if f"{module}.{name}" not in self._allowed:
            raise DataError(f"it asks for {module}.{name}, which has no place among images; nothing of it was called")
        return self._allowed[f"{module}.{name}"]


def read_cifar_pickle(path: Path) -> Half:
    """Reads a dictionary of "data", bytes of shape (N, 3072), and "labels"; its keys may be bytes, as of Python 2."""
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{path}: expected a pickled batch of CIFAR-10; {error}".replace("\n", " ")) from error
    fields = content if isinstance(content, dict) else {}
    data, labels = (fields.get(key.encode(), fields.get(key)) for key in ("data", "labels"))
    shape = (len(labels) if isinstance(labels, list) else 0, math.prod(CIFAR_SHAPE))
    if not (isinstance(data, numpy.ndarray) and data.dtype == numpy.uint8 and data.shape == shape and shape[0]):
        got = f"{data.dtype} of shape {data.shape}" if isinstance(data, numpy.ndarray) else type(data).__name__
        raise DataError(f"{path}: expected `labels` and as many rows of {shape[1]} bytes as `data`, got {got}")
    return torch.from_numpy(data.copy()), labels


def refuse_other_layouts(folder: Path) -> None:
    """Raises where sub-folders hold a format that is known, or are the parts of the data: none of them is a class."""
    for found in [path for pattern in ("*/*", "*/raw/*") for path in sorted(folder.glob(pattern))]:
        if IN_FOLDER.fullmatch(found.name):
            there = found.relative_to(folder)
            raise DataError(f"{folder}: found {there}; give the folder that has it, {found.parent}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    parts = [name for name in names if name.lower() in PARTS]
    if len(parts) > 1 or (parts and parts == names):  # a single one among others may be a class: a train
        found = f"found {' and '.join(parts)} where classes were expected"
        raise DataError(f"{folder}: {found}; name the parts of the data train and test")


def read_classes(folder: Path) -> Half:
    """Reads an image folder: the name of a sub-folder is the class of the images in it."""
    images, names = [], []
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        paths = sorted(path for path in child.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise DataError(f"{child}: no images ({' '.join(IMAGE_SUFFIXES)}) in this class folder; {FORMATS}")
        images += [read_image(path) for path in paths]
        names += [child.name] * len(paths)
    if not images:
        raise DataError(f"{folder}: no data found; {FORMATS}")
    return torch.stack(images), names


def read_image(path: Path) -> Tensor:
    """Returns bytes of shape (C, IMAGE_SIZE, IMAGE_SIZE)."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would cut these off at 255 without a word
                raise DataError(f"got more than 8 bits per channel (Pillow's mode {image.mode})")
            resized = image.convert(IMAGE_MODE).resize((IMAGE_SIZE, IMAGE_SIZE))
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise DataError(f"{path}: expected an image that Pillow can read; {error}") from error
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
    return pixels.reshape(IMAGE_SIZE, IMAGE_SIZE, -1).permute(2, 0, 1)
