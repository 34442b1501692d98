"""How hypothesis looks for counter-examples: the same examples in every run, nothing kept, in bounded time."""

from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st

T = TypeVar("T")
BOUNDED = settings(max_examples=25, derandomize=True, deadline=None, database=None)
MORE = settings(BOUNDED, max_examples=100)  # of what takes a millisecond


def runs(row: st.SearchStrategy[T], longest: int) -> st.SearchStrategy[list[T]]:
    """Lists of any length up to the longest, long ones as often as short ones, which hypothesis prefers by itself."""
    return st.integers(1, longest).flatmap(lambda length: st.lists(row, min_size=length, max_size=length))
