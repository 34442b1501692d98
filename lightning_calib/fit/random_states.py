"""Random states as they were, whatever happens meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from torch import cuda


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Torch's, CUDA's where it is in use, Python's and NumPy's; put back after an error, too."""
    states = _collect_rng_states(include_cuda=cuda.is_initialized())  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        _set_rng_states(states)
