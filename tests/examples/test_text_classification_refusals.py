"""What the text classification example cannot use is refused in one line: file, line or byte, and what was expected."""

import sysconfig

import pytest
from helpers.run_example import example as example_module
from helpers.run_example import refused
from helpers.write_text import ROWS, write_classes, write_csv, write_json, write_tsv


@pytest.fixture(scope="module")
def example():
    return example_module("text_classification")


def nothing(root):
    return root / "nowhere", "no such file or folder; expected one .json"


def empty_folder(root):
    return root, "no data found; expected one .json"


def unknown_format(root):
    (root / "a.xml").write_text("<a/>")
    return root / "a.xml", "not a format that is known; expected one .json"


def two_json_files(root):
    write_json(root)
    (root / "more.json").write_text("{}")
    return root, "found 2 .json files; expected one .json"


def empty_json(root):
    (root / "data.json").write_bytes(b"")
    return root / "data.json", "expected texts, got an empty file"


def truncated_json(root):
    path = write_json(root)
    path.write_bytes(path.read_bytes()[:100])
    return path, "line 1 column 88: expected JSON, Unterminated string starting at; is the file complete?"


def json_list(root):
    (root / "data.json").write_text('[["a", "b"]]')
    return root / "data.json", 'expected a list of [text, class] under "train", got none'


def json_without_test(root):
    return write_json(root, test=[]), 'expected a list of [text, class] under "test", got none'


def json_row_of_three(root):
    rows = [["a", "b"], ["a", "b", "c"]]
    return write_json(root, test=rows), '"test", entry 1: expected [text, class], got ["a", "b", "c"]'


def json_number(root):
    return write_json(root, train=[["a", 3]]), '"train", entry 0: expected [text, class], got ["a", 3]'


def json_in_latin_1(root):
    path = write_json(root)
    path.write_bytes(path.read_bytes().replace(b"cat number 0", b"caf\xe9"))
    return path, "line 1: byte 16 is 0xe9, invalid continuation byte; expected utf-8; see --encoding"


def empty_tsv(root):
    (root / "data.tsv").write_text("\n\n")
    return root / "data.tsv", "expected texts, got an empty file"


def truncated_tsv(root):
    path = write_tsv(root / "data.tsv")
    path.write_text(path.read_text()[: -len("\tdog number 4\n")])
    return path, "line 15: expected class, tab, text, got 'dog'"


def tsv_with_three_cells(root):
    path = write_tsv(root / "data.tsv")
    path.write_text("cat\ta\tb\n" + path.read_text())
    return path, "line 1: expected class, tab, text, got 'cat\\ta\\tb'"


def tsv_in_latin_1(root):
    path = write_tsv(root / "data.tsv")
    size = len(path.read_bytes())
    path.write_bytes(path.read_bytes() + b"cat\tcaf\xe9\n")
    return path, f"line 16: byte {size + 7} is 0xe9, invalid continuation byte; expected utf-8; see --encoding"


def empty_csv(root):
    (root / "data.csv").write_bytes(b"")
    return root / "data.csv", "expected texts, got an empty file"


def csv_without_header(root):
    (root / "data.csv").write_text("a cat,cat\na dog,dog\n")
    return root / "data.csv", "line 1: expected a header with one column text or tweet, got a cat, cat; "


def csv_with_only_a_header(root):
    return write_csv(root / "data.csv", []), "expected rows below the header, got none"


def truncated_csv(root):
    path = write_csv(root / "data.csv")
    path.write_text(path.read_text()[:-4])
    return path, "line 16: expected CSV; unexpected end of data; is the file complete?"


def csv_with_a_missing_cell(root):
    path = write_csv(root / "data.csv")
    path.write_text(path.read_text() + "15,dog\n")
    return path, "line 17: expected 3 cells, 'text' and 'label' not empty"


def csv_with_one_cell_more(root):
    path = write_csv(root / "data.csv")
    path.write_text(path.read_text() + "15,dog,a,b\n")
    return path, "line 17: expected 3 cells, 'text' and 'label' not empty"


def csv_in_utf_16(root):
    path = write_csv(root / "data.csv")
    path.write_text(path.read_text(), encoding="utf-16-le")
    return path, "line 1 has a byte 0x00; expected text in utf-8; see --encoding"


def class_files_in_latin_1(root):
    write_classes(root, "latin-1")
    return root / "reviews.pos", "line 1: byte 2 is 0xe8, invalid continuation byte; expected utf-8"


def empty_class_file(root):
    write_classes(root)
    (root / "reviews.neutral").write_bytes(b"")
    return root / "reviews.neutral", "expected texts, got an empty file"


def one_text_in_a_class(root):
    write_classes(root)
    (root / "reviews.neutral").write_text("so, so\n")
    return root, "expected two texts or more of every class, one for testing; neutral has 1"


def one_class(root):
    return write_tsv(root / "data.tsv", ROWS[:10]), "expected two classes or more, found only cat"


def class_only_in_test(root):
    path = write_json(root, test=[["an emu", "emu"]])
    return path, "expected every class of the test set in the training set too; emu is not"


REFUSED = [
    nothing, empty_folder, unknown_format, two_json_files, empty_json, truncated_json, json_list, json_without_test,
    json_row_of_three, json_number, json_in_latin_1, empty_tsv, truncated_tsv, tsv_with_three_cells, tsv_in_latin_1,
    empty_csv, csv_without_header, csv_with_only_a_header, truncated_csv, csv_with_a_missing_cell,
    csv_with_one_cell_more, csv_in_utf_16, class_files_in_latin_1, empty_class_file, one_text_in_a_class, one_class,
    class_only_in_test,
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(example, tmp_path, capsys, case):
    path, expected = case(tmp_path)
    line = refused(example, ["--data-dir", str(tmp_path if path.name.startswith("reviews") else path)], capsys)
    assert f": {path}: {expected}" in line


def test_an_encoding_that_python_does_not_know_is_refused_in_one_line(example, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--data-dir", str(write_tsv(tmp_path / "data.tsv")), "--encoding", "latin-99"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(
        "data.tsv: expected the name of an encoding, got latin-99; see --encoding\n"
    )


def test_a_python_without_its_sources_is_told_what_is_missing(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        example.main([])
    assert stopped.value.code == 2
    wanted = f": {tmp_path / 'asyncio.py'}: no such file; expected Python's standard library as text, or --data-dir\n"
    assert capsys.readouterr().err.endswith(wanted)
