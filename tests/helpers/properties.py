"""How hypothesis looks for counter-examples: the same examples in every run, nothing kept, in bounded time."""

from hypothesis import settings

BOUNDED = settings(max_examples=25, derandomize=True, deadline=None, database=None)
