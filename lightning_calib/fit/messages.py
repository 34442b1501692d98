"""Sentences to the user: through logging, on rank zero, never by print."""

import logging
import sys
from typing import TextIO

from lightning.pytorch.utilities import rank_zero_only


class _Fallback(logging.StreamHandler[TextIO]):
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
    _log.info("[calib] %s", text)


@rank_zero_only
def warn(text: str) -> None:
    """One line that asks for attention."""
    _log.warning("[calib] %s", text)
