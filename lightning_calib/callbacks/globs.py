"""Globs on parameter names: which one matches first, and which one matches nothing."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase


def first_match(name: str, globs: Iterable[str]) -> str | None:
    """The first of ``globs`` that matches ``name``."""
    return next((glob for glob in globs if fnmatchcase(name, glob)), None)


def check_globs(argument: str, globs: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a glob that matches no parameter: most often it is misspelt.

    Raises:
        ValueError: With the names that come nearest.
    """
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            near = get_close_matches(glob, names, n=3, cutoff=0.0)
            raise ValueError(
                f"`{argument}` must name parameters of the model, got {glob!r}, which matches none. "
                f"The nearest names are: {', '.join(near) or '(the model has no parameters)'}."
            )
