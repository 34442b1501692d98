"""A script: fits on two processes, with something bad on rank 1 only, and leaves what each rank has seen in files."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from typing import Any

import torch
from helpers.poisoned_batches import ADAM, FUSED, MOMENTUM, Micro, Unmoved, everything
from helpers.tiny_modules import data, fit, scaled, weights
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from lightning_calib import NonFiniteGuard, SpikeGuard, ZClip

BAD = (3, 6)


def normalised() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class Ranked(Micro):
    """Each rank has its own data; ``how`` says what happens on rank 1 in the bad steps."""

    how = "loss"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.planted = Planted()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        rank, bad = self.trainer.global_rank, batch_idx in self.bad
        x, y = data(1000 * rank + batch_idx)
        if bad and rank == 1 and self.how == "input":
            x[2, 0] = math.inf
        out = self.net(x)
        if self.how in ("forward", "backward"):
            self.all_gather(out.detach().mean())  # the ranks wait for each other in every step
            out = self.planted(out, bad and rank == 1, root=self.how == "backward")
        if bad and rank == 1 and self.how == "gradient":  # the loss stays finite
            out.register_hook(lambda grad: grad * math.nan)
        loss = nn.functional.mse_loss(out, y)
        if bad and rank == 1 and self.how == "detached":
            return loss + math.nan
        return loss * math.nan if bad and rank == 1 and self.how == "loss" else loss


class Planted(nn.Module):
    """Divides by 0, or takes the root of 0."""

    def forward(self, x: Tensor, bad: bool, *, root: bool) -> Tensor:
        zero = x * 0
        if root:
            return x + (zero if bad else zero + 1).sqrt()
        return x / (zero if bad else zero + 1)


SCENES = {
    "loss": ("loss", ADAM, {}),
    "input": ("input", MOMENTUM, {}),
    "gradient": ("gradient", ADAM, {}),
    "accumulated": ("loss", MOMENTUM, {"accumulate_grad_batches": 2}),
    "scaler": ("loss", ADAM, {"scaler": True}),
    "fused": ("loss", FUSED, {"scaler": True}),
    "limit": ("loss", ADAM, {}),
    "forward": ("forward", ADAM, {}),
    "backward": ("backward", ADAM, {"accumulate_grad_batches": 2}),
    "detached": ("detached", ADAM, {}),
    "detached, SpikeGuard": ("detached", ADAM, {}),
}


def play(scene: str) -> None:
    """One scene; each rank saves what it ends with."""
    how, optimizer, parts = SCENES[scene]
    module = Ranked(optimizer, range(10), net=normalised)
    module.how, module.bad = how, range(2, 10) if scene == "limit" else BAD
    traces = scene in ("forward", "backward")
    guard = NonFiniteGuard("skip", max_consecutive=2, save_batch_to=f"{scene}/bad", trace=traces)
    watch = Unmoved()
    if parts.pop("scaler", False):
        parts["plugins"] = scaled(2.0**6)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=False)
    company = [watch, guard, ZClip(warmup_steps=2), Leave(scene, watch, guard)]
    company += [SpikeGuard()] if "SpikeGuard" in scene else []
    try:
        fit(module, company, -1, max_epochs=1, strategy=strategy, devices=2, use_distributed_sampler=False, **parts)
    except ProcessRaisedException as error:
        print("RAISED", *[line for line in str(error).splitlines() if "NonFiniteGradientError: " in line])


class Leave(Callback):
    """Saves what a rank ends with."""

    def __init__(self, scene: str, watch: Unmoved, guard: NonFiniteGuard) -> None:
        self.scene, self.watch, self.guard = scene, watch, guard

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {
            "moved": [moved for (moved,) in self.watch.moved],
            "scales": self.watch.scales,
            "weights": weights(pl_module),
            "buffers": [buffer.clone() for buffer in pl_module.buffers()],
            "optimizer": everything(trainer)[0][1],
            "guard": self.guard.state_dict()["optimizers"]["0"],
        }
        torch.save(found, f"{self.scene}/rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning_calib").setLevel(logging.WARNING)
    logging.basicConfig(format="SAID %(message)s", stream=sys.stdout)
    for name in sys.argv[1:]:
        print("SCENE", name, flush=True)
        play(name)
