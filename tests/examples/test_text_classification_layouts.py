"""Files of texts whose names or columns mean something else than the example reads are refused, with what to do."""

import pytest
from helpers.run_example import example as example_module
from helpers.run_example import refused
from helpers.write_text import ROWS, write_classes, write_csv, write_tsv

SPLITS = ["train", "training", "test", "testing", "val", "valid", "validation", "dev"]


@pytest.fixture(scope="module")
def example():
    return example_module("text_classification")


def lines(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a text\nanother one\n")
    return paths[0]


def json_lines(root):
    for half in ("train", "test"):
        (root / f"{half}.jsonl").write_text("".join(f'{{"text": "{text}", "label": 0}}\n' for text, _ in ROWS))
    return root / "test.jsonl", "not a format that is known; expected one .json"


def json_lines_and_parquet_of_one_name(root):
    return lines(root / "data.jsonl", root / "data.parquet"), "not a format that is known; expected one .json"


def fast_text(root):
    for half in ("train", "test"):
        (root / f"{half}.txt").write_text("".join(f"__label__{label} {text}\n" for text, label in ROWS))
    wanted = "'test' names a part of the data, not a class; name the parts train.tsv and test.tsv (class, tab, text)"
    return root / "test.txt", wanted


def fast_text_with_the_part_as_suffix(root):
    path = lines(root / "cooking.train", root / "cooking.valid")
    return path, "'train' names a part of the data, not a class; name the parts train.tsv and test.tsv"


def words_beside_the_classes(root):
    lines(root / "ham.txt", root / "spam.txt")
    return lines(root / "stop.words"), "not a format that is known; expected one .json"


def text_and_words_of_one_name(root):
    lines(root / "corpus.txt")
    return lines(root / "corpus.words"), "not a format that is known; expected one .json"


def words_alone(root):
    return lines(root / "corpus.words"), "not a format that is known; expected one .json"


def imdb(root):
    lines(root / "README", root / "imdb.vocab", root / "imdbEr.txt")
    lines(*(root / half / kind / "0_9.txt" for half in ("train", "test") for kind in ("neg", "pos")))
    remedy = "write the texts of each class into one file, one text per line, such as neg.txt and pos.txt"
    return root, f"found texts in sub-folders (test, train), which are not read; {remedy}"


def half_of_imdb(root):
    lines(root / "labeledBow.feat", root / "urls_neg.txt", root / "urls_pos.txt", root / "neg" / "0_9.txt")
    return root, "found texts in sub-folders (neg), which are not read; write the texts of each class"


def only_folders(root):
    lines(root / "alt.atheism" / "49960", root / "sci.space" / "59848")  # as 20 Newsgroups come: no suffix
    return root, "found texts in sub-folders (alt.atheism, sci.space), which are not read; write"


def sentence_tab_label(root):
    path = write_tsv(root / "data.tsv", [(label, text) for text, label in ROWS])
    return path, "found 15 classes of 2 texts: the columns are swapped; expected class, tab, text on every line"


def swapped_training_file(root):
    write_tsv(root / "test.tsv", [(label, text) for text, label in ROWS[:1]])
    path = write_tsv(root / "train.tsv", [(label, text) for text, label in ROWS])
    return path, "found 15 classes of 2 texts: the columns are swapped; "


def tsv_with_a_header(root):
    write_tsv(root / "test.tsv", [("text", "label"), *ROWS])
    path = write_tsv(root / "train.tsv", [("Text", "Label"), *ROWS])
    return path, "line 1: found a header; remove it, or save the file as .csv with commas"


def categories_beside_csv(root):
    (root / "categories.json").write_text('["cat", "dog"]')
    write_csv(root / "train.csv", header="id,category,text")
    write_csv(root / "test.csv", header="id,category,text")
    wanted = 'expected a list of [text, class] under "train", got none'
    return root / "categories.json", f"{wanted}; move it out of the folder to have test.csv and train.csv read"


def ag_news(root):
    (root / "classes.txt").write_text("World\nSports\n")
    row = '"3","Wall St. Bears Claw Back Into the Black (Reuters)","Reuters - Short-sellers are seeing green again."\n'
    for half in ("train", "test"):
        (root / f"{half}.csv").write_text(row)
    remedy = "rename that column, or write a header above the first line if there is none, such as label,title,text"
    got = "3, Wall St. Bears Claw Back Into the Black (Reuters), Reuters - Short-sellers ar"
    return root / "train.csv", f"line 1: expected a header with one column text or tweet, got {got}; {remedy}"


def two_columns_of_texts(root):
    path = write_csv(root / "data.csv", header="Text,label,tweet")
    return path, "line 1: expected a header with one column text or tweet, got Text, label, tweet; rename"


def no_column_of_classes(root):
    path = write_csv(root / "data.csv", header="id,sentiment,text")
    return path, "line 1: expected a header with one column label or category or class, got id, sentiment, text; rename"


REFUSED = [
    json_lines, json_lines_and_parquet_of_one_name, fast_text, fast_text_with_the_part_as_suffix,
    words_beside_the_classes, text_and_words_of_one_name, words_alone, imdb, half_of_imdb, only_folders,
    sentence_tab_label, swapped_training_file, tsv_with_a_header, categories_beside_csv, ag_news, two_columns_of_texts,
    no_column_of_classes,
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_data_that_mean_something_else_are_refused_in_one_line_that_says_what_to_do(example, tmp_path, capsys, case):
    path, expected = case(tmp_path)
    line = refused(example, ["--data-dir", str(tmp_path)], capsys)
    assert f": {path}: {expected}" in line


@pytest.mark.parametrize("name", [*SPLITS, "Train", "DEV"])
def test_no_class_has_the_name_of_a_part_of_the_data(example, tmp_path, capsys, name):
    write_classes(tmp_path)
    for path in tmp_path.glob("reviews.*"):
        path.rename(tmp_path / f"{path.suffix[1:]}.txt")
    lines(tmp_path / f"{name}.txt")
    line = refused(example, ["--data-dir", str(tmp_path)], capsys)
    assert f": {tmp_path / name}.txt: {name!r} names a part of the data, not a class; " in line


def test_sub_folders_beside_files_of_classes_are_left_aside(tmp_path):
    lines(tmp_path / "ham.txt", tmp_path / "spam.txt", tmp_path / "old" / "eggs.txt")
    train, _ = example_module("text_classification_data").load(tmp_path, "utf-8")
    assert {label for _, label in train} == {"ham", "spam"}


def test_files_of_one_half_may_have_its_name_where_the_suffix_is_the_class(tmp_path):
    lines(tmp_path / "train.neg", tmp_path / "train.pos")
    train, _ = example_module("text_classification_data").load(tmp_path, "utf-8")
    assert {label for _, label in train} == {"neg", "pos"}
