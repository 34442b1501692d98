"""The code that a Markdown page shows, and what is to be run of it.

A comment in the line before a block tells what is special about it:

- ``<!-- goes on -->``: it runs behind the page's block of Python before it, as one program;
- ``<!-- needs: wandb -->``: both sides of a diff run where the package can be imported; ``before needs``: the left one;
- ``<!-- not run: reason -->``: it is not run, and why;
- ``<!-- printed -->``: what the program before it prints, which a test compares.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
RUN = {"python", "diff", "yaml"}
SHOWN = {"text", "console"}  # output, formulas, commands of a shell
REMARKS = r"goes on|printed|(?:before )?needs: [\w, ]+|not run: \w.+"
_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<remark>.*?) -->\n *)?```(?P<language>[^\n`]*)\n(?P<code>.*?)^ *```$", re.M | re.S
)


class Block(NamedTuple):
    """One block between fences; directives of the site, whose language is in braces, are none."""

    language: str
    code: str
    remark: str = ""

    def side(self, sign: str) -> str:
        """Of a diff: the program before ("-") or after ("+") the change."""
        lines = [line for line in self.code.splitlines(keepends=True) if line[:1] in (" ", "\n", sign)]
        return "".join(line[1:] if line != "\n" else line for line in lines)


def blocks(page: Path) -> list[Block]:
    """All of a page."""
    found = []
    for one in _BLOCK.finditer(page.read_text()):
        remark = one["remark"] or ""
        if not one["language"].startswith("{"):
            code = re.sub(f"^{one['indent']}", "", one["code"], flags=re.M)
            found.append(Block(one["language"], code, remark if re.fullmatch(REMARKS, remark) else ""))
    return found


def programs(page: Path) -> Iterator[str]:
    """What runs of a page's Python: each block, and what goes on behind it."""
    text = ""
    for one in blocks(page):
        if one.language != "python" or one.remark.startswith("not run"):
            continue
        if one.remark != "goes on" and text:
            yield text
            text = ""
        text += one.code
    if text:
        yield text
