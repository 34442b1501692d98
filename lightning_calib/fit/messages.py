"""Sentences to the user: through logging, on rank zero, never by print."""

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    _ToStream = logging.StreamHandler[TextIO]
else:  # Python 3.10 knows no parameter of this class
    _ToStream = logging.StreamHandler


class _Fallback(_ToStream):
    """Writes to stderr as long as the program has set up no logging of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers and _log.handlers == [self]:
            self.stream = sys.stderr
            super().emit(record)


_log = logging.getLogger("lightning_calib")
if not _log.handlers:
    _log.addHandler(_Fallback())
if _log.level == logging.NOTSET:
    _log.setLevel(logging.INFO)


@rank_zero_only
def say(text: str) -> None:
    """One line of information."""
    with _beside_the_bar():
        _log.info("[calib] %s", text)


@rank_zero_only
def warn(text: str) -> None:
    """One line that asks for attention."""
    with _beside_the_bar():
        _log.warning("[calib] %s", text)


def warn_here(text: str) -> None:
    """The same of whichever process it is that knows."""
    with _beside_the_bar():
        _log.warning("[calib] %s", text)


def _beside_the_bar() -> AbstractContextManager[Any]:
    """Open bars of tqdm are cleared and drawn again below: the line would continue theirs. Rich does so by itself."""
    tqdm: Any = sys.modules.get("tqdm.std")
    return nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=sys.stderr)
