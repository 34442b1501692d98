"""The dashboard costs no wait and no reading on other steps, changes no run, and ends none."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.event_files import Recorded
from helpers.tiny_modules import Rows, Tiny, TwoNets, fit, same_bits, scaled, weights
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim import SGD, AdamW
from torch.utils.tensorboard import SummaryWriter

from lightning_calib import GradientClip, GradientMonitor, ZClip
from lightning_calib.functional.plan import Plan
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.weight_update import SamplePlan, WeightSample


def full():
    return GradientMonitor(3, histograms=True)


@pytest.mark.parametrize("precision", ["fp32", "scaler", "bf16"])
@pytest.mark.parametrize("fused", [False, True])
def test_training_keeps_its_bits(precision, fused):
    def one(callbacks, **kwargs):
        kwargs |= {"precision": "bf16-mixed"} if precision == "bf16" else {}
        kwargs |= {"plugins": scaled(1000.0)} if precision == "scaler" else {}
        module = Tiny(partial(AdamW, lr=1e-2, fused=fused), {5: 100.0, 7: math.inf if precision == "scaler" else 1.0})
        return fit(module, callbacks, 50, **kwargs), weights(module), torch.get_rng_state()

    torch.manual_seed(0)
    plain, wanted, random = one([])
    torch.manual_seed(0)
    watched, found, same_random = one([full()], logger=TensorBoardLogger("logs"))
    same_bits(found, wanted)
    same_bits(watched.optimizers[0].state_dict(), plain.optimizers[0].state_dict())
    assert torch.equal(random, same_random)


class Counts(Callback):
    """How often all gradients are read, and how often the host waits for a value, in each step."""

    def __init__(self, monkeypatch):
        self.reads, self.waits, self.steps = 0, 0, []
        original = torch._foreach_norm

        def read(values, *args, **kwargs):
            self.reads += len(values) == 6
            return original(values, *args, **kwargs)

        monkeypatch.setattr(torch, "_foreach_norm", read)
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, original):
        def look(tensor, *args, **kwargs):
            self.waits += not tensor.is_meta
            return original(tensor, *args, **kwargs)

        return look

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append((self.reads, self.waits))
        self.reads = self.waits = 0


@pytest.mark.parametrize("monitors", [[], ["clip"]], ids=["alone", "with a clip"])
def test_no_reading_and_no_look_more_on_other_steps(monitors, monkeypatch):
    found = []
    for layers in (False, True):
        with monkeypatch.context() as patch:
            counts = Counts(patch)
            ours = [GradientMonitor(5, layers=layers, histograms=layers), *([GradientClip(0.1)] if monitors else [])]
            fit(Tiny(), [*ours, counts], 20, logger=TensorBoardLogger("logs"), log_every_n_steps=1000)
            found.append(counts.steps[1:])
    quiet = [i for i in range(19) if (i + 1) % 5]
    assert [found[0][i] for i in quiet] == [found[1][i] for i in quiet]
    assert {reads for reads, _ in (found[1][i] for i in quiet)} == {1}
    assert [reads for reads, _ in found[0]] == [reads for reads, _ in found[1]]


def test_one_copy_to_the_host_brings_scalars_layers_and_histograms(monkeypatch):
    copies = []
    original = torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        copies.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    with monkeypatch.context() as patch:

        class Stop(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                patch.undo()

        patch.setattr(torch.Tensor, "cpu", cpu)
        fit(Tiny(), [GradientMonitor(1, histograms=True), Stop()], 7, logger=TensorBoardLogger("logs"))
    assert len(copies) == 7
    assert copies[0] > 2 * 3 * 67 + 6 * 5
    assert 6 * 5 < copies[1] < 2 * 3 * 67


TROUBLES = {
    "while writing": (SummaryWriter, "_get_file_writer"),
    "while laying out": (SummaryWriter, "add_custom_scalars"),
    "while counting": (torch.Tensor, "count_nonzero"),
}


@pytest.mark.parametrize(("owner", "name"), TROUBLES.values(), ids=TROUBLES)
def test_trouble_is_told_once_and_training_goes_on(owner, name, monkeypatch, said):
    def fails(*args, **kwargs):
        raise OSError("No space left on device")

    class Later(Callback):
        def on_train_start(self, trainer, pl_module):
            if name == "add_custom_scalars":
                patch.setattr(owner, name, fails)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 6:
                patch.setattr(
                    SummaryWriter, "add_scalar", lambda *args, **kwargs: None
                )  # Lightning's own must not fail
                patch.setattr(owner, name, fails)

    alone, watched, rows = Tiny(), Tiny(), Rows()
    fit(alone, max_steps=24)
    with monkeypatch.context() as patch:
        fit(watched, [Later(), GradientMonitor(1, histograms=True)], 24, logger=[rows, TensorBoardLogger("logs")])
    same_bits(weights(watched), weights(alone))
    assert len(rows.steps) == 24
    (line,) = [line for line in said() if "training goes on" in line]
    assert "No space left on device" in line


def test_a_state_that_is_damaged_does_not_end_the_run(said):
    fit(Tiny(), [GradientMonitor()], 10, logger=TensorBoardLogger("logs")).save_checkpoint("stopped.ckpt")
    checkpoint = torch.load("stopped.ckpt", weights_only=True)
    del checkpoint["callbacks"]["GradientMonitor"]["dashboard"]["0"]["happenings"]["usual"]
    torch.save(checkpoint, "stopped.ckpt")
    with pytest.warns(UserWarning, match="You're resuming"):
        trainer = fit(Tiny(), [GradientMonitor()], 20, logger=TensorBoardLogger("logs"), ckpt_path="stopped.ckpt")
    assert trainer.global_step == 20
    (line,) = [line for line in said() if "is damaged" in line]
    assert "`dashboard.0.happenings.usual` is missing (lost: what the Gradients tab remembers)" in line
    assert [one.step for one in Recorded("logs/lightning_logs/version_1").of("layers")] == [11, 15, 19]


def test_an_optimizer_that_is_refused_leaves_no_trace(said):
    class Bypasses(TwoNets):
        def training_step(self, batch, batch_idx):
            for optimizer, net in zip(self.optimizers(use_pl_optimizer=False), (self.net, self.other), strict=True):
                optimizer.zero_grad()
                self.manual_backward(self.loss(net, batch_idx))
                optimizer.step()

    logger = TensorBoardLogger("logs")
    fit(Bypasses(partial(SGD, lr=0.1), partial(SGD, lr=0.1)), [GradientMonitor(1)], -1, max_epochs=1, logger=logger)
    assert Recorded(logger.log_dir).of("layers") == []
    assert not [line for line in said() if "training goes on" in line]


def test_in_company_of_everything():
    logger, module = TensorBoardLogger("logs"), Tiny(gains={4: 40.0})
    clippers = [ZClip(warmup_steps=2), GradientClip(0.3, scope="unit", name="rows"), GradientClip(9.0, dry_run=True)]
    fit(module, [*clippers, full()], 12, logger=logger, accumulate_grad_batches=2)
    found = Recorded(logger.log_dir)
    assert [one.step for one in found.of("layers")] == [2, 5, 8, 11]
    assert bool((found.column("after") <= found.column("before") * (1 + 1e-6)).all())


@pytest.mark.parametrize("seen", [0, 1, 5, 4096, 5000, 10_000])
def test_quantiles_on_the_device_are_those_on_the_host(seen):
    history = NormHistory.empty(Plan.of(torch.zeros(1)))
    values = torch.rand(seen, generator=torch.Generator().manual_seed(seen))
    for i, value in enumerate(values):
        history = history.add(value if i % 7 else torch.tensor(math.nan))
    found = history.quantiles_of(0.1, 0.5, 0.9)
    if seen < 2:
        assert found.tolist() == [math.inf] * 3
    else:
        torch.testing.assert_close(found, torch.tensor(history.quantiles(0.1, 0.5, 0.9)), rtol=1e-6, atol=0)


def test_what_a_step_did_to_each_weight_adds_up_to_what_it_did_to_all():
    torch.manual_seed(0)
    tensors = tuple(torch.randn(n, 30) for n in (3, 50, 4000))
    sample = WeightSample(SamplePlan(tensors))
    sizes = [tensor.norm().item() for tensor in tensors]
    for tensor in tensors:
        tensor.mul_(1.01)
    moved = sample.moved()
    torch.testing.assert_close(moved.updates.double().norm(), moved.update.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(moved.weights[:2].double(), torch.tensor(sizes[:2]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(moved.weights[2:].double(), torch.tensor(sizes[2:]).double(), rtol=0.02, atol=0)
    torch.testing.assert_close(moved.updates / moved.weights, torch.full((3,), 0.01).double(), rtol=1e-4, atol=0)


class NoCharts(Callback):
    """The first process cannot write the charts; the others would not know."""

    def on_train_start(self, trainer, pl_module):
        trainer.logger.experiment.add_custom_scalars = self.fails

    def fails(self, *args):
        raise OSError("No space left on device")


def test_charts_that_cannot_be_written_end_no_record_for_which_other_processes_count_along(said):
    logger = TensorBoardLogger("logs")
    fit(Tiny(), [NoCharts(), GradientMonitor(1, histograms=True)], 12, logger=logger)
    found = Recorded(logger.log_dir)
    assert [one.step for one in found.of("layers")] == list(range(12))
    assert [one.step for one in found.of("hist")] == [0, 10]
    assert len([line for line in said() if "lack their charts" in line]) == 1
