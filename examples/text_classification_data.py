"""The loaders of text_classification.py: JSON, TSV, CSV, one file per class, docstrings of Python's own packages.

Each returns texts with their classes and refuses, in one line that names the file and the line or byte, what is not
what it should be.
"""

import ast
import csv
import io
import json
import random
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SPLIT_SEED = 1  # of the split where the data come without a test set: the same texts are held out in every run
TEST_SHARE = 0.2  # of every class, where the data come without a test set
TEXT, LABEL = ("text", "tweet"), ("label", "category", "class")  # the columns of a CSV file, in any case
ASIDE = ("readme", "license", ".")  # how the names of files begin that are no class
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")  # of the data: no classes
PLAIN = ("", ".txt", ".text")  # suffixes of text
TABLES = (".jsonl", ".ndjson", ".parquet", ".arrow", ".pkl", ".xml", ".html", ".gz", ".zip")  # suffixes of other things
FORMATS = (
    'expected one .json with "train" and "test", .tsv or .csv files (train and test, or one; save other tables as '
    ".csv), or one .txt file per class with a text on every line"
)
# Of the standard library, in every Python from 3.10 on; between 364 docstrings each and 15 in Python 3.11:
PACKAGES = """
    asyncio email importlib logging xml multiprocessing mailbox unittest http tarfile urllib pydoc inspect ipaddress
    typing pathlib wsgiref imaplib collections threading doctest enum xmlrpc bdb statistics codecs pdb zipfile
    configparser smtplib ssl ftplib difflib calendar concurrent shutil subprocess ast contextlib ctypes fractions
    functools random traceback optparse platform os socket dis tempfile json queue uuid base64 argparse gzip
"""

Examples = list[tuple[str, str]]  # text and class


class DataError(Exception):
    """The data cannot be used; the message names the path, the line or byte, and what was expected there."""


def load(path: Path | None, encoding: str) -> tuple[Examples, Examples]:
    """Returns the examples to learn from and those to be tested on."""
    source = Path(sysconfig.get_path("stdlib")) if path is None else path
    if path is None:
        halves = split(docstrings(source), source)
    elif path.is_dir():
        halves = read_folder(path, encoding)
    elif path.is_file():
        halves = read_files([path], encoding)
    else:
        raise DataError(f"{path}: no such file or folder; {FORMATS}")
    classes, tested = ({label for _, label in half} for half in halves)
    if len(classes) < 2:
        raise DataError(f"{source}: expected two classes or more, found only {min(classes)}")
    if unseen := sorted(tested - classes):
        raise DataError(f"{source}: expected every class of the test set in the training set too; {unseen[0]} is not")
    return halves


def split(examples: Examples, path: Path) -> tuple[Examples, Examples]:
    """Moves the same share of every class, and one text at least, to the test set."""
    order = random.Random(SPLIT_SEED).sample(examples, len(examples))  # noqa: S311 - not for secrets
    train, test = [], []
    for label, count in sorted(Counter(label for _, label in examples).items()):
        if count == 1:
            raise DataError(f"{path}: expected two texts or more of every class, one for testing; {label} has 1")
        members, size = [one for one in order if one[1] == label], max(1, round(TEST_SHARE * count))
        test += members[:size]
        train += members[size:]
    return train, test


def docstrings(root: Path) -> Examples:
    """Returns the first paragraph of every docstring of PACKAGES, with its package; nothing is imported."""
    examples = []
    for name in PACKAGES.split():
        found = sorted((root / name).rglob("*.py")) or [root / f"{name}.py"]
        for path in found:
            if not path.is_file():
                raise DataError(f"{path}: no such file; expected Python's standard library as text, or --data-dir")
            if not {"test", "tests"} & set(path.relative_to(root).parts):
                nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, DOCUMENTED)]
                examples += [(text.split("\n\n")[0], name) for text in map(ast.get_docstring, nodes) if text]
    return examples


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_folder(folder: Path, encoding: str) -> tuple[Examples, Examples]:
    """Reads the files of the first format that the folder has any of."""
    files = sorted(one for one in folder.iterdir() if one.is_file() and not one.name.lower().startswith(ASIDE))
    for suffix in READERS:
        if found := [one for one in files if one.suffix.lower() == suffix]:
            return read_files(found, encoding)
    classes = name_classes(folder, files)
    examples: Examples = []
    for one, label in classes.items():
        texts = [line.strip() for line in decode(one, encoding).split("\n") if line.strip()]
        examples += [(text, label) for text in texts]
    return split(examples, folder)


def name_classes(folder: Path, files: list[Path]) -> dict[Path, str]:
    """Returns the class of each file: its name, or its suffix as in reviews.neg and reviews.pos."""
    suffixes = {one.suffix.lower() for one in files}
    by_suffix = len(files) > 1 == len({one.stem for one in files}) and not suffixes & {*PLAIN, *TABLES}
    unknown = [] if by_suffix else [one for one in files if one.suffix.lower() not in PLAIN]
    if unknown or not files:
        below = [*folder.glob("[!.]*/*"), *folder.glob("[!.]*/*/*")]  # as IMDb's reviews and 20 Newsgroups come
        texts = [one for one in below if one.suffix.lower() in PLAIN and one.is_file()]
        if inside := sorted({one.relative_to(folder).parts[0] for one in texts}):
            remedy = "write the texts of each class into one file, one text per line, such as neg.txt and pos.txt"
            raise DataError(f"{folder}: found texts in sub-folders ({', '.join(inside)}), which are not read; {remedy}")
        what = f"{unknown[0]}: not a format that is known" if unknown else f"{folder}: no data found"
        raise DataError(f"{what}; {FORMATS}")
    classes = {one: one.suffix.lstrip(".") if by_suffix else one.stem for one in files}
    for one, label in classes.items():
        if label.lower() in PARTS:
            remedy = (
                "name the parts train.tsv and test.tsv (class, tab, text), or train.csv and test.csv (with a header)"
            )
            raise DataError(f"{one}: {label!r} names a part of the data, not a class; {remedy}")
    return classes


def read_files(paths: list[Path], encoding: str) -> tuple[Examples, Examples]:
    """Reads a file that has both halves, or files named train and test, or one file to be split."""
    suffix, named = paths[0].suffix.lower(), {one.stem.lower(): one for one in paths}
    if suffix not in READERS:
        raise DataError(f"{paths[0]}: not a format that is known; {FORMATS}")
    if suffix == ".json" and len(paths) == 1:
        return read_json(paths[0], encoding)
    if suffix != ".json" and {"train", "test"} <= named.keys():
        train, test = (READERS[suffix](named[half], encoding) for half in ("train", "test"))
        return train, test
    if suffix == ".json" or len(paths) > 1:
        raise DataError(f"{paths[0].parent}: found {len(paths)} {suffix} files; {FORMATS}")
    return split(READERS[suffix](paths[0], encoding), paths[0])


def decode(path: Path, encoding: str) -> str:
    """Reads text whose lines end in one newline, and refuses what is none."""
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        where = f"line {line}: byte {error.start} is 0x{byte:02x}"
        raise DataError(f"{path}: {where}, {error.reason}; expected {encoding}; see --encoding") from error
    except LookupError as error:
        raise DataError(f"{path}: expected the name of an encoding, got {encoding}; see --encoding") from error
    if not text.strip():
        raise DataError(f"{path}: expected texts, got an empty file")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {line} has a byte 0x00; expected text in {encoding}; see --encoding")
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def read_json(path: Path, encoding: str) -> tuple[Examples, Examples]:
    """Reads {"train": [[text, class], ...], "test": ...}; other keys are left aside."""
    try:
        content = json.loads(decode(path, encoding))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{path}: {where}: expected JSON, {error.msg}; is the file complete?") from error
    halves: list[Examples] = []
    for half in ("train", "test"):
        rows = content.get(half) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            beside = sorted(one.name for one in path.parent.iterdir() if one.suffix.lower() in (".tsv", ".csv"))
            remedy = f"; move it out of the folder to have {' and '.join(beside)} read" if beside else ""
            raise DataError(f'{path}: expected a list of [text, class] under "{half}", got none{remedy}')
        for i, row in enumerate(rows):
            if not (isinstance(row, list) and len(row) == 2 and all(isinstance(x, str) and x.strip() for x in row)):
                raise DataError(f'{path}: "{half}", entry {i}: expected [text, class], got {json.dumps(row)[:60]}')
        halves.append([(text, label) for text, label in rows])
    return halves[0], halves[1]


def read_tsv(path: Path, encoding: str) -> Examples:
    """Reads a class, a tab and a text from every line."""
    examples = []
    for number, line in enumerate(decode(path, encoding).rstrip("\n").split("\n"), 1):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path}: line {number}: expected class, tab, text, got {line[:60]!r}")
        examples.append((cells[1], cells[0]))
    text, label = (cell.lower() for cell in examples[0])
    if (text in TEXT and label in LABEL) or (text in LABEL and label in TEXT):
        raise DataError(f"{path}: line 1: found a header; remove it, or save the file as .csv with commas")
    texts, classes = (len(set(column)) for column in zip(*examples, strict=True))
    if classes > texts:
        swapped = f"found {classes} classes of {texts} texts: the columns are swapped"
        raise DataError(f"{path}: {swapped}; expected class, tab, text on every line")
    return examples


def read_csv(path: Path, encoding: str) -> Examples:
    """Reads the columns of TEXT and LABEL, which the header names."""
    reader = csv.DictReader(io.StringIO(decode(path, encoding), newline=""), strict=True)
    examples = []
    try:
        header = list(reader.fieldnames or ())
        text, label = (find_column(path, header, names) for names in (TEXT, LABEL))
        for row in reader:
            if None in row or not all((value or "").strip() for value in (row[text], row[label])):
                wanted = f"{len(header)} cells, {text!r} and {label!r} not empty"
                raise DataError(f"{path}: line {reader.line_num}: expected {wanted}")
            examples.append((row[text], row[label]))
    except csv.Error as error:
        where = f"line {reader.reader.line_num}"
        raise DataError(f"{path}: {where}: expected CSV; {error}; is the file complete?") from error
    if not examples:
        raise DataError(f"{path}: expected rows below the header, got none")
    return examples


def find_column(path: Path, header: list[str], names: tuple[str, ...]) -> str:
    """Returns the first of the names where the header has it as it is written here, else the one that fits."""
    fitting = [names[0]] if names[0] in header else [name for name in header if name.strip().lower() in names]
    if len(fitting) != 1:
        remedy = "rename that column, or write a header above the first line if there is none, such as label,title,text"
        got = ", ".join(header)[:80]
        raise DataError(f"{path}: line 1: expected a header with one column {' or '.join(names)}, got {got}; {remedy}")
    return fitting[0]


READERS: dict[str, Callable] = {".json": read_json, ".tsv": read_tsv, ".csv": read_csv}
