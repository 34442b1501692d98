"""`trace=True`: the module and the operation that were not finite first, and nothing else of the run changes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchmetrics
from helpers.poisoned_batches import ADAM, Plant, every, incidents
from helpers.tiny_modules import Rows, Tiny, TwoNets, fit, make_trainer, same_bits, scaled, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_calib import GradientMonitor, NonFiniteGuard, ZClip

BAD = 3  # the batch in which it happens
INF = math.inf


class Part(nn.Module):
    """The planted operation, between two linear layers; ``bad`` says that it is the bad batch."""

    def __init__(self, operation: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.operation, self.bad = operation, False

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x, self.bad)


class Planted(Tiny):
    """Linear, the planted operation, linear; numbered batches."""

    def __init__(self, operation: Callable[[Tensor, bool], Tensor], optimizer: Callable = ADAM, **how: Any) -> None:
        super().__init__(optimizer, net=partial(self.layers, operation))
        self.how = how

    @staticmethod
    def layers(operation: Callable[[Tensor, bool], Tensor]) -> nn.Module:
        torch.manual_seed(0)
        parts = {"first": nn.Linear(4, 8), "inner": nn.Sequential(nn.Tanh(), Part(operation)), "last": nn.Linear(8, 1)}
        return nn.ModuleDict(parts)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        (part,) = [one for one in self.modules() if isinstance(one, Part)]
        part.bad = int(batch[0, 0]) == BAD
        x = torch.linspace(-1, 1, 16).reshape(4, 4) + 0.01 * batch
        hidden = self.net["first"](x)
        if "reentrant" in self.how:
            hidden = checkpoint(self.net["inner"], hidden, use_reentrant=self.how["reentrant"])
        else:
            hidden = self.net["inner"](hidden)
        return self.net["last"](hidden).square().mean()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(7.0).reshape(7, 1), batch_size=1)


def zeros(x: Tensor) -> Tensor:
    """As many zeros, which depend on x."""
    return x * 0.0


def by_zero(x: Tensor, bad: bool) -> Tensor:
    return x / ((zeros(x) + 1.0) if not bad else zeros(x))


def logarithm(x: Tensor, bad: bool) -> Tensor:
    return (zeros(x) if bad else x.square() + 1).log()


def root(x: Tensor, bad: bool) -> Tensor:
    """Its value is fine: only its slope is not."""
    return (zeros(x) if bad else x.square() + 1).sqrt()


def hidden_root(x: Tensor, bad: bool) -> Tensor:
    """`torch.where` takes the other branch, and the slope of this one is 0 times Inf."""
    inner = x.sign().clamp(min=0) * x if bad else x.square() + 1
    return torch.where(inner > 0, inner.sqrt(), 0.0)


def times_mask(x: Tensor, bad: bool) -> Tensor:
    mask = torch.full_like(x, INF if bad else 1.0)
    return zeros(x) * mask


def masked_softmax(x: Tensor, bad: bool) -> Tensor:
    """-Inf in a mask is no fault, but for the row where nothing else is."""
    mask = torch.zeros_like(x).bool()
    mask[:, 0] = True
    mask[1] |= bad
    return x.masked_fill(mask, -INF).softmax(-1)


def norm_of_zero(x: Tensor, bad: bool) -> Tensor:
    """Written out by hand, which has no slope at 0."""
    return x * (zeros(x) if bad else x).square().sum(-1, keepdim=True).sqrt()


def quotient_of_norms(x: Tensor, bad: bool) -> Tensor:
    """Torch's own norm has slope 0 at 0, and dividing by it is the fault."""
    inner = zeros(x) if bad else x
    return inner / inner.norm(dim=-1, keepdim=True)


def large(x: Tensor, bad: bool) -> Tensor:
    """In float16 nothing above 65504 fits."""
    return nn.functional.linear(x.abs() + 1, torch.full((8, 8), 60000.0 if bad else 0.01))


def looked_up(x: Tensor, bad: bool) -> Tensor:
    """A row of the table that nobody has filled."""
    rows = torch.tensor([1, 2, 0 if bad else 1, 2])
    table = torch.tensor([[math.nan] * 8, [0.1] * 8, [0.2] * 8])
    return x + nn.functional.embedding(rows, table)


def power(x: Tensor, bad: bool) -> Tensor:
    return (zeros(x) if bad else x.square() + 1).pow(0.5)


CASES: list[tuple[str, Callable, str, str]] = [
    ("division", by_zero, "forward", "div"),
    ("logarithm", logarithm, "forward", "log"),
    ("0 * inf", times_mask, "forward", "mul"),
    ("masked softmax", masked_softmax, "forward", "_softmax"),
    ("division by a norm", quotient_of_norms, "forward", "div"),
    ("embedding", looked_up, "value", "embedding"),
    ("root", root, "backward", "SqrtBackward0"),
    ("hidden root", hidden_root, "backward", "SqrtBackward0"),
    ("norm", norm_of_zero, "backward", "SqrtBackward0"),
    ("power", power, "backward", "PowBackward0"),
]


def traced(line: str) -> str:
    """What the re-run has shown."""
    parts = [part for part in line.split("; ") if "run again" in part or "the first in the" in part or "trace" in part]
    return "; ".join(parts)


def wanted(place: str, operation: str, path: str = "net.inner.1 (Part)") -> str:
    if place == "value":
        return f"a tensor that was there before is not finite, and {path} reads it (operation {operation})"
    if place == "backward":
        return f"the first in the backward pass is {operation} in {path}, which read "
    return f"the first in the forward pass is operation {operation} in {path}, which read "


@pytest.mark.parametrize(("operation", "place", "name"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_operation_and_its_module_are_named(operation, place, name, said):
    fit(Planted(operation), [NonFiniteGuard("skip", trace=True)], 6)
    (line,) = incidents(said())
    assert wanted(place, name) in traced(line), line
    assert "Most likely: the operation that the re-run names." in line


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("operation", "place", "name"), [case[1:] for case in CASES[:-1]], ids=[case[0] for case in CASES[:-1]]
)
def test_inside_of_activation_checkpointing(operation, place, name, reentrant, said):
    fit(Planted(operation, reentrant=reentrant), [NonFiniteGuard("skip", trace=True)], 6)
    (line,) = incidents(said())
    if reentrant and place == "backward":
        assert "the batch could not be run again to find the operation" in line
        assert "use_reentrant" in line
    else:
        assert wanted(place, name) in traced(line), line


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(("operation", "place", "name"), [case[1:] for case in CASES if case[0] != "embedding"])
def test_under_autocast(operation, place, name, precision, said):
    kwargs = {"plugins": scaled(2.0**4)} if precision == "16-mixed" else {"precision": precision}
    if precision == "16-mixed" and place == "backward":
        kwargs["plugins"] = scaled(0.5)  # with a larger one an overflow is routine
    fit(Planted(operation), [NonFiniteGuard("skip", trace=True)], 6, **kwargs)
    assert wanted(place, name) in traced(incidents(said())[0])


def test_an_overflow_of_float16(said):
    fit(Planted(large), [NonFiniteGuard("skip", trace=True)], 6, plugins=scaled(2.0**4))
    (line,) = incidents(said())
    assert re.search(r"operation (mm|linear|addmm|matmul) in net.inner.1 \(Part\), which read 4x8 float16", line), line
    assert "to 6e+04" in line


def test_the_extremes_of_the_inputs_are_told(said):
    fit(Planted(by_zero), [NonFiniteGuard("skip", trace=True)], 6)
    assert re.search(r"operation div .*which read 4x8 float32 from -0\.\d+ to 0\.\d+, smallest magnitude", said()[1])
    assert "and 4x8 float32 from 0 to 0" in said()[1] or "from -0 to 0" in said()[1]


def test_a_mask_of_minus_infinity_is_no_fault(said):
    """The root is, after it."""
    fit(
        Planted(lambda x, bad: root(masked_softmax(x, bad=False), bad) + 1),
        [NonFiniteGuard("skip", trace=True)],
        6,
    )
    assert wanted("backward", "SqrtBackward0") in traced(incidents(said())[0])


def test_a_mask_of_minus_infinity_from_outside_is_no_fault(said):
    outside = torch.tensor([0.0] * 7 + [-INF])

    def masked(x: Tensor, bad: bool) -> Tensor:
        weights = (x + (torch.full((8,), -INF) if bad else 0.0) + outside).softmax(-1)
        return x * weights

    fit(Planted(masked), [NonFiniteGuard("skip", trace=True)], 6)
    assert wanted("forward", "_softmax") in traced(incidents(said())[0])


def test_the_same_random_numbers_are_drawn(said):
    """And afterwards the generator goes on as if nobody had drawn any."""
    drawn: list[float] = []

    def chance(x: Tensor, bad: bool) -> Tensor:
        if bad:
            drawn.append(torch.rand(()).item())
            return x / (zeros(x) if drawn[-1] == drawn[0] else zeros(x) + 1)
        return x

    ends = []
    for more in (0, 5):
        drawn.clear()
        torch.manual_seed(1)

        def again(module: Any, batch: Tensor, more: int = more) -> Tensor:
            loss = Planted.training_step(module, batch, 0)
            _ = torch.rand(more)
            return loss

        fit(Planted(chance), [NonFiniteGuard("skip", trace=again)], 5)
        ends.append(torch.rand(1))
        assert drawn[0] == drawn[1]
    same_bits(ends[0], ends[1])
    assert wanted("forward", "div") in traced(incidents(said())[0])


def test_what_does_not_reach_the_loss_is_no_fault(said):
    def unused(x: Tensor, bad: bool) -> Tensor:
        _ = x.detach() / 0.0
        return logarithm(x, bad)

    fit(Planted(unused), [NonFiniteGuard("skip", trace=True)], 6)
    assert wanted("forward", "log") in traced(incidents(said())[0])


def test_an_infinite_slope_that_another_operation_hides_is_no_fault(said):
    """A hook cuts the first off, in every batch; the second is to blame."""

    def two(x: Tensor, bad: bool) -> Tensor:
        inner = zeros(x)
        inner.register_hook(torch.zeros_like)
        other = zeros(x).pow(0.5) if bad else x  # made first, so that its backward pass comes last
        return other + inner.sqrt()

    fit(Planted(two), [NonFiniteGuard("skip", trace=True)], 6)
    (line,) = incidents(said())
    assert wanted("backward", "PowBackward0") in traced(line)


def test_outside_of_every_module(said):
    class InStep(Planted):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss / 0.0 if int(batch[0, 0]) == BAD else loss

    fit(InStep(lambda x, _: x), [NonFiniteGuard("skip", trace=True)], 6)
    assert "operation div in InStep itself" in traced(incidents(said())[0])


class Fed(Tiny):
    """One NaN in the data."""

    def training_step(self, batch, batch_idx):
        return self.net(batch["x"]).square().mean()

    def train_dataloader(self):
        x = torch.ones(12, 4)
        x[7, 2] = math.nan
        return DataLoader([{"x": one} for one in x], batch_size=2)


def test_bad_data_are_named(said):
    fit(Fed(ADAM), [NonFiniteGuard("skip", trace=True)], 6)
    (line,) = incidents(said())
    assert "batch['x'] is not finite, and net.0 (Linear) reads it" in line
    assert "batch['x']: 1 NaN and 0 Inf of 8 elements, in sample 1" in line
    assert "Most likely: the data (" in line


def test_a_gradient_that_is_planted_later_is_not_found_and_that_is_said(said):
    fit(Tiny(ADAM), [Plant(every("net.2.bias", [2])), NonFiniteGuard("skip", trace=True)], 4)
    (line,) = incidents(said())
    assert "the gradient was finite when the batch was run again" in line
    assert "the operation that the re-run names" not in line


def test_a_hook_on_a_tensor_is_told_from_an_operation(said):
    def hooked(x: Tensor, bad: bool) -> Tensor:
        out = x * 2
        if bad and out.requires_grad:
            out.register_hook(lambda grad: grad * math.nan)
        return out

    fit(Planted(hooked), [NonFiniteGuard("skip", trace=True)], 6)
    assert "what arrives at MulBackward0 in net.inner.1 (Part) is not finite" in traced(incidents(said())[0])


@pytest.mark.parametrize("operation", [by_zero, root], ids=["forward", "backward"])
def test_of_a_window_the_bad_micro_batch_is_found(operation, said):
    fit(Planted(operation), [NonFiniteGuard("skip", trace=True)], 1, accumulate_grad_batches=5)
    assert "net.inner.1 (Part)" in traced(incidents(said())[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own
@pytest.mark.parametrize("whole", [False, True], ids=["part", "whole"])
@pytest.mark.parametrize("operation", [by_zero, root], ids=["forward", "backward"])
def test_compiled_modules_are_run_again_as_they_are_written(operation, whole, said):
    torch.compiler.reset()
    module = Planted(operation)
    if not whole:
        module.net["inner"] = torch.compile(module.net["inner"], backend="eager")
    trainer = make_trainer([NonFiniteGuard("skip", trace=True)], 6)
    trainer.fit(torch.compile(module, backend="eager") if whole else module)
    assert "net.inner.1 (Part)" in traced(incidents(said())[0])


# ---------------------------------------------------------------- the run stays as it is


class Restless(Planted):
    """Everything that a training step may change: dropout, BatchNorm, a metric, attributes, a teacher, logs."""

    def __init__(self, operation: Callable[[Tensor, bool], Tensor], optimizer: Callable = ADAM) -> None:
        super().__init__(operation, optimizer)
        self.drop, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(4)
        self.metric = torchmetrics.MeanMetric()
        self.teacher = nn.Linear(4, 4).requires_grad_(False)
        self.steps, self.seen = 0, []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.steps += 1
        self.seen.append(batch_idx)
        with torch.no_grad():
            for value in self.teacher.parameters():
                value.mul_(0.9).add_(0.1 * torch.rand_like(value))
        x = self.drop(self.norm(torch.randn(4, 4))) + self.teacher(torch.ones(4, 4))
        loss = super().training_step(batch, batch_idx) + self.net["first"](x).square().mean()
        self.metric.update(loss.detach().nan_to_num(1.0))
        self.log("metric", self.metric, on_step=True, on_epoch=True)
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("action", ["warn", "skip"])
@pytest.mark.parametrize("operation", [by_zero, root, lambda x, _: x], ids=["forward", "backward", "healthy"])
@pytest.mark.parametrize("mode", ["32-true", "16-mixed", "accumulated"])
def test_the_run_keeps_its_bits(operation, action, mode):
    ends = []
    for trace in (False, True):
        torch.manual_seed(3)
        kwargs = {"plugins": scaled(2.0**4)} if mode == "16-mixed" else {}
        kwargs |= {"accumulate_grad_batches": 2} if mode == "accumulated" else {}
        module, rows = Restless(operation), Rows()
        guard = NonFiniteGuard(action, trace=trace)
        trainer = fit(module, [guard, ZClip(), GradientMonitor()], 6, logger=rows, log_every_n_steps=1, **kwargs)
        metrics = {name: value for name, value in trainer.callback_metrics.items() if "calib" not in name}
        log = guard.state_dict()["optimizers"]["0"]
        ends.append(
            [
                weights(module),
                [one.clone() for one in module.buffers()],
                trainer.optimizers[0].state_dict(),
                torch.rand(2),
                (module.steps, module.seen, {name: value.item() for name, value in metrics.items()}),
                {name: value for name, value in log.items() if name != "last"},
                [row[1] for row in rows.rows],
            ]
        )
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0, equal_nan=True)


def test_only_incidents_that_are_told_are_run_again(said):
    class Counts(Planted):
        calls = 0

        def training_step(self, batch, batch_idx):
            type(self).calls += 1
            return super().training_step(batch, batch_idx)

    fit(Counts(lambda x, _: x / 0), [NonFiniteGuard("skip", trace=True, max_consecutive=9)], 7)
    assert Counts.calls == 7 + 3
    assert len(incidents(said())) == 3


def test_weights_that_are_ruined_are_not_run_again(said):
    fit(Planted(by_zero), [NonFiniteGuard("warn", trace=True)], 6)
    first, second = incidents(said())
    assert "the first in the forward pass" in first
    assert "the first in" not in second
    assert "Most likely: an earlier step, which ruined the weights" in second


def test_a_step_that_cannot_be_run_again_does_not_end_the_run(said):
    class Once(Planted):
        batches: list[int] = []

        def training_step(self, batch, batch_idx):
            if batch_idx in self.batches:
                raise RuntimeError("a second\ntime")
            self.batches.append(batch_idx)
            return super().training_step(batch, batch_idx)

    trainer = fit(Once(by_zero), [NonFiniteGuard("skip", trace=True)], 6)
    assert trainer.global_step == 6
    (line,) = incidents(said())
    assert "the batch could not be run again to find the operation (RuntimeError('a second\\ntime'))" in line


def test_the_trace_names_what_anomaly_mode_names(said):
    """And an Inf as well, which anomaly mode does not look for."""
    module = Planted(hidden_root)
    with (
        pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),
        pytest.raises(RuntimeError, match="SqrtBackward0"),
    ):
        make_trainer([], 6, detect_anomaly=True).fit(module)
    fit(Planted(hidden_root), [NonFiniteGuard("skip", trace=True)], 6)
    assert "SqrtBackward0" in traced(incidents(said())[0])


# ---------------------------------------------------------------- who may use it


class ByHand(TwoNets):
    """The first of its losses is divided by 0 in one batch; what it is run with again takes no step."""

    def loss(self, net: nn.Module, step: int) -> Tensor:
        loss = super().loss(net, step)
        return loss / 0 if step == BAD else loss


def test_manual_optimization_is_refused_without_a_callable():
    module = ByHand(ADAM, ADAM)
    with pytest.raises(MisconfigurationException, match=r"NonFiniteGuard\(trace=True\) cannot run a batch again here"):
        fit(module, [NonFiniteGuard("skip", trace=True)], 4)


def test_manual_optimization_takes_a_callable(said):
    guard = NonFiniteGuard("skip", trace=lambda module, batch: module.loss(module.net, int(batch)))
    module = ByHand(ADAM, ADAM)
    trainer = fit(module, [guard], -1, max_epochs=1)
    (line,) = incidents(said())
    assert "operation div in ByHand itself" in line
    assert trainer.global_step == 14
    assert all(one.isfinite().all() for one in weights(module))


def test_a_callable_may_return_a_mapping(said):
    guard = NonFiniteGuard("skip", trace=lambda module, batch: {"loss": Planted.training_step(module, batch, 0)})
    fit(Planted(by_zero), [guard], 6)
    assert wanted("forward", "div") in traced(incidents(said())[0])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "the batch gave no loss when it was run again"),
        (torch.tensor(1.0), "the loss does not depend on any parameter"),
    ],
)
def test_a_callable_that_gives_no_loss(answer, words, said):
    fit(Planted(by_zero), [NonFiniteGuard("skip", trace=lambda *_: answer)], 6)
    assert words in incidents(said())[0]


@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_what_is_neither_a_flag_nor_a_callable_is_refused(wrong):
    with pytest.raises(TypeError, match="`trace` must be True, False, or a callable"):
        NonFiniteGuard(trace=wrong)


def test_nothing_is_kept_without_it():
    kept = []

    class Look(Plant):
        def on_train_batch_end(self, trainer, *_):
            kept.append([micro.batch for micro in trainer.callbacks[0]._window.micros])

    for guard in (NonFiniteGuard(), NonFiniteGuard(trace=True)):
        fit(Planted(root), [guard, Look({})], 2)
    assert kept[:2] == [[None], [None]]
    assert [one.item() for (one,) in kept[2:]] == [0.0, 1.0]
    same_bits(kept[2][0], torch.zeros(1, 1))
