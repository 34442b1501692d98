"""What the recommender cannot use is refused in one line: file, line or byte, and what was expected."""

import pytest
from helpers.run_example import example as example_module
from helpers.run_example import refused
from helpers.write_ratings import lines, write_csv, write_dat, write_tabs


@pytest.fixture(scope="module")
def recommendation():
    return example_module("recommendation")


def no_folder(root):
    return root / "nowhere", "no such file or folder; expected ratings.dat"


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


def no_header_as_amazon_has_none(root):
    path = write_csv(root, ["A2,0001,5.0,1369699200"], "A1,0000013714,4.0,1357516800")
    return (
        path,
        "got A1,0000013714,4.0,1357516800; name the columns user, item, rating and time (a file without a header",
    )


def parent_asin(root):
    path = write_csv(root, ["AG,B07,5.0,1550000000000"], "user_id,parent_asin,rating,timestamp")
    remedy = "name the columns user, item, rating and time"
    return path, f"expected a header with one item column, got user_id,parent_asin,rating,timestamp; {remedy}"


def no_time(root):
    remedy = "(a file without a header needs one above its first line; time may be any number that tells the order)"
    got = f"got userId,movieId,rating; name the columns user, item, rating and time {remedy}"
    return write_csv(root, ["1,31,2.5"], "userId,movieId,rating"), f"expected a header with one time column, {got}"


def date_and_time(root):
    path = write_csv(root, ["1,2,3.5,2005-04-02 23:53:47"])
    remedy = "write a date as seconds since 1970, for example datetime.fromisoformat(date).timestamp()"
    return path, f"rating and time finite numbers; got '1 | 2 | 3.5 | 2005-04-02 23:53:47'; {remedy}"


def csv_without_a_final_newline(root):
    path = write_csv(root, [line.replace("::", ",") for line in lines()], end="")
    remedy = "is the file complete? if so, end its last line with one"
    return path, f"byte {path.stat().st_size}, line 41: expected a line break at the end; {remedy}"


def tabs_and_too_few_of_them(root):
    path = write_tabs(root, [*lines(), "u1::i1::3"])
    return path, "line 41: expected user, item, rating and time between tabs, rating and time finite"


def a_file_of_another_name(root):
    path = write_tabs(root, lines())
    return path.rename(root / "u1.base"), "not a format that is known; expected ratings.dat"


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
    no_header_as_amazon_has_none,
    parent_asin,
    no_time,
    date_and_time,
    csv_without_a_final_newline,
    tabs_and_too_few_of_them,
    a_file_of_another_name,
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
    line = refused(
        recommendation, ["--data-dir", str(path if case in (no_folder, a_file_of_another_name) else tmp_path)], capsys
    )
    assert f": {path}: " in line
    assert expected in line
