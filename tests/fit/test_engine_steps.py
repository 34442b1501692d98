"""Steps of an engine that keeps the gradients to itself, with a stand-in; tests/zero has DeepSpeed's own."""

from __future__ import annotations

import math
import sys
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.bare_runs import ELEMENTS, BareFit, Tab, Watches, Written
from helpers.stand_in_deepspeed import DeepSpeedEngine, module_of
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_calib.fit.run_facts import run_facts
from lightning_calib.fit.trainer_facts import trainer_clip
from lightning_calib.fit.unsupported import unsupported
from lightning_calib.functional.deepspeed import Engine, engine_in, whole_shape
from lightning_calib.steps.step_record import Phase

NORM = math.sqrt(ELEMENTS)


class EngineFit(BareFit):
    """What Lightning does under DeepSpeed: the hook is called before each call of the engine."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *callbacks: Any, manual: bool = False, processes: int = 1, **options: Any
    ) -> None:
        self.written, self.patch, self.options = Written(), monkeypatch, options
        logged = options.pop("log_every_n_steps", 1)
        super().__init__(
            callbacks or [Watches()],
            manual=manual,
            loggers=[self.written],
            strategy=self,
            log_every_n_steps=logged,
            world_size=processes,
        )

    @cached_property
    def model(self) -> DeepSpeedEngine:
        """The engine, made when the session looks for it."""
        engine = DeepSpeedEngine(self.module, **self.options)
        self.patch.setitem(sys.modules, "deepspeed", module_of(engine))
        return engine

    def micro_batch(self, value: float) -> None:
        self.model.backward(value)
        with torch.no_grad():
            for callback in self.trainer.callbacks:
                self.session.turn(callback, self.trainer.optimizers[0])
        self.model.step()

    def batch(self, value: float | None = 1.0) -> None:
        for _ in range(self.model.window):
            self.micro_batch(float(value or 0.0))
        self.end_batch()

    @property
    def only(self) -> Any:
        (run,) = self.session.runs.values()
        return run

    def values(self, tag: str) -> list[float]:
        return [row[f"calib/{tag}"] for _, row in self.written.rows if f"calib/{tag}" in row]


def test_the_norm_is_the_engines_and_the_step_is_told_of_when_it_is_over(monkeypatch) -> None:
    fit = EngineFit(monkeypatch)
    fit.batch(1.0)
    fit.micro_batch(2.0)
    assert fit.only.record.phase is Phase.JUDGED
    assert fit.only.record.norm_before is None
    fit.end_batch()
    assert fit.values("grad_norm_before") == pytest.approx([NORM, 2 * NORM])
    assert fit.values("grad_norm_after") == pytest.approx([NORM, 2 * NORM])
    assert fit.values("update_norm") == pytest.approx([0.1 * NORM, 0.2 * NORM])
    assert fit.values("lr") == pytest.approx([0.1, 0.1])
    assert fit.only.memory.steps.steps == 2


def test_micro_batches_before_the_end_of_a_window_are_no_steps(monkeypatch) -> None:
    fit = EngineFit(monkeypatch, window=3)
    for _ in range(2):
        fit.micro_batch(1.0)
        assert fit.only.record.phase is Phase.RESTING
        fit.session.end_batch()
    assert fit.written.rows == []
    fit.micro_batch(4.0)
    fit.end_batch()
    assert fit.values("grad_norm_before") == pytest.approx([2 * NORM])


def test_tensors_are_read_on_logged_steps_only(monkeypatch) -> None:
    tab = Tab(histograms=True)
    fit = EngineFit(monkeypatch, tab, log_every_n_steps=2)
    fit.batch(5.0)
    assert not fit.only.view.knows_tensors
    assert fit.only.tab.peak is None
    fit.micro_batch(1.0)
    assert fit.only.view.given() == [True] * 4
    torch.testing.assert_close(fit.only.view.reading().tensors, torch.tensor([6.0, 2, 2, 1]).sqrt())
    fit.end_batch()
    assert fit.values("grad_norm_before") == pytest.approx([NORM])
    assert fit.values("grad_norm_max") == pytest.approx([5 * NORM])
    assert tab.told == []


def test_the_facts_say_that_an_engine_has_the_gradients(monkeypatch) -> None:
    trainer, module = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), BoringModel()
    (without,) = BareFit([Watches()]).session.runs.values()
    assert run_facts(trainer, module, EngineFit(monkeypatch).only.view, []).engine == "DeepSpeed"
    assert run_facts(trainer, module, without.view, []).engine == ""


def test_the_engines_clip_is_counted(monkeypatch) -> None:
    fit = EngineFit(monkeypatch, clip=2.0)
    fit.batch(0.5)
    fit.batch(4.0)
    assert str(fit.session.facts.clip) == "DeepSpeed's gradient_clipping=2"
    assert fit.values("clip_threshold") == [2.0, 2.0]
    assert fit.values("clip_fraction") == [0.0, 1.0]
    assert fit.values("grad_norm_after") == pytest.approx([0.5 * NORM, 2.0])
    assert fit.values("update_norm") == pytest.approx([0.05 * NORM, 0.2])


def test_a_module_that_clips_by_itself_is_not_asked(monkeypatch) -> None:
    fit = EngineFit(monkeypatch)
    fit.module.configure_gradient_clipping = lambda *_: None  # Lightning says that it does nothing
    assert trainer_clip(fit.trainer, fit.module) == (None, 0.0, True)


@pytest.mark.parametrize(("half", "bad"), [(False, 1), (True, 0)])
def test_a_step_that_the_engine_drops_was_not_taken(monkeypatch, half, bad) -> None:
    """Where the losses are scaled, dropping steps is a part of the work."""
    fit = EngineFit(monkeypatch, half=half)
    for value in (1.0, math.inf, 1.0):
        fit.batch(value)
    steps = fit.only.memory.steps
    assert (steps.steps, steps.skipped, int(steps.nonfinite)) == (3, 1, bad)
    assert fit.values("grad_norm_before") == pytest.approx([NORM, math.inf, NORM])
    assert fit.values("grad_norm_after") == pytest.approx([NORM, NORM])
    assert fit.values("loss_scale") == ([4.0] * 3 if half else [])
    assert fit.only.view.knows_tensors, "without the scale they make up the norm"


def test_several_steps_in_a_batch_are_told_one_after_the_other(monkeypatch) -> None:
    fit = EngineFit(monkeypatch, manual=True)
    fit.micro_batch(1.0)
    fit.micro_batch(3.0)
    fit.micro_batch(2.0)
    fit.end_batch()
    assert fit.values("grad_norm_before") == pytest.approx([2 * NORM])
    assert fit.values("grad_norm_max") == pytest.approx([3 * NORM])
    assert fit.only.memory.steps.steps == 3


def test_a_checkpoint_within_the_batch_has_the_step_that_is_over(monkeypatch) -> None:
    fit = EngineFit(monkeypatch)
    fit.micro_batch(1.0)
    assert fit.session.memories_to_save()[0].steps.steps == 1
    assert fit.session.memories_to_save()[0].steps.steps == 1
    fit.end_batch()
    assert fit.only.memory.steps.steps == 1


def test_tensors_that_do_not_make_up_the_norm_are_told_of_once(monkeypatch, said) -> None:
    fit = EngineFit(monkeypatch)
    fit.batch()
    utils = sys.modules["deepspeed"].utils
    real = utils.safe_get_full_grad
    monkeypatch.setattr(utils, "safe_get_full_grad", lambda tensor: 2 * real(tensor))
    fit.batch()
    fit.batch()
    assert fit.values("grad_norm_before") == pytest.approx([NORM] * 3)
    assert len([line for line in said() if "the one that it clips by" in line]) == 1
    assert not fit.only.view.knows_tensors


def test_a_failure_to_read_ends_the_run_where_other_processes_would_wait(monkeypatch) -> None:
    alone, together = EngineFit(monkeypatch), EngineFit(monkeypatch, processes=2)
    monkeypatch.delattr(sys.modules["deepspeed"].utils, "safe_get_full_grad")
    alone.batch()
    (reason,) = alone.trainer.callbacks[0].refused
    assert reason.startswith("The gradients of SGD could not be measured: AttributeError")
    assert alone.written.rows == []
    with pytest.raises(AttributeError):
        together.batch()


@pytest.mark.parametrize(("stage", "reads"), [(1, False), (2, False), (3, True)])
def test_an_order_of_gradients_that_is_not_found_again_is_not_read(monkeypatch, stage, reads) -> None:
    engine = DeepSpeedEngine(torch.nn.Linear(2, 1), stage=stage)
    assert Engine(engine).finds_tensors
    engine.optimizer.round_robin_gradients = True
    assert Engine(engine).finds_tensors is reads


def test_tensors_that_nobody_wants_are_not_brought_together(monkeypatch) -> None:
    fit = EngineFit(monkeypatch, Watches(tensors=False))
    fit.batch()
    assert not fit.only.view.knows_tensors
    assert fit.values("grad_norm_after") == pytest.approx([NORM])


# Whose steps can be followed


def test_without_an_engine_there_is_none(monkeypatch) -> None:
    net = torch.nn.Linear(2, 1)
    assert engine_in(net) is None
    engine = DeepSpeedEngine(net)
    assert engine_in(engine) is None, "nobody has imported DeepSpeed"
    monkeypatch.setitem(sys.modules, "deepspeed", module_of(engine))
    assert isinstance(engine_in(engine), Engine)
    assert engine_in(net) is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_is_followed(monkeypatch, stage) -> None:
    engine = DeepSpeedEngine(torch.nn.Linear(2, 1), stage=stage)
    monkeypatch.setitem(sys.modules, "deepspeed", module_of(engine))
    assert Engine(engine).why_not() is None
    assert str(Engine(engine)) == f"DeepSpeed ZeRO-{stage}"


WRONG = {
    "stage": (lambda engine: setattr(engine, "stage", 0), "DeepSpeed without ZeRO finds no norm"),
    "experts": (lambda engine: setattr(engine, "has_moe_layers", True), "averages the norms of experts"),
    "no norm": (lambda engine: setattr(engine.optimizer, "compute_grad_norm", False), "`compute_grad_norm` is False"),
    "optimizer": (lambda engine: delattr(engine.optimizer, "clip_grad"), "there is no `SimpleNamespace.clip_grad`"),
    "groups": (lambda engine: delattr(engine.optimizer, "bit16_groups"), "no `SimpleNamespace.bit16_groups`"),
    "engine": (lambda engine: setattr(engine, "optimizer", None), "there is no `NoneType.clip_grad`"),
    "utils": (
        lambda engine: delattr(sys.modules["deepspeed"].utils, "safe_get_full_grad"),
        "DeepSpeed 0.0.1 is built in another way than is known here: there is no `deepspeed.utils.safe_get_full_grad`",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), WRONG.values(), ids=WRONG)
def test_what_is_not_as_known_is_told_by_name_with_the_way_out(monkeypatch, spoil, words) -> None:
    engine = DeepSpeedEngine(torch.nn.Linear(2, 1))
    monkeypatch.setitem(sys.modules, "deepspeed", module_of(engine))
    spoil(engine)
    reason = Engine(engine).why_not()
    assert reason is not None
    assert words in reason
    assert "Use FSDP2 (`ModelParallelStrategy`) or DDP." in reason
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=engine))
    assert unsupported(trainer, engine.optimizer, engine.module) == reason


def test_an_engine_without_a_known_method_is_told_of(monkeypatch) -> None:
    engine = DeepSpeedEngine(torch.nn.Linear(2, 1))
    monkeypatch.setitem(sys.modules, "deepspeed", module_of(engine))
    monkeypatch.delattr(DeepSpeedEngine, "was_step_applied")
    assert "there is no `DeepSpeedEngine.was_step_applied`" in str(Engine(engine).why_not())


def test_groups_are_the_optimizers_in_the_order_of_the_module(monkeypatch) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    engine, (a, b, c, d) = DeepSpeedEngine(net), net.parameters()
    engine.optimizer.optimizer.param_groups *= 2
    engine.optimizer.bit16_groups = [[c, a], [d]]  # one is frozen
    assert [list(map(id, group)) for group in Engine(engine).groups(net)] == [[id(a), id(c)], [id(d)]]
    engine.optimizer.bit16_groups = [[c], [d, b], [a]]  # parts of stage 3
    engine.optimizer.sub_group_to_group_id = {0: 0, 1: 1, 2: 0}
    assert [list(map(id, group)) for group in Engine(engine).groups(net)] == [[id(a), id(c)], [id(b), id(d)]]


def test_a_parameter_that_is_empty_here_has_its_whole_shape() -> None:
    tensor = torch.nn.Parameter(torch.empty(0))
    assert whole_shape(tensor) == (0,)
    tensor.ds_shape = torch.Size([3, 2])  # type: ignore[attr-defined]
    assert whole_shape(tensor) == (3, 2)
