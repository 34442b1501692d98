"""The tutorial prints what it says that it prints."""

import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.code_blocks import ROOT, blocks, programs

from lightning_calib.cli import main

PAGE = ROOT / "docs" / "tutorial.md"
NUMBER = r"\d[\d.,]*(?:e[+-]?\d+)?"


def words(text: str) -> str:
    """Without line breaks, and with a sign for every number: numbers differ from machine to machine."""
    return re.sub(NUMBER, "#", " ".join(text.split()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        yield Path.cwd()


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """All lines of the console, in their order."""
    lines: list[str] = []
    logger, handler = logging.getLogger("lightning_calib"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        [program] = programs(PAGE)
        exec(compile(program, "tutorial", "exec"), {"__name__": "tutorial", "print": lambda it: lines.append(str(it))})
    finally:
        logger.removeHandler(handler)
    return words("\n".join(lines))


def test_what_is_printed_stands_on_the_page_in_this_order(printed: str) -> None:
    shown = [one.code for one in blocks(PAGE) if one.remark == "printed" and one.language == "text"]
    parts = [words(part) for text in shown for part in re.split(r"^\.\.\.$", text, flags=re.M)]
    assert len(parts) >= 8
    at = 0
    for part in parts:
        at = printed.find(part, at) + len(part)
        assert at >= len(part), f"not printed, or not in this order: {part}"


def test_the_commands_answer_as_the_page_says(
    printed: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for one in blocks(PAGE):
        if one.language == "console":
            command, _, answer = one.code.partition("\n")
            assert main(shlex.split(command)[2:]) == 0
            assert words(capsys.readouterr().out) == words(answer)
