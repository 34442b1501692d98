"""The ways in which a callback like ours goes wrong: what is remembered, logged, scheduled, and who else is there."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import pytorch_lightning
import torch
from helpers.newer import newer
from helpers.rate_probes import Always
from helpers.tiny_modules import Rows, fit, make_trainer, same_bits, weights
from lightning.pytorch.callbacks import Callback
from modes import models, ways
from modes.expected import RESUMED
from modes.laws import CASES
from modes.matrix import Mode, run

from lightning_calib import AutoClip, GradientClip, GradientMonitor, LearningRateControl, MaxNorm, ZClip
from lightning_calib.functional import clip_grad_

Shard, distribute_tensor = (
    newer("torch.distributed.tensor", name, "torch 2.5") for name in ("Shard", "distribute_tensor")
)

STEPS = models.BATCHES * models.EPOCHS


def test_trap_02_the_scheduler_never_sees_our_factor() -> None:
    """A factor that is put back too late stops a recursive schedule, one that is not put back compounds."""
    case = CASES["LearningRateControl"]._replace(make=partial(LearningRateControl, Always((0.5,))))
    found = run(Mode("scheduled", models.Scheduled), case)
    pure = [0.05 * 0.9**step for step in range(STEPS)]
    assert [step.rates[0] for step in found.steps] == pytest.approx(pure, rel=1e-12)
    assert [step.used[0] for step in found.steps] == pytest.approx([0.5 * rate for rate in pure], rel=1e-12)


@pytest.mark.parametrize("column", CASES)
def test_trap_03_checkpoints_load_with_weights_only(column: str) -> None:
    case = CASES[column]
    trainer = make_trainer([case.make()], 9)
    trainer.fit(models.Net(poison=models.POISON if case.guards else ()))
    trainer.save_checkpoint("nine.ckpt")
    saved = torch.load("nine.ckpt", weights_only=True)["callbacks"]
    assert (trainer.callbacks[0].state_key in saved) == case.writes


@pytest.mark.parametrize("scope", ["parameter", "unit"])
def test_trap_04_the_row_does_not_grow_with_the_model(scope: str) -> None:
    calls = []

    class Counting(Rows):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            calls.append(step)
            super().log_metrics(metrics, step)

    rows = Counting()
    fit(models.Net(), [GradientClip(0.1, scope=scope), GradientMonitor()], -1, max_epochs=2, logger=rows,
        log_every_n_steps=4)  # fmt: skip
    assert len(rows.tags) <= 12
    assert rows.steps == [3, 7, 11]
    assert calls == rows.steps, "one call per row, none in between"


@pytest.mark.parametrize(("fits", "seen"), [(ways.twice, STEPS), (ways.resumed, STEPS), (ways.after_a_test, STEPS)])
def test_trap_05_state_outlives_a_stop_and_not_a_fit(fits: Any, seen: int) -> None:
    found = run(Mode("again", models.Validated, fit=fits, quiet=RESUMED), CASES["AutoClip"])
    (callback,) = [one for one in found.trainer.callbacks if isinstance(one, AutoClip)]
    assert callback.state_dict()["optimizers"]["0"]["parts"][0]["state"]["seen"] == seen


def test_trap_09_the_axis_counts_batches_and_not_optimizers() -> None:
    rows = Rows()
    trainer = fit(models.Adversaries(), [GradientMonitor(1)], -1, max_epochs=2, logger=rows)
    assert rows.steps == list(range(STEPS))
    assert trainer.global_step == 2 * STEPS


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_trap_10_sharded_and_whole_gradients_in_one_list(mesh: Any) -> None:
    """torch refuses the mixture; that shards are summed over ranks is tested on two processes, in tests/distributed."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)]
    sharded = torch.nn.Parameter(distribute_tensor(values[0], mesh, [Shard(0)]))
    plain = torch.nn.Parameter(values[1].clone())
    sharded.grad, plain.grad = sharded.detach() * 2, plain.detach() * 2
    with pytest.raises(RuntimeError, match="mixed"):
        torch.nn.utils.clip_grad_norm_([sharded, plain], 1.0)
    report, _ = clip_grad_([sharded, plain], MaxNorm(1.0))
    total = torch.cat([2 * value.flatten() for value in values]).norm()
    assert float(report.norms) == pytest.approx(float(total), rel=1e-6)
    left = torch.cat([sharded.grad.full_tensor().flatten(), plain.grad.flatten()])
    assert float(left.norm()) == pytest.approx(1.0, rel=1e-6)


class Shared(models.Net):
    """Two groups, one tensor that is the learning rate of both."""

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        self.rate = torch.tensor(0.01)
        return torch.optim.Adam([{"params": vectors}, {"params": matrices}], lr=self.rate)


def test_trap_14_a_rate_that_groups_share_is_scaled_once() -> None:
    case = CASES["LearningRateControl"]._replace(make=partial(LearningRateControl, Always((0.5, 0.5))))
    found = run(Mode("shared", Shared), case)
    assert {rate for step in found.steps for rate in step.used} == {float(torch.tensor(0.01) * 0.5)}
    assert float(found.module.rate) == float(torch.tensor(0.01)), "the user's own tensor"


@pytest.mark.parametrize("column", CASES)
def test_trap_18_a_callback_holds_no_module_and_the_module_no_callback(column: str) -> None:
    """The Trainer puts methods of the module on every callback: pickled, they would bring the whole model along."""
    module, callback = models.Net(), pickle.loads(pickle.dumps(CASES[column].make()))
    fit(module, [callback], 4)
    assert {"log", "log_dict"} <= set(vars(callback)), "the trap is there"
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert not {"log", "log_dict"} & set(vars(twin))
    assert not [value for one in module.modules() for value in vars(one).values() if isinstance(value, Callback)]
    assert callback.state_key != CASES["GradientClip"].make().state_key or column == "GradientClip"


@pytest.mark.parametrize("column", [column for column, case in CASES.items() if case.writes])
def test_trap_19_the_other_package_is_lightning_too(column: str) -> None:
    """The same weights and rows; its base classes and its callbacks are not taken for code that changes gradients."""
    case = CASES[column]
    here = run(Mode("here"), case)
    there = run(Mode("there", ways.Foreign, fit=ways.in_the_other_package), case)
    same_bits(weights(there.module), weights(here.module))
    same_bits(there.rows.rows, here.rows.rows)


def test_trap_19_a_callback_of_the_other_package_costs_no_second_reading(said) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    between = pytorch_lightning.callbacks.Timer()
    pytorch_lightning.Trainer(
        callbacks=[ZClip(), between, GradientMonitor(1)], max_steps=3, logger=False, accelerator="cpu", **quiet
    ).fit(ways.Foreign())
    assert len([line for line in said() if line.startswith("[calib] precision")]) == 1
    assert not [line for line in said() if "reads the gradients again" in line]
