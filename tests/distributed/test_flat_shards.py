"""FSDP1 on several processes: every number, and every fit, is that of the whole tensors in one process."""

from __future__ import annotations

import pytest
import torch
from two_processes import flat, flat_slow, flat_values
from two_processes.launch import CASES, FOUR, SLOW, named

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.mark.parametrize("name", named(CASES, flat, flat_values))
def test_two_processes_agree_that(name, passed_flat):
    passed_flat(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", named(SLOW, flat_slow))
def test_two_processes_agree_at_length_that(name, passed_slow):
    passed_slow(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", named(FOUR, flat_slow))
def test_four_processes_agree_that(name, passed_four):
    passed_four(name)
