"""Random states are put back, also where what ran meanwhile has failed."""

import random

import numpy as np
import pytest
import torch

from lightning_calib.fit.random_states import random_states_kept


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_drawn_meanwhile_is_drawn_again(fails):
    before = None
    try:
        with random_states_kept():
            before = drawn()
            if fails:
                raise IndexError("a batch that cannot be run again")
    except IndexError:
        assert fails
    assert drawn() == before
