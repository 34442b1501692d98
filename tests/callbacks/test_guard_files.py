"""`save_batch_to`: the batch as it was fed, with its number and the random states that it was drawn under."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from helpers.poisoned_batches import ADAM, Plant, every, incidents
from helpers.tiny_modules import Tiny, fit, network, same_bits, scaled
from torch import nn
from torch.utils.data import DataLoader

from lightning_calib import NonFiniteGuard

NAN = math.nan


def load(path):
    return torch.load(path, weights_only=True)


def files():
    return sorted(Path("bad").glob("*"))


class Fed(Tiny):
    """Real batches: pairs of tensors in a dict; batch number 5 holds a NaN."""

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch["x"]), batch["pair"][1])

    def train_dataloader(self):
        return DataLoader([self.item(i) for i in range(12)], batch_size=2)

    def item(self, i):
        x = torch.full((4,), float(i))
        if i == 11:
            x[2] = NAN
        return {"x": x, "pair": (i, torch.tensor([float(-i)])), "id": f"sample {i}"}


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("action", ["warn", "skip"])
def test_the_file_holds_the_batch_that_was_fed(action, precision, said):
    plugins = {"plugins": scaled(2.0**4)} if precision == "16-mixed" else {"precision": precision}
    module = Fed(ADAM)
    fit(module, [NonFiniteGuard(action, save_batch_to="bad")], 6, **plugins)
    (path,) = files()
    assert path.name == "step00000005-rank0.pt"
    saved = load(path)
    assert (saved["version"], saved["step"], saved["rank"]) == (1, 5, 0)
    ((index, batch),) = [(one["batch_idx"], one["batch"]) for one in saved["batches"]]
    assert index == 5
    same_bits(batch["x"], torch.stack([module.item(10)["x"], module.item(11)["x"]]))
    same_bits(batch["pair"], [torch.tensor([10, 11]), torch.tensor([[-10.0], [-11.0]])])
    assert batch["id"] == ["sample 10", "sample 11"]
    (line,) = incidents(said())
    assert line == f"[calib] {saved['incident']} Batch saved to {path}."


class Masked(Fed):
    """Dropout, and noise from Python's generator, whose draws are kept."""

    def __init__(self):
        super().__init__(ADAM, net=lambda: nn.Sequential(nn.Dropout(0.5), *network()))
        self.drawn = []

    def training_step(self, batch, batch_idx):
        mask = self.net[0](torch.ones_like(batch["x"]))
        self.drawn.append((mask, random.random()))
        return (self.net[1:](batch["x"] * mask)).square().mean()


def test_the_random_states_reproduce_what_the_batch_met():
    module = Masked()
    torch.manual_seed(4)
    fit(module, [NonFiniteGuard("skip", save_batch_to="bad")], 6)
    rng = load(files()[0])["batches"][0]["rng"]
    torch.set_rng_state(rng["torch"])
    version, numbers, gauss = rng["python"]
    random.setstate((version, tuple(numbers), gauss))
    mask, number = module.drawn[5]
    same_bits(nn.functional.dropout(torch.ones(2, 4), 0.5), mask)
    assert random.random() == number


def test_of_a_window_the_bad_micro_batch_is_saved():
    fit(Fed(ADAM), [NonFiniteGuard("skip", save_batch_to="bad")], 2, accumulate_grad_batches=3)
    saved = load(files()[0])
    assert [one["batch_idx"] for one in saved["batches"]] == [5]
    assert saved["step"] == 1


def test_if_no_loss_was_bad_the_whole_window_is_saved():
    plant = Plant(every("net.0.bias", [0]))
    fit(Fed(ADAM), [plant, NonFiniteGuard("skip", save_batch_to="bad")], 1, accumulate_grad_batches=3)
    assert [one["batch_idx"] for one in load(files()[0])["batches"]] == [0, 1, 2]


def test_at_most_ten_files():
    plant = Plant(every("net.0.bias", range(14)))
    fit(Tiny(ADAM), [plant, NonFiniteGuard("skip", max_consecutive=100, save_batch_to=Path("bad") / "deep")], 14)
    assert len(list(Path("bad/deep").iterdir())) == 10


def test_no_folder_before_there_is_something_to_save():
    fit(Tiny(ADAM), [NonFiniteGuard("skip", save_batch_to="bad")])
    assert not Path("bad").exists()


def test_a_folder_that_cannot_be_written_does_not_fail_the_run(said):
    Path("bad").write_text("a file")
    trainer = fit(Tiny(ADAM, {2: NAN}), [NonFiniteGuard("skip", save_batch_to="bad")])
    assert trainer.global_step == 12
    assert "The batch could not be saved to bad/step00000002-rank0.pt (" in incidents(said())[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_does_not_fail_the_run(said):
    Path("bad").mkdir()
    Path("bad/step00000002-rank0.pt").symlink_to("/dev/full")
    fit(Tiny(ADAM, {2: NAN, 4: NAN}), [NonFiniteGuard("skip", save_batch_to="bad")])
    first, second = incidents(said())
    assert "No space left on device" in first
    assert "Batch saved to bad/step00000004-rank0.pt." in second


def test_a_batch_that_fights_back_does_not_fail_the_run(said):
    loop = []
    loop.append(loop)

    class Odd(Tiny):
        def train_dataloader(self):
            return DataLoader([0] * 4, collate_fn=lambda _: loop)

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

    fit(Odd(ADAM, {1: NAN}), [NonFiniteGuard("skip", save_batch_to="bad")], 3)
    assert "could not be saved" in incidents(said())[0]
