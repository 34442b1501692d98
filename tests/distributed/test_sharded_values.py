"""DTensors on two processes: every number is that of the whole tensors in one process."""

from __future__ import annotations

import pytest
import torch
from two_processes import values
from two_processes.launch import CASES

NAMES = [name for name, function in CASES.items() if function.__module__ == values.__name__]

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_agree_that(name, passed_values):
    passed_values(name)
