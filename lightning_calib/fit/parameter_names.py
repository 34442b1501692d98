"""Names: of callbacks, and globs on those of parameters."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from lightning_calib.functional.checks import message


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


def check_name(name: object) -> None:
    """A name becomes part of tags and of the checkpoint's key."""
    if name is not None and (not isinstance(name, str) or not name or "/" in name):
        kind: type[Exception] = ValueError if isinstance(name, str) else TypeError
        raise kind(
            message("name", "a non-empty text without a slash, or None", name, 'Use for instance name="encoder".')
        )
