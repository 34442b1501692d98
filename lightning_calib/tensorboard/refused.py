"""The one exception of the back end: a request that is answered with a reason."""

from typing import Any

MOST = 200  # characters of a value in a reason


class Refused(Exception):  # noqa: N818  # an answer, not an error of ours
    """Ends a request.

    Args:
        reason: For the reader of the tab, in plain words.
        code: HTTP status, 400 to 499.
    """

    def __init__(self, reason: str, code: int = 400) -> None:
        super().__init__(reason)
        self.code = code


def shown(value: Any) -> str:
    """A value as it appears in a reason: quoted, and cut when long."""
    text = repr(value)
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def require(condition: bool, name: str, rule: str, value: Any) -> None:
    """Refuse with "`name` must be <rule>, got <value>" unless the condition holds."""
    if not condition:
        raise Refused(f"`{name}` must be {rule}, got {shown(value)}")
