"""Small files of ratings for the tests of the recommendation example."""


def lines(count=40, users=5, items=8, time=1000):
    return [f"u{i % users}::i{i * 3 % items}::{i % 10 + 1}::{time + i}" for i in range(count)]


def write_dat(root, rows, end="\n"):
    (root / "ratings.dat").write_text("\n".join(rows) + end, encoding="utf-8")
    return root / "ratings.dat"


def write_tabs(root, rows):
    """As MovieLens 100K comes: tabs, no header."""
    (root / "u.data").write_text("".join(line.replace("::", "\t") + "\n" for line in rows), encoding="utf-8")
    return root / "u.data"


def write_csv(root, rows, header="userId,movieId,rating,timestamp", end="\n"):
    (root / "ratings.csv").write_text("\n".join([header, *rows]) + end, encoding="utf-8")
    return root / "ratings.csv"
