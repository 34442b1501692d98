"""The policies that users get: a table of tests that leaves one out fails."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_calib import policies
from lightning_calib.functional.judge import Policy

PUBLIC = {one for one in vars(policies).values() if isinstance(one, type) and issubclass(one, Policy)}


def assert_none_is_left_out(table: Iterable[object]) -> None:
    """Compare the types of the policies in a table with the public ones."""
    missing = sorted(one.__name__ for one in PUBLIC - {type(policy) for policy in table})
    assert len(PUBLIC) >= 6
    assert not missing, f"add a line for {', '.join(missing)} to this file's POLICIES"
