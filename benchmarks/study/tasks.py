"""The tasks: data, network, loss and measures by name, with what an experiment's options change of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.study import nets
from benchmarks.study.data import Data, Part, digits, documents, prose, ratings, speech

Measures = dict[str, float]
SOME = 512  # examples of the training set on which the training measures are taken


class Task(NamedTuple):
    """What is learnt, from what, and what is measured."""

    data: Data
    net: Callable[[], nn.Module]
    measure: Callable[[nn.Module, Part], Measures]
    weights: Tensor  # of the classes, one over their number

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, weighted: bool = False) -> Tensor:
        if self.data.seen is not None:  # the batch's other items are the wrong answers; the same item is none
            same = (y[:, None] == y).fill_diagonal_(False)
            scores = net(x).masked_fill(same, -math.inf)
            return nn.functional.cross_entropy(scores, torch.arange(len(x)))
        return nn.functional.cross_entropy(net(x), y, weight=self.weights if weighted else None)


def classified(classes: int, rare: Tensor) -> Callable[[nn.Module, Part], Measures]:
    """Loss, accuracy, macro-F1 over the classes that occur, and mean recall of the rare classes."""

    def measure(net: nn.Module, part: Part) -> Measures:
        scores = net(part[0])
        found, wanted = scores.argmax(1), part[1]
        table = torch.zeros(classes, classes).index_put_((wanted, found), torch.ones(len(wanted)), accumulate=True)
        right, there = table.diagonal(), table.sum(1)
        f1 = 2 * right / (there + table.sum(0)).clamp(min=1)
        known = rare[there[rare] > 0]
        return {
            "loss": float(nn.functional.cross_entropy(scores, wanted)),
            "accuracy": float(right.sum() / len(wanted)),
            "macro_f1": float(f1[there > 0].mean()),
            "rare_recall": float((right / there.clamp(min=1))[known].mean()),
        }

    return measure


def predicted(net: nn.Module, part: Part) -> Measures:
    """Loss in nats and bits of a symbol."""
    loss = float(nn.functional.cross_entropy(net(part[0]), part[1]))
    return {"loss": loss, "bits": loss / math.log(2)}


def recommended(data: Data) -> Callable[[nn.Module, Part], Measures]:
    """Recall at 10 over the users of a part, of items that they had not rated in training."""
    popular = (data.train[1].bincount(minlength=data.classes) + 1.0).log()

    def measure(net: nn.Module, part: Part) -> Measures:
        users, place = part[0][:, 0].unique(return_inverse=True)
        seen = data.seen[users] if data.seen is not None else torch.zeros(0)
        wanted = torch.zeros(len(users), data.classes, dtype=torch.bool)
        wanted[place, part[1]] = True
        scores = net.users(users) @ net.items.weight.T  # type: ignore[operator]
        best = (scores + popular).masked_fill(seen & ~wanted, -math.inf).topk(10).indices
        hits = wanted.gather(1, best).sum(1)
        everything = scores.log_softmax(1) if bool(scores.isfinite().all()) else torch.full_like(scores, math.nan)
        return {
            "loss": float(-everything[place, part[1]].mean()),
            "recall": float((hits / wanted.sum(1)).mean()) if bool(scores.isfinite().all()) else 0.0,
        }

    return measure


def classification(data: Data, net: Callable[[], nn.Module]) -> Task:
    counts = data.train[1].bincount(minlength=data.classes)
    rare = counts.argsort(stable=True)[: max(1, round(data.classes / 4))]
    weights = len(data.train[1]) / (data.classes * counts.clamp(min=1).float())
    return Task(data, net, classified(data.classes, rare), weights)


def long_tail(data: Data, ratio: float) -> Data:
    """The number of training examples of each class falls geometrically, to 1 / ratio of the first."""
    x, y = data.train
    most = int(y.bincount().min())
    kept = [
        (y == one).nonzero()[:, 0][: max(1, round(most * ratio ** (-one / (data.classes - 1))))]
        for one in range(data.classes)
    ]
    chosen = torch.cat(kept)
    return data._replace(train=(x[chosen], y[chosen]))


def wrong_labels(data: Data, share: float) -> Data:
    """A share of the training labels becomes another class, each equally likely."""
    x, y = data.train
    random = torch.Generator().manual_seed(2027)
    wrong = torch.rand(len(y), generator=random) < share
    shift = torch.randint(1, data.classes, (len(y),), generator=random)
    return data._replace(train=(x, torch.where(wrong, (y + shift) % data.classes, y)))


def task_of(name: str, options: dict[str, float], folder: Path | None) -> Task:
    """Reads the data and applies what is asked; the folder is None where the data are made or ship."""
    if name == "language":
        text = prose(folder)
        return Task(text, lambda: nets.GPT(128, text.train[0].shape[1]), predicted, torch.ones(128))
    if name == "recommendation":
        rated = ratings(folder)
        users = len(rated.seen) if rated.seen is not None else 0
        return Task(rated, lambda: nets.Towers(users, rated.classes), recommended(rated), torch.ones(1))
    if name == "text":
        data = documents(folder)
    elif name == "speech":
        data = speech(folder)
    else:
        data = digits()
    if "few" in options:
        data = data._replace(train=tuple(one[: int(options["few"])] for one in data.train))  # type: ignore[arg-type]
    if "imbalance" in options:
        data = long_tail(data, options["imbalance"])
    if "noise" in options:
        data = wrong_labels(data, options["noise"])
    made: dict[str, Callable[[], nn.Module]] = {
        "text": lambda: nets.Bag(4096, data.classes),
        "speech": lambda: nets.Listener(20),
        "images": lambda: nets.cnn(norm=True),
        "images-norm-free": lambda: nets.cnn(norm=False),
        "perceptron": nets.perceptron,
    }
    return classification(data, made[name])
