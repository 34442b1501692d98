"""What is refused stands in one table, with its texts; whoever asks it finds subclasses, too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

import lightning_calib
from lightning_calib.fit.unsupported import (
    REFUSED,
    Refused,
    refused,
    several_closures,
    unseen_step,
    unsupported_optimizer,
)

PACKAGE = Path(lightning_calib.__file__).parent
NAMES = {row.what if isinstance(row.what, str) else row.what.__name__ for row in REFUSED}


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Told by its name: the real one needs DeepSpeed."""


class MyDeepSpeed(DeepSpeedStrategy):
    """A user's subclass."""


class MyRprop(torch.optim.Rprop):
    """The same."""


class MyLBFGS(torch.optim.LBFGS):
    """The same."""


class Inner(torch.optim.SGD):
    """Stepped by another."""


class Around(torch.optim.Optimizer):
    """Wraps another, and skips torch's constructor."""

    def __init__(self) -> None:
        self.param_groups = Inner(WEIGHTS).param_groups


WEIGHTS = [torch.zeros(1, requires_grad=True)]
CPU = torch.device("cpu")
TEXTS = [
    (
        MyDeepSpeed(CPU),
        "gradients",
        "DeepSpeedStrategy is not supported: DeepSpeed keeps the gradients to itself, and finds their norm when it "
        "takes the step. Use `GradientMonitor`, which works, and counts the steps that DeepSpeed drops because their "
        "norm is not finite; `Trainer(gradient_clip_val=...)`, which Lightning makes DeepSpeed's own "
        "`gradient_clipping`; for anything else FSDP2 (`ModelParallelStrategy`).",
    ),
    (
        MyDeepSpeed(CPU),
        "steps",
        "DeepSpeedStrategy is not supported: its model is no `deepspeed.DeepSpeedEngine`, which alone knows the norm "
        "of a step. Use versions of Lightning and DeepSpeed that were tried, 2.6 and 0.19, or FSDP2 "
        "(`ModelParallelStrategy`).",
    ),
    (
        MyDeepSpeed(CPU),
        "forward",
        "DeepSpeedStrategy is not supported: outside its own forward the parameters are not whole. Use FSDP2 "
        "(`ModelParallelStrategy`) or DDP.",
    ),
    (
        MyLBFGS(WEIGHTS),
        "gradients",
        "MyLBFGS is not supported: it evaluates the gradient several times per step, and each call would be judged as "
        "a step of its own. Use another optimizer, a first-order one.",
    ),
    (
        MyRprop(WEIGHTS),
        "rates",
        "Rprop: it reads the learning rate before the gradients are known. Use another optimizer.",
    ),
]


@pytest.mark.parametrize(("thing", "need", "text"), TEXTS, ids=lambda one: one if isinstance(one, str) else None)
def test_the_text_names_what_it_is_why_and_the_way_out(thing, need, text) -> None:
    assert refused(thing, need) == text


@pytest.mark.parametrize("need", ["gradients", "steps", "forward"])
def test_what_one_need_refuses_another_may_allow(need) -> None:
    assert refused(SingleDeviceStrategy(CPU), need) is None
    assert refused(MyRprop(WEIGHTS), need) is None


def test_an_optimizer_without_torchs_hooks_is_refused_where_its_step_must_be_seen() -> None:
    around = Around()
    assert unsupported_optimizer(around, hooks=False) is None
    assert unsupported_optimizer(around) == (
        "Around is not supported: its constructor skips that of `torch.optim.Optimizer`, so `step` runs none of "
        "torch's hooks, and what it does cannot be seen. Use the optimizer that it wraps, or call "
        "`super().__init__(params, defaults)` in its constructor."
    )


def test_ways_of_stepping_have_texts_of_their_own() -> None:
    outer, inner = MyRprop(WEIGHTS), Inner(WEIGHTS)
    assert several_closures(inner).startswith("Inner is not supported: it evaluates the gradient several times")
    assert unseen_step(inner, inner) == (
        "An optimizer's step has gone past Lightning: `self.optimizers(use_pl_optimizer=False)` gives torch's own "
        "optimizer, whose step no callback sees. Use `self.optimizers()`."
    )
    assert unseen_step(inner, outer) == (
        "Inner has stepped the parameters of MyRprop by itself, as sharpness-aware minimisation by `first_step` and "
        "`second_step` does: `on_before_optimizer_step` was not called, so no callback saw the gradient. Use "
        "`optimizer.step()` of `self.optimizers()`, or clip with `lightning_calib.functional.clip_grad_` before the "
        "inner step."
    )


def test_no_row_is_there_twice_and_each_has_its_sentences() -> None:
    keys = [(row.what, row.need) for row in REFUSED]
    assert len(keys) == len(set(keys))
    assert all(isinstance(row, Refused) for row in REFUSED)
    assert not [row for row in REFUSED if row.reason.endswith(".") or row.remedy.endswith(".")]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_has_a_copy(path) -> None:
    """A class of the table, by its name, in a text of another file that is not a docstring."""
    texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert (path.name == "unsupported.py") == bool(NAMES & texts)
