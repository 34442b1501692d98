"""Pictures of the "Gradients" tab for the documentation, from training runs of this script's own.

Trains a small transformer twice on made-up sequences (once clipped, once not; a layer that never learns, a batch of
large labels, a step with a NaN) and a network of 1,000 tensors once, starts TensorBoard on them, and takes pictures
with Chromium: `make screenshots`. Prints how long the tab took.
"""

import argparse
import math
import sys
import tempfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "tensorboard"))
from chromium import browser
from tab import Tab, served

WIDTH, VOCABULARY, LENGTH = 32, 24, 16
BAD_BATCHES, NAN = range(300, 306), 420
WIDE, BAR = 1280, 66  # pixels


class Block(nn.Module):
    """Attention and a perceptron, each with a norm before and a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Four blocks; an adapter whose output is not used, so that it never learns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) / 10)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.adapter = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x + 0.0 * self.adapter(x))


class Deep(nn.Module):
    """250 small residual layers of four tensors each."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(8), "linear": nn.Linear(8, 8)}) for _ in range(25))
            for _ in range(10)
        )

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            for layer in stage:
                x = x + torch.tanh(layer["linear"](layer["norm"](x))) / 10
        return x


class Copying(LightningModule):
    """Predict the token of three places before; some batches count a hundredfold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer()
        self.net.blocks[2].mlp[0].weight.register_hook(self.spoil)

    def spoil(self, gradient: Tensor) -> Tensor:
        return gradient * math.nan if self.global_step == NAN else gradient

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)
        tokens = torch.randint(VOCABULARY, (16, LENGTH))
        loss = nn.functional.cross_entropy(self.net(tokens)[:, 3:].flatten(0, 1), tokens[:, :-3].flatten())
        return loss * (100.0 if self.global_step in BAD_BATCHES else 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        rule = partial(warm_cosine, steps=self.trainer.max_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Following(LightningModule):
    """Regression of one half of a vector on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Deep()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)
        x = torch.randn(8, 8) * (30.0 if self.global_step in BAD_BATCHES else 1.0)
        return (self.net(x) - x.roll(1, 1)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02)


def warm_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 40) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


def train(model: LightningModule, logs: Path, name: str, steps: int, clip: float | None, histograms: bool) -> None:
    ours = [NonFiniteGuard("skip"), *([GradientClip(clip)] if clip else []), GradientMonitor(histograms=histograms)]
    logger = TensorBoardLogger(logs, name="", version=name)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = DataLoader(torch.arange(100))
    Trainer(max_steps=steps, callbacks=ours, logger=logger, log_every_n_steps=1, accelerator="cpu", **quiet).fit(
        model, data
    )


def picture(tab: Tab, path: Path, height: int, colours: int = 256) -> None:
    """The tab below TensorBoard's bar; few colours make a smaller file."""
    tab.page.size(WIDE, height + BAR)
    tab.js("d.scrollingElement.scrollTo(0, 0)")
    tab.until("!d.querySelector('.verdict.waiting')")
    tab.settle()
    tab.js("new Promise((done) => setTimeout(done, 1500))")  # histograms and unusual layers come later
    raw = path.with_suffix(".raw.png")
    tab.page.picture(raw)
    image = Image.open(BytesIO(raw.read_bytes())).convert("RGB").crop((0, BAR, WIDE, height + BAR))
    image = image.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    raw.unlink()
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def take(address: str, out: Path, profile: Path) -> None:
    spike = BAD_BATCHES[0]
    with browser(profile) as page:
        tab = Tab(page, address)
        picture(tab.open(run="clipped", step=spike), out / "gradients-light.png", 1180)
        picture(tab.open(True, run="clipped", stat="ratio", step=spike), out / "gradients-dark.png", 1180)
        tab.open(run="clipped", layer="net.blocks.2.mlp.0.weight", filter="blocks.2", zoom="250-450", step=NAN)
        picture(tab, out / "gradients-layer.png", 1060)
        picture(tab.open(run="clipped", compare="unclipped"), out / "gradients-compare.png", 1120)
        tab.open(run="thousand", depth=9)
        print({name: round(ms) for name, ms in tab.js("w.__calib.timings").items()})
        tab.click("[data-do=fit]")
        print({name: round(ms) for name, ms in tab.js("w.__calib.timings").items()})
        picture(tab, out / "gradients-thousand.png", 900, colours=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--logs", type=Path, help="keep the runs here; those that are there are not trained again")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        logs = arguments.logs or Path(scratch) / "logs"
        for name, model, steps, clip in (
            ("clipped", Copying, 600, 1.0),
            ("unclipped", Copying, 600, None),
            ("thousand", Following, 1000, None),
        ):
            if not (logs / name).exists():
                seed_everything(0)
                train(model(), logs, name, steps, clip, histograms=model is Copying)
        with served(logs) as address:
            take(address, arguments.out, Path(scratch) / "profile")


if __name__ == "__main__":
    main()
