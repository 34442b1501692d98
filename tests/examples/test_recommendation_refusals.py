"""What the recommender cannot use is refused in one line: file, line or byte, and what was expected."""

import pytest
from ratings import lines, write_csv, write_dat
from scripts import example as example_module
from scripts import refused


@pytest.fixture(scope="module")
def recommendation():
    return example_module("recommendation")


def no_folder(root):
    return root / "nowhere", "not a folder; expected ratings.dat"


def empty_folder(root):
    return root, "no data found; expected ratings.dat"


def empty_dat(root):
    (root / "ratings.dat").write_bytes(b"")
    return root / "ratings.dat", "line 1: no ratings; expected ratings.dat (lines of user::item::rating::time)"


def empty_csv(root):
    (root / "ratings.csv").write_bytes(b"")
    return root / "ratings.csv", "line 1: expected a header with one user column, got nothing"


def only_a_header(root):
    return write_csv(root, []), "line 1: no ratings"


def no_header(root):
    return write_csv(
        root, ["1,2,3.5,1000"], "7,2,4.0,964982703"
    ), "line 1: expected a header with one user column, got 7,2,"


def two_rating_columns(root):
    header = "user,item,rating,time,rating_raw"
    return write_csv(root, ["1,2,3,4,5"], header), "line 1: expected a header with one rating column"


def truncated_in_a_line(root):
    return write_dat(root, [*lines(), "u1::i1::7"]), "line 41: expected user::item::rating::time"


def truncated_in_the_last_number(root):
    path = write_dat(root, lines(), end="")
    return path, f"byte {path.stat().st_size}, line 40: expected a line break at the end; is the file complete?"


def wrong_separator(root):
    rows = lines()
    rows[6] = rows[6].replace("::", ",")
    return write_dat(root, rows), "line 7: expected user::item::rating::time"


def too_many_fields(root):
    rows = [line.replace("::", ",") for line in lines()]
    return write_csv(root, [*rows, "u1,i1,4,1000,oops"]), "line 42: expected userId,movieId,rating,timestamp"


def not_a_number(root):
    return write_dat(
        root, [*lines(), "u1::i1::good::7"]
    ), "line 41: expected user::item::rating::time, rating and time finite"


def not_finite(root):
    return write_dat(root, ["u1::i1::nan::7", *lines()]), "got 'u1 | i1 | nan | 7'"


def no_user(root):
    return write_dat(root, [*lines(), "::i1::4::7"]), "line 41: expected user::item::rating::time"


def wrong_encoding(root):
    path = write_dat(root, lines())
    path.write_bytes(path.read_bytes()[:100] + "é::i1::4::7\n".encode("latin-1"))
    return path, "byte 100: expected UTF-8, got 0xe9"


def utf_16(root):
    path = write_dat(root, lines())
    path.write_bytes(path.read_text().encode("utf-16"))
    return path, "byte 0: expected UTF-8, got 0xff"


def nobody_comes_back(root):
    write_dat(root, [f"u{i}::i{i % 7}::5::{i}" for i in range(40)])
    return root, "expected users who rate both early and late"


REFUSED = [
    no_folder,
    empty_folder,
    empty_dat,
    empty_csv,
    only_a_header,
    no_header,
    two_rating_columns,
    truncated_in_a_line,
    truncated_in_the_last_number,
    wrong_separator,
    too_many_fields,
    not_a_number,
    not_finite,
    no_user,
    wrong_encoding,
    utf_16,
    nobody_comes_back,
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(recommendation, tmp_path, capsys, case):
    path, expected = case(tmp_path)
    line = refused(recommendation, ["--data-dir", str(path if case is no_folder else tmp_path)], capsys)
    assert f": {path}: " in line
    assert expected in line
