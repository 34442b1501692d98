"""What the oldest versions do not have: a test that uses it is skipped there, and says what it needs."""

from importlib import import_module
from typing import Any

import pytest


def newer(module: str, name: str, since: str) -> Any:
    """``module.name``; where there is none, a class that skips the test which makes one."""
    try:
        return getattr(import_module(module), name)
    except (AttributeError, ImportError):

        class Missing:
            def __new__(cls, *_: Any, **__: Any) -> Any:
                pytest.skip(f"{name} is there since {since}")

        return Missing
