"""Small CNNs learn handwritten digits: with BatchNorm under ZClip, or without any normalisation under AGC.

python examples/vision.py                       scikit-learn's 8x8 digits: nothing to download
python examples/vision.py --data-dir DIR        MNIST, Fashion-MNIST (IDX files), CIFAR-10, or an image folder
python examples/vision.py --model nfnet         at a learning rate at which it diverges without AGC
python examples/vision.py --imbalance 100       a long tail: the last class has a hundredth of the first one's images
python examples/vision.py --label-noise 0.4 --weight-decay 0.02
python examples/vision.py --fast                a few seconds, to see that everything works

The loaders are in vision_data.py: copy both files.
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from vision_data import DataError, load

from lightning_calib import AGC, GradientMonitor, NonFiniteGuard, PreciseBatchNorm, ZClip

SEED = 1  # of the weights, the order of the images, the tail and the noise
STEPS = 900  # optimizer steps, rounded to whole epochs, so that more data does not mean more steps
FAST_STEPS = 66  # at most, with --fast: three epochs of the digits; in the first 25 steps ZClip only watches
LOG_EVERY = 10  # steps between two points of a chart
BATCH_SIZE = 64
WIDTH = 32  # channels of the first stage; each further stage doubles them
# At the top of the cycle; high for SGD. BatchNorm bears it; residual blocks without it do not bear 0.35, but for AGC.
MAX_LR = {"cnn": 0.2, "nfnet": 0.5}
WEIGHT_DECAY = 5e-4  # the usual value for SGD on small images; wrong labels want more, or they are learnt by heart


def convolutional(channels: int) -> nn.Sequential:
    """Three stages of convolution, BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in [(channels, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, 4 * WIDTH)]:
        # No bias: BatchNorm subtracts the mean, so that a bias before it has no effect and no gradient.
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers[:-1])  # no pooling after the last stage


class Residual(nn.Module):
    """x + f(x), with f of two convolutions and nothing that normalises."""

    def __init__(self, channels: int):
        super().__init__()
        pair = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        self.body = nn.Sequential(nn.ReLU(), pair[0], nn.ReLU(), pair[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def norm_free(channels: int) -> nn.Sequential:
    """The same three stages, with two residual blocks in each."""
    layers: list[nn.Module] = []
    for inputs, outputs in [(channels, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, 4 * WIDTH)]:
        stem = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [stem, Residual(outputs), Residual(outputs), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers[:-1], nn.ReLU())


MODELS = {"cnn": convolutional, "nfnet": norm_free}


class Classifier(LightningModule):
    """A network, then a linear layer on the mean over positions."""

    def __init__(self, images: Tensor, classes: int, model: str = "cnn", lr: float = 0.2, weight_decay: float = 0.0):
        super().__init__()
        self.lr, self.weight_decay = lr, weight_decay
        self.register_buffer("mean", images.float().mean(dim=(0, 2, 3), keepdim=True))
        self.register_buffer("std", images.float().std(dim=(0, 2, 3), keepdim=True).clamp(min=1.0))
        self.net = MODELS[model](images.shape[1])
        self.head = nn.Linear(4 * WIDTH, classes)
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_balanced = MulticlassAccuracy(classes, average="macro")  # the mean of the classes' recalls

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
        scores = self(images)
        self.test_accuracy(scores, labels)
        self.test_balanced(scores, labels)
        self.log_dict({"test/accuracy": self.test_accuracy, "test/balanced_accuracy": self.test_balanced})

    def configure_optimizers(self) -> dict:
        # SGD, because its step is as long as the gradient: what a clip takes away is really gone.
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def long_tail(labels: Tensor, classes: int, ratio: float) -> Tensor:
    """Chooses images such that the classes' sizes fall exponentially, from the largest to a ratio-th of it."""
    largest = int(labels.bincount().max())
    sizes = [max(1, round(largest * ratio ** (-c / (classes - 1)))) for c in range(classes)]
    order = torch.randperm(len(labels))
    return torch.cat([order[labels[order] == c][:size] for c, size in enumerate(sizes)])


def with_noise(labels: Tensor, classes: int, share: float) -> Tensor:
    """Gives a share of the images another class, each of the others equally likely."""
    wrong = torch.randperm(len(labels))[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + torch.randint(1, classes, wrong.shape)) % classes
    return noisy


def nearest_mean(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> dict[str, float]:
    """The trivial baseline: each test image gets the class whose mean training image is nearest."""
    images, labels = train[0].flatten(1).float(), train[1]
    means = torch.stack([images[labels == c].mean(0) for c in range(classes)])
    found = torch.cdist(test[0].flatten(1).float(), means).argmin(1)
    kinds = {"baseline": "micro", "balanced_baseline": "macro"}
    return {key: float(MulticlassAccuracy(classes, average=kind)(found, test[1])) for key, kind in kinds.items()}


def callbacks(options: argparse.Namespace) -> list[Callback]:
    """What --calibrate and --precise-batch-norm ask for."""
    chosen: list[Callback] = []
    if options.calibrate == "full":
        chosen.append(NonFiniteGuard("skip"))
    if options.calibrate in ("clip", "full"):
        chosen.append(AGC() if options.model == "nfnet" else ZClip())  # AGC leaves the head alone by itself
    if options.calibrate != "none":
        chosen.append(GradientMonitor())
    if options.precise_batch_norm:
        chosen.append(PreciseBatchNorm())
    return chosen


def tensorboard_command(logs: str) -> str:
    """Returns a line for the shell that works from this folder, be the environment activated or not."""
    program = shutil.which("tensorboard", path=os.path.dirname(sys.executable)) or "tensorboard"
    inside = program.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(program) if inside else program, "--logdir", logs])


def number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], float]:
    """Returns what reads an option's number and refuses one out of range."""

    def read(text: str) -> float:
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got {text}")
        return kind(text)

    return read


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--fast", action="store_true", help="train for a few seconds only")
    add("--data-dir", type=Path, metavar="DIR", help="IDX files, CIFAR-10's batches or class sub-folders of images")
    add("--calibrate", choices=["none", "monitor", "clip", "full"], default="full", help="how many of the callbacks")
    add("--model", choices=MODELS, default="cnn", help="with BatchNorm, or residual without any normalisation")
    add("--precise-batch-norm", action="store_true", help="add PreciseBatchNorm to what --calibrate chooses")
    add(
        "--imbalance",
        type=number(float, 1),
        default=1.0,
        metavar="RATIO",
        help="first class : last class",
    )
    add("--label-noise", type=number(float, 0, 1), default=0.0, metavar="SHARE", help="share of wrong training labels")
    add("--weight-decay", type=float, default=WEIGHT_DECAY, metavar="X")
    add("--batch-size", type=number(int, 1), default=BATCH_SIZE, metavar="N")
    add("--lr", type=float, help=f"at the top of the cycle; {MAX_LR}")
    add("--steps", type=number(int, 1), default=STEPS, metavar="N", help="optimizer steps, rounded to whole epochs")
    add("--seed", type=int, default=SEED)
    add("--log-dir", default="lightning_logs", metavar="DIR")
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, tests, and says what the gradients did."""
    parser, options = parse(argv)
    try:
        train, test, classes = load(options.data_dir)
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

    seed_everything(options.seed)
    if options.imbalance > 1:
        kept = long_tail(train[1], classes, options.imbalance)
        train = train[0][kept], train[1][kept]
    if options.label_noise > 0:
        train = train[0], with_noise(train[1], classes, options.label_noise)
    # The images are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    # drop_last: a last batch of one or two images would make poor BatchNorm statistics.
    size = options.batch_size
    batches = DataLoader(TensorDataset(*train), size, shuffle=True, drop_last=len(train[0]) >= size)
    trainer = Trainer(
        max_epochs=max(1, round(options.steps / len(batches))),
        max_steps=FAST_STEPS if options.fast else -1,
        log_every_n_steps=min(LOG_EVERY, len(batches)),
        logger=TensorBoardLogger(options.log_dir, name="vision", default_hp_metric=False),
        callbacks=callbacks(options),
        enable_checkpointing=False,
        devices=1,  # too little work to share
    )
    model = Classifier(train[0], classes, options.model, options.lr or MAX_LR[options.model], options.weight_decay)
    trainer.fit(model, batches)
    (result,) = trainer.test(model, DataLoader(TensorDataset(*test), 256))
    result = {key.removeprefix("test/"): value for key, value in result.items()}
    result |= nearest_mean(train, test, classes)
    pairs = (("accuracy", "baseline"), ("balanced_accuracy", "balanced_baseline"))
    for name, baseline in pairs:
        print(f"test/{name} {result[name]:.4f} (trivial baseline: nearest class mean {result[baseline]:.4f})")
    finite = all(bool(weights.isfinite().all()) for weights in model.parameters())  # a longer run helps no other
    if options.fast and finite and any(result[name] < result[baseline] for name, baseline in pairs):
        print("--fast is too short to reach the trivial baseline; it is there to see that everything works.")
    for monitor in (one for one in trainer.callbacks if isinstance(one, GradientMonitor)):
        print(monitor.summary())
    print(f"to see the charts: {tensorboard_command(options.log_dir)}")
    return result


if __name__ == "__main__":
    main()
