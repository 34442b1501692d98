"""Which of many unequal classes does a text belong to? Hashed words, SGD, and AGC: each row clipped by its own weights.

python examples/text_classification.py                   docstrings of Python's own packages: nothing to download
python examples/text_classification.py --data-dir PATH   a file, or the folder that has it:
    .json   {"train": [[text, class], ...], "test": ...}, as CLINC150 comes
    .tsv    class, tab, text; train.tsv and test.tsv, or one file, of which a fifth is kept for testing
    .csv    with a header that names a column text (or tweet) and a column label (or category, class); files as for .tsv
    .txt    one file per class, one text per line, also reviews.neg and reviews.pos; --encoding latin-1 for older ones
python examples/text_classification.py --fast            a few seconds, to see that everything works

Copy text_classification_data.py, the loaders, along with this file.
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import os
import re
import shlex
import shutil
import sys
import warnings
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from text_classification_data import DataError, load
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassRecall

from lightning_calib import AGC, GradientMonitor, NonFiniteGuard

SEED = 0  # of the weights, the order of the texts and the wrong labels
STEPS = 1300  # optimizer steps, rounded to whole epochs, so that more data does not mean more steps
FAST_STEPS = 250
LOG_EVERY = 10  # steps between two points of a chart
BATCH_SIZE = 64
BUCKETS = 2**15  # rows of the table; words and pairs share a row where their hashes meet
WIDTH = 64  # features of a word
HIDDEN = 128
SPREAD = 0.3  # standard deviation of the embeddings at the start
MAX_LR = 10.0  # falling linearly to 0: high, because the mean over a text leaves each row a small gradient
RARE_SHARE = 0.25  # of the classes: those with the fewest texts, whose recall is told apart
SMOOTHINGS = (1.0, 0.3, 0.1, 0.03, 0.01)  # of the naive Bayes; the best on a fifth of the training set is taken

Features = list[tuple[list[int], int]]  # rows of the table, and class


class Classifier(LightningModule):
    """The mean of the embeddings of all features of a text, one hidden layer, a score per class."""

    def __init__(self, classes: int, rare: Tensor, lr: float):
        super().__init__()
        self.lr, self.rare = lr, rare
        # Sparse: a batch touches some hundred rows of the table, and only those are read and written.
        self.embedding = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean", sparse=True)
        nn.init.normal_(self.embedding.weight, std=SPREAD)
        self.hidden, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, classes)
        self.metrics = metrics(classes)

    def forward(self, features: Tensor, starts: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(features, starts)).relu())

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        features, starts, labels = batch
        loss = nn.functional.cross_entropy(self(features, starts), labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        features, starts, labels = batch
        self.metrics.update(self(features, starts), labels)

    def on_test_epoch_end(self) -> None:
        self.recall = self.metrics["recall"].compute()
        self.log("test/macro_f1", self.metrics["macro_f1"].compute())
        self.log("test/rare_recall", self.recall[self.rare].mean())

    def configure_optimizers(self) -> dict:
        # SGD, because its step is as long as the gradient: with Adagrad no clip made a difference.
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def metrics(classes: int) -> MetricCollection:
    """Every class counts alike, however few texts it has."""
    return MetricCollection(
        {"macro_f1": MulticlassF1Score(classes, average="macro"), "recall": MulticlassRecall(classes, average=None)},
        compute_groups=False,
    )


def hashed(text: str) -> list[int]:
    """Rows of the table for the words of a text and for each pair of neighbours."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    pairs = [f"{left} {right}" for left, right in pairwise(words)]
    # Not hash(): Python salts it anew in every process.
    return [zlib.crc32(feature.encode()) % BUCKETS for feature in words + pairs]


def collate(batch: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Puts the features of all texts one after the other, and says where each text starts."""
    lengths = torch.tensor([0, *(len(features) for features, _ in batch)])
    features = torch.tensor([one for features, _ in batch for one in features])
    return features, lengths.cumsum(0)[:-1], torch.tensor([label for _, label in batch])


def with_noise(train: Features, classes: int, share: float) -> Features:
    """Gives a share of the texts another class, each of the others equally likely."""
    wrong = set(torch.randperm(len(train))[: round(share * len(train))].tolist())
    shifts = torch.randint(1, classes, (len(train),)).tolist()
    return [(one, (label + (shifts[i] if i in wrong else 0)) % classes) for i, (one, label) in enumerate(train)]


def naive_bayes(train: Features, test: Features, classes: int, smoothing: float) -> Tensor:
    """Returns the classes that a multinomial naive Bayes finds for the test set."""
    counts = torch.full((classes, BUCKETS), smoothing)
    for features, label in train:
        counts[label].index_add_(0, torch.tensor(features), torch.ones(len(features)))
    scores = counts.log() - counts.sum(1, keepdim=True).log()
    prior = torch.tensor([label for _, label in train]).bincount(minlength=classes).log()
    return torch.stack([prior + scores[:, features].sum(1) for features, _ in test]).argmax(1)


def baselines(train: Features, test: Features, classes: int, rare: Tensor) -> dict[str, float]:
    """Macro-F1 and recall of the rare classes, of the most frequent class and of a naive Bayes."""

    def score(found: Tensor, wanted: Features) -> tuple[float, float]:
        result = metrics(classes)(found, torch.tensor([label for _, label in wanted]))
        return float(result["macro_f1"]), float(result["recall"][rare].mean())

    most = torch.tensor([label for _, label in train]).bincount().argmax().expand(len(test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED)).tolist()
    tried, rest = [train[i] for i in order[::5]], [train[i] for k, i in enumerate(order) if k % 5]
    smoothing = max(SMOOTHINGS, key=lambda one: score(naive_bayes(rest, tried, classes, one), tried))
    majority, bayes = score(most, test), score(naive_bayes(train, test, classes, smoothing), test)
    names = ("majority_macro_f1", "majority_rare_recall", "bayes_macro_f1", "bayes_rare_recall")
    return dict(zip(names, (*majority, *bayes), strict=True))


def callbacks(calibrate: str) -> list[Callback]:
    """What --calibrate asks for."""
    # exclude=(): head and biases, too. Left out, as is the default, AGC gained nothing on CLINC150 at this rate.
    guard, clip, monitor = NonFiniteGuard("skip"), AGC(exclude=()), GradientMonitor()
    chosen = {"none": [], "monitor": [monitor], "clip": [clip, monitor], "full": [guard, clip, monitor]}
    return chosen[calibrate]


def tensorboard_command(logs: str) -> str:
    """Returns a line for the shell that works from this folder, be the environment activated or not."""
    program = shutil.which("tensorboard", path=os.path.dirname(sys.executable)) or "tensorboard"
    inside = program.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(program) if inside else program, "--logdir", logs])


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="train for a few seconds only")
    parser.add_argument("--data-dir", type=Path, metavar="PATH", help=".json, .tsv, .csv or one file per class")
    parser.add_argument("--encoding", default="utf-8", help="of the files (default utf-8)")
    parser.add_argument(
        "--calibrate", choices=["none", "monitor", "clip", "full"], default="full", help="which callbacks"
    )
    parser.add_argument("--label-noise", type=float, default=0.0, metavar="SHARE", help="of wrong training labels")
    parser.add_argument("--lr", type=float, default=MAX_LR, help="learning rate at the start")
    parser.add_argument("--steps", type=int, metavar="N", help=f"optimizer steps, rounded to epochs (default {STEPS})")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--log-dir", default="lightning_logs", metavar="DIR")
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, tests, and says what the gradients did."""
    parser, options = parse(argv)
    try:
        halves = load(options.data_dir, options.encoding)
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

    seed_everything(options.seed)
    names = sorted({label for _, label in halves[0]})
    index, classes = {name: i for i, name in enumerate(names)}, len(names)
    train, test = ([(hashed(text), index[label]) for text, label in half] for half in halves)
    counts = torch.tensor([label for _, label in train]).bincount()
    rare = counts.argsort(stable=True)[: max(1, round(RARE_SHARE * classes))]
    train = with_noise(train, classes, options.label_noise)
    # The texts are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    batches = DataLoader(train, BATCH_SIZE, shuffle=True, collate_fn=collate)
    steps = options.steps or (FAST_STEPS if options.fast else STEPS)
    trainer = Trainer(
        max_epochs=max(1, round(steps / len(batches))),
        log_every_n_steps=min(LOG_EVERY, len(batches)),
        logger=TensorBoardLogger(options.log_dir, name="text_classification", default_hp_metric=False),
        callbacks=callbacks(options.calibrate),
        enable_checkpointing=False,
        devices=1,  # too little work to share
    )
    model = Classifier(classes, rare, options.lr)
    trainer.fit(model, batches)
    (result,) = trainer.test(model, DataLoader(test, 256, collate_fn=collate), verbose=False)
    result = {key.removeprefix("test/"): value for key, value in result.items()} | baselines(train, test, classes, rare)
    print(
        f"{len(train)} texts, {classes} classes of {int(counts.min())} to {int(counts.max())}; worst recalls:", end=" "
    )
    print(", ".join(f"{names[i]} {model.recall[i]:.2f} of {counts[i]}" for i in model.recall.argsort()[:5].tolist()))
    for name in ("macro_f1", "rare_recall"):
        trivial = f"naive Bayes {result[f'bayes_{name}']:.4f}; majority {result[f'majority_{name}']:.4f}"
        print(f"test/{name} {result[name]:.4f} (trivial baseline: {trivial})")
    finite = all(bool(weights.isfinite().all()) for weights in model.parameters())  # a longer run helps no other
    if options.fast and finite and any(result[name] < result[f"bayes_{name}"] for name in ("macro_f1", "rare_recall")):
        print("--fast is too short to reach the trivial baseline; it is there to see that everything works.")
    for monitor in (one for one in trainer.callbacks if isinstance(one, GradientMonitor)):
        print(monitor.summary())
    print(f"to see the charts: {tensorboard_command(options.log_dir)}")
    return result


if __name__ == "__main__":
    main()
