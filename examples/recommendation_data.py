"""Ratings for recommendation.py (MovieLens, MovieTweetings, or planted tastes), what is popular in them, and ranks."""

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

TEST_SHARE = 0.1  # of the ratings: the latest ones
DAMPING = 10.0  # ratings that a bias starts with: an item with one rating is not better than all others
RECENT_SHARE = 0.1  # of the training ratings, the latest: what is popular now. All of them are a worse baseline
TOP = 10  # items to recommend
USERS, ITEMS, TASTES = 2500, 800, 4  # of the planted data; tastes are what a user and an item may have in common
MOST = 120  # planted ratings of a user; half of the users have one
COLUMNS = {"user": ("user",), "item": ("item", "movie", "product"), "rating": ("rating",), "time": ("time",)}
SEPARATORS = {".dat": "::", ".data": "\t"}  # of the files without a header
FORMATS = (
    "expected ratings.dat (lines of user::item::rating::time), ratings.csv (with a header) or u.data (as ratings.dat, "
    "with tabs), or one such file"
)

Row = tuple[str, str, float, float]  # user, item, rating, time


class DataError(Exception):
    """The data cannot be used; the message names the path, the line or byte, and what was expected there."""


class Ratings(NamedTuple):
    """N ratings in the order of time, each part of shape (N,); -1 for a user or an item that training does not have."""

    users: Tensor
    items: Tensor
    values: Tensor


def load(source: Path | None) -> tuple[Ratings, Ratings, int, int]:
    """Returns the training set, the test set, and the numbers of users and items in the training set."""
    rows = list(plant()) if source is None else find(source)
    rows.sort(key=lambda row: row[3])
    start = len(rows) - round(TEST_SHARE * len(rows))
    users, items = ({name: i for i, name in enumerate(sorted({row[k] for row in rows[:start]}))} for k in (0, 1))
    if not any(row[0] in users for row in rows[start:]) or len(items) < 2:
        raise DataError(
            f"{source}: expected users who rate both early and late, and two items or more; found none such"
        )
    train, test = (
        Ratings(
            torch.tensor([users.get(row[0], -1) for row in part]),
            torch.tensor([items.get(row[1], -1) for row in part]),
            torch.tensor([row[2] for row in part]),
        )
        for part in (rows[:start], rows[start:])
    )
    return train, test, len(users), len(items)


def find(source: Path) -> list[Row]:
    """Reads a file, or the first file of a known name in a folder."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; {FORMATS}")
    names = ("ratings.dat", "ratings.csv", "u.data")
    paths = [source] if source.is_file() else [source / name for name in names if (source / name).is_file()]
    if not paths:
        raise DataError(f"{source}: no data found; {FORMATS}")
    suffix = paths[0].suffix.lower()
    if suffix not in (".csv", *SEPARATORS):
        raise DataError(f"{source}: not a format that is known; {FORMATS}")
    rows = list(read_csv(paths[0]) if suffix == ".csv" else read_plain(paths[0], SEPARATORS[suffix]))
    if not rows:
        raise DataError(f"{paths[0]}: line 1: no ratings; {FORMATS}")
    return rows


def lines_of(path: Path) -> list[str]:
    """Returns the lines, without the line feed."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: expected UTF-8, got 0x{content[error.start]:02x}") from error
    if text and not text.endswith("\n"):
        where = f"byte {len(content)}, line {text.count(chr(10)) + 1}"
        remedy = "is the file complete? if so, end its last line with one"
        raise DataError(f"{path}: {where}: expected a line break at the end; {remedy}")
    return text.split("\n")[:-1]


def read_plain(path: Path, separator: str) -> Iterator[Row]:
    """Reads user, item, rating, time."""
    wanted = "user, item, rating and time between tabs" if separator == "\t" else "user::item::rating::time"
    for number, line in enumerate(lines_of(path), 1):
        yield parse(path, number, line.split(separator), wanted)


def read_csv(path: Path) -> Iterator[Row]:
    """Reads comma-separated values; the header tells which column is what."""
    reader = csv.reader(lines_of(path))
    header = next(reader, [])
    places = []
    for column, words in COLUMNS.items():
        fitting = [i for i, name in enumerate(header) if any(word in name.lower() for word in words)]
        if len(fitting) != 1:
            got = ",".join(header) or "nothing"
            remedy = (
                "name the columns user, item, rating and time (a file without a header needs one above its first line; "
                "time may be any number that tells the order)"
            )
            raise DataError(f"{path}: line 1: expected a header with one {column} column, got {got}; {remedy}")
        places += fitting
    for fields in reader:
        right = len(fields) == len(header)
        yield parse(path, reader.line_num, [fields[i] for i in places] if right else fields, ",".join(header))


def parse(path: Path, number: int, fields: list[str], wanted: str) -> Row:
    """Checks one rating."""
    try:
        user, item, rating, time = fields
        row = user.strip(), item.strip(), float(rating), float(time)
        if row[0] and row[1] and math.isfinite(row[2]) and math.isfinite(row[3]):
            return row
    except ValueError:
        pass
    got, dated = " | ".join(fields)[:60], any(re.match(r"\s*\d{4}-\d\d-\d\d", field) for field in fields)
    remedy = "; write a date as seconds since 1970, for example datetime.fromisoformat(date).timestamp()" * dated
    raise DataError(f"{path}: line {number}: expected {wanted}, rating and time finite numbers; got {got!r}{remedy}")


def plant() -> Iterator[Row]:
    """Yields ratings by users who prefer what is popular and what suits their taste, and rate it accordingly."""
    random = torch.Generator().manual_seed(0)
    user_taste, item_taste = (torch.randn(n, TASTES, generator=random) for n in (USERS, ITEMS))
    fit = user_taste @ item_taste.T / math.sqrt(TASTES)
    popular = 1 / (torch.randperm(ITEMS, generator=random) + 5.0)  # Zipf's law, without a run-away first place
    chances = popular * (1.5 * fit).exp()
    bias = torch.randn(USERS, 1, generator=random) + 0.7 * torch.randn(ITEMS, generator=random)
    values = (7 + bias + fit + torch.randn(USERS, ITEMS, generator=random)).round().clamp(0, 10)
    counts = (0.7 / torch.rand(USERS, generator=random)).square().clamp(1, MOST).long()
    for user, count in enumerate(counts.tolist()):
        for item in torch.multinomial(chances[user], count, generator=random).tolist():
            yield str(user), str(item), float(values[user, item]), float(torch.rand((), generator=random))


class Popularity:
    """What needs no model: how often each item was rated lately, and the mean rating of items and users."""

    def __init__(self, train: Ratings, users: int, items: int):
        recent = train.items[-max(1, round(RECENT_SHARE * len(train.items))) :]
        self.activity, self.counts = (
            torch.bincount(keys, minlength=size) for keys, size in ((train.users, users), (train.items, items))
        )
        self.recent = torch.bincount(recent, minlength=items) + 0.1 * self.counts / self.counts.sum()
        self.mean = float(train.values.mean())
        self.item_bias = damped_mean(train.items, train.values - self.mean, items)
        self.user_bias = damped_mean(train.users, train.values - self.mean - self.item_bias[train.items], users)

    def rate(self, users: Tensor, items: Tensor) -> Tensor:
        """Predicts ratings."""
        return self.mean + self.user_bias[users] + self.item_bias[items]


def damped_mean(keys: Tensor, values: Tensor, size: int) -> Tensor:
    """Returns the mean of the values of each key, drawn to 0 where there are few; shape (size,)."""
    sums = torch.zeros(size).index_add(0, keys, values)
    return sums / (torch.bincount(keys, minlength=size) + DAMPING)


def rated(users: Tensor, ratings: Ratings, items: int) -> Tensor:
    """Marks which items the users, in ascending order, have rated; shape (U, items)."""
    rows = torch.searchsorted(users, ratings.users).clamp(max=len(users) - 1)
    theirs = (users[rows] == ratings.users) & (ratings.items >= 0)
    marks = torch.zeros(len(users), items, dtype=torch.bool)
    marks[rows[theirs], ratings.items[theirs]] = True
    return marks


def rank(scores: Tensor, seen: Tensor, wanted: Tensor, sizes: Tensor) -> Tensor:
    """Returns Recall@TOP and NDCG@TOP, shape (2, U), of recommending by score what was not seen; sizes: (U,)."""
    best = scores.masked_fill(seen, -torch.inf).topk(min(TOP, scores.shape[1])).indices
    hits = wanted.gather(1, best).float()
    gains = 1 / torch.arange(2.0, TOP + 2).log2()
    ideal = gains.cumsum(0)[sizes.clamp(max=TOP) - 1]
    return torch.stack([hits.sum(1) / sizes, hits @ gains[: hits.shape[1]] / ideal])


def describe_cold(train: Ratings, test: Ratings) -> str:
    """Says for how many users the vectors can know nothing or little."""
    activity = torch.bincount(train.users)
    cold, new = test.users < 0, (test.users >= 0) & (test.items < 0)
    once, unknown, missing = (int(found.sum()) for found in (activity == 1, cold, new))
    return (
        f"{once} of {len(activity)} users have one training rating. Of {len(test.users)} test ratings {unknown} are by "
        f"users with none\nand left out (one can offer what is popular); {missing} are of items with none: misses."
    )
