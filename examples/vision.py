"""A small CNN with BatchNorm learns handwritten digits, under NonFiniteGuard, ZClip and GradientMonitor.

python examples/vision.py                  scikit-learn's 8x8 digits: nothing to download
python examples/vision.py --data-dir DIR   the IDX files of MNIST or Fashion-MNIST, or a folder of class sub-folders
python examples/vision.py --fast           a few seconds, to see that everything works
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import gzip
import math
import os
import shlex
import shutil
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_calib import GradientMonitor, NonFiniteGuard, ZClip

SEED = 1  # of the split, the weights and the order of the images
STEPS = 900  # optimizer steps, rounded to whole epochs, so that more data does not mean more steps
FAST_STEPS = 66  # at most, with --fast: three epochs of the digits; in the first 25 steps ZClip only watches
LOG_EVERY = 10  # steps between two points of a chart
BATCH_SIZE = 64
TEST_SHARE = 0.2  # of every class, where the data come without a test set
WIDTH = 32  # channels of the first convolution; each pooling doubles them
MAX_LR = 0.2  # at the top of the cycle: high for SGD, but BatchNorm bears it
WEIGHT_DECAY = 5e-4  # the usual value for SGD on small images
IMAGE_SIZE = 32  # image folders only: every image is resized to this square
IMAGE_MODE = "RGB"  # image folders only: Pillow's name; "L" for grey images saves two thirds of the input
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = (
    "expected the four IDX files of MNIST (train-images-idx3-ubyte and so on, plain or .gz) or an image folder "
    "(one sub-folder per class, directly or inside train/ and test/)"
)

Half = tuple[Tensor, list]  # images, unsigned bytes of shape (N, C, H, W), and their N classes


class DataError(Exception):
    """The data cannot be used; the message names the path and what was expected there."""


class Classifier(LightningModule):
    """Three stages of convolution, BatchNorm and ReLU, then a linear layer on the mean over positions."""

    def __init__(self, images: Tensor, classes: int):
        super().__init__()
        self.register_buffer("mean", images.float().mean(dim=(0, 2, 3), keepdim=True))
        self.register_buffer("std", images.float().std(dim=(0, 2, 3), keepdim=True).clamp(min=1.0))
        layers: list[nn.Module] = []
        for inputs, outputs in [(images.shape[1], WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, 4 * WIDTH)]:
            # No bias: BatchNorm subtracts the mean, so that a bias before it has no effect and no gradient.
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        self.net = nn.Sequential(*layers[:-1])  # no pooling after the last stage
        self.head = nn.Linear(4 * WIDTH, classes)
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net((images - self.mean) / self.std).mean(dim=(2, 3)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        scores = self(images)
        loss = nn.functional.cross_entropy(scores, labels)
        self.train_accuracy(scores, labels)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.test_accuracy(self(images), labels)
        self.log("test/accuracy", self.test_accuracy)

    def configure_optimizers(self) -> dict:
        # SGD, because its step is as long as the gradient: what a clip takes away is really gone.
        optimizer = torch.optim.SGD(self.parameters(), lr=MAX_LR, momentum=0.9, weight_decay=WEIGHT_DECAY)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def load(folder: Path | None) -> tuple[TensorDataset, TensorDataset, int]:
    """Returns the training set, the test set and the number of classes."""
    if folder is None:
        digits = load_digits()
        halves = split(torch.from_numpy(digits.images).byte().unsqueeze(1), digits.target.tolist())
    elif not folder.is_dir():
        raise DataError(f"{folder}: not a folder; {FORMATS}")
    elif any(folder.glob("*-ubyte")) or any(folder.glob("*-ubyte.gz")):
        halves = read_idx_half(folder, "train"), read_idx_half(folder, "t10k")
    elif (folder / "train").is_dir() and (folder / "test").is_dir():
        halves = read_classes(folder / "train"), read_classes(folder / "test")
    else:
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
    train, test = (TensorDataset(half[0], torch.tensor([index[name] for name in half[1]])) for half in halves)
    return train, test, len(classes)


def split(images: Tensor, names: list, folder: Path | None = None) -> tuple[Half, Half]:
    """Moves the same share of every class, and one image at least, to the test set."""
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SEED)).tolist()
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


def tensorboard_command(logs: str) -> str:
    """Returns a line for the shell that works from this folder, be the environment activated or not."""
    program = shutil.which("tensorboard", path=os.path.dirname(sys.executable)) or "tensorboard"
    inside = program.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(program) if inside else program, "--logdir", logs])


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, tests, and says what the gradients did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="train for a few seconds only")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="IDX files or class sub-folders of images")
    options = parser.parse_args(argv)
    try:
        train, test, classes = load(options.data_dir)
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

    seed_everything(SEED)
    # The images are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    # drop_last: a last batch of one or two images would make poor BatchNorm statistics.
    batches = DataLoader(train, BATCH_SIZE, shuffle=True, drop_last=len(train) >= BATCH_SIZE)
    monitor = GradientMonitor()
    trainer = Trainer(
        max_epochs=max(1, round(STEPS / len(batches))),
        max_steps=FAST_STEPS if options.fast else -1,
        log_every_n_steps=min(LOG_EVERY, len(batches)),
        logger=TensorBoardLogger("runs", name="vision", default_hp_metric=False),
        callbacks=[NonFiniteGuard("skip"), ZClip(), monitor],
        enable_checkpointing=False,
        devices=1,  # too little work to share
    )
    model = Classifier(train.tensors[0], classes)
    trainer.fit(model, batches)
    (result,) = trainer.test(model, DataLoader(test, 4 * BATCH_SIZE))
    print(f"test accuracy: {result['test/accuracy']:.2%} of {len(test)} images")
    print(monitor.summary())
    print(f"to see the charts: {tensorboard_command('runs')}")


if __name__ == "__main__":
    main()
