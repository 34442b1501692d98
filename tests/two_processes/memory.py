"""Cases for `launch.py`: out of memory in our own readings, where other processes wait in a collective or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import distributed
from two_processes.fits import Watch
from two_processes.launch import case
from two_processes.run import Run

import lightning_calib as calib


@contextmanager
def failing(at: int, ranks: tuple[int, ...] = (0, 1)) -> Iterator[None]:
    """The reading number ``at`` of these processes, counted from 0, runs out of memory."""
    real, calls = torch._foreach_norm, []

    def function(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"] == "lightning_calib.functional.piece_norms":
            calls.append(None)
            if len(calls) == at + 1 and distributed.get_rank() in ranks:
                raise torch.OutOfMemoryError("out of memory")
        return real(*args, **kwargs)

    torch._foreach_norm = function
    try:
        yield
    finally:
        torch._foreach_norm = real


@case
def a_reading_that_fails_on_one_process_leaves_nobody_waiting_under_ddp() -> None:
    for at in (6, 7):  # the first reading of step 3, and the extra one
        with failing(at, (1,)):
            watched = Run("ddp", lambda: [Watch()])
        torch.testing.assert_close(watched.weights, Run("ddp", list).weights, rtol=0, atol=0)
        assert len(watched.rows.values("calib/grad_norm_after")) == (8, 3)[distributed.get_rank()]


@case
def a_reading_that_fails_is_raised_where_others_would_wait() -> None:
    for way, make in (
        ("fsdp", lambda: [Watch()]),
        ("tensor", lambda: [Watch()]),
        ("ddp", lambda: [Watch(), calib.NonFiniteGuard("warn")]),
    ):
        with failing(6), pytest.raises(torch.OutOfMemoryError):
            Run(way, make)
    for way in ("fsdp", "tensor"):
        with failing(7), pytest.raises(torch.OutOfMemoryError):
            Run(way, lambda: [Watch()])
