"""Fits on two processes, under DDP, FSDP2 and tensor parallel: every callback does what it does in one process."""

from __future__ import annotations

import pytest
import ranks_fits
import ranks_memory
import ranks_others
import torch
from ranks import CASES

MODULES = (ranks_fits.__name__, ranks_others.__name__, ranks_memory.__name__)
NAMES = [name for name, function in CASES.items() if function.__module__ in MODULES]

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_agree_that(name, passed):
    passed(name)
