"""Fits on two processes, under DDP, FSDP2 and tensor parallel: every callback does what it does in one process."""

from __future__ import annotations

import pytest
import torch
from two_processes import find, fits, memory, others
from two_processes.launch import CASES

MODULES = (find.__name__, fits.__name__, others.__name__, memory.__name__)
NAMES = [name for name, function in CASES.items() if function.__module__ in MODULES]

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_agree_that(name, passed):
    passed(name)
