"""One `GradientClip` for several optimizers: a rule for the parameters of each."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import takewhile


def rules_line(names: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """A callback that clips each optimizer's gradient by a value of its own, and leaves the others alone.

    Args:
        names: Of the parameters of each optimizer.
        lines: For each one the callback that would do it alone; empty for none.

    Returns:
        The line; empty where no pattern tells the optimizers' parameters apart, a callback has a scope or rules of its
        own, or nobody is clipped.

    Example:
        >>> rules_line([["gen.0.weight", "gen.2.bias"], ["dis.weight"]], ["GradientClip(0.5)", "GradientClip(3)"])
        'GradientClip(None, rules={"gen.*": 0.5, "dis.*": 3})'
    """
    rules = []
    for place, line in enumerate(lines):
        others = [name for other, found in enumerate(names) if other != place for name in found]
        pattern = _pattern(names[place])
        if line and ("=" in line or not pattern or any(fnmatchcase(name, pattern) for name in others)):
            return ""
        if line:
            rules.append(f'"{pattern}": {_policy(line)}')
    return f"GradientClip(None, rules={{{', '.join(rules)}}})" if rules else ""


def _pattern(names: Sequence[str]) -> str:
    """What the names begin with, up to a dot."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    start = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return ".".join([*start, "*"]) if start else ""


def _policy(line: str) -> str:
    """What stands in the place of a callback's line in a rule."""
    return "ZScore()" if line == "ZClip()" else line.removeprefix("GradientClip(").removesuffix(")")
