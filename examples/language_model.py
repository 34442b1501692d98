"""A small GPT learns to predict the next byte of text; ZClip cuts the gradient spikes of a rate that is too high.

python examples/language_model.py                  the language reference inside every Python: nothing to download
python examples/language_model.py --data-dir PATH  the .txt files of a folder, or one file, UTF-8
python examples/language_model.py --fast           a few seconds, to see that everything works

Copy language_model_data.py, the loader and the baselines, along with this file.
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import math
import os
import shlex
import shutil
import statistics
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from language_model_data import SYMBOLS, DataError, count_baselines, load, windows
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler
from torchmetrics import MeanMetric

from lightning_calib import GradientMonitor, NonFiniteGuard, ZClip

SEED = 0  # of the weights and of the windows
STEPS = 1000  # optimizer steps of BATCH_SIZE x CONTEXT bytes
FAST_STEPS = 150  # with --fast: enough to beat the counts of single bytes
LOG_EVERY = 10  # steps between two points of a chart
BATCH_SIZE = 8  # windows per step
CONTEXT = 64  # bytes that the model sees
WIDTH = 64  # features per byte
LAYERS = 2
HEADS = 4
MAX_LR = 8e-3  # after the warm-up: too high: on the way up some gradients are 5 to 500 times the usual
MIN_LR_FACTOR = 0.1  # the cosine ends at this share of MAX_LR
WARMUP_STEPS = 120  # of the learning rate, rising linearly; ZClip's own 25 steps are over before it gets high
WEIGHT_DECAY = 0.1  # on matrices; vectors have none
SPIKE_WINDOW = 25  # steps; the median of their gradient norms is what is usual
SPIKE_RATIO = 5  # times the usual: a spike


class Block(nn.Module):
    """Attention to earlier bytes, then a two-layer network on each byte; both add to what they normalise (pre-norm)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, features)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))


class GPT(LightningModule):
    """Scores for the byte after each byte of a window of at most CONTEXT."""

    def __init__(self, lr: float):
        super().__init__()
        self.lr = lr
        self.symbol, self.position = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block(WIDTH, HEADS) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:  # GPT-2's: what adds to the residual stream starts smaller, the deeper the model
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS if "_out." in name else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.validation_loss = MeanMetric()
        self.recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.spikes = self.clipped = 0

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.symbol(symbols) + self.position.weight[: symbols.shape[1]]
        return functional.linear(self.norm(self.blocks(x)), self.symbol.weight)  # the head is the embedding (tied)

    def loss(self, windows: Tensor) -> Tensor:
        symbols = windows.long()
        return functional.cross_entropy(self(symbols[:, :-1]).flatten(0, 1), symbols[:, 1:].flatten())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch[0])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning asks the callbacks first: this is the gradient as the optimizer gets it.
        norm = float(nn.utils.get_total_norm([parameter.grad for parameter in self.parameters()]))
        if len(self.recent) == SPIKE_WINDOW and not norm <= SPIKE_RATIO * statistics.median(self.recent):
            self.spikes += 1
        self.recent.append(norm)

    def on_train_batch_end(self, outputs: object, batch: list[Tensor], batch_idx: int) -> None:
        if self.trainer.global_step % LOG_EVERY == 0:  # a fresh row: the share is of the steps since the last one
            self.clipped += round(LOG_EVERY * float(self.trainer.callback_metrics.get("calib/clip_fraction", 0)))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_loss(self.loss(batch[0]), batch[0][:, 1:].numel())
        self.log("val/loss", self.validation_loss, prog_bar=True)

    def configure_optimizers(self) -> dict:
        matrices, vectors = ([p for p in self.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
            cosine = MIN_LR_FACTOR + (1 - MIN_LR_FACTOR) * (1 + math.cos(math.pi * progress)) / 2
            return cosine if step >= WARMUP_STEPS else (step + 1) / WARMUP_STEPS

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def callbacks(calibrate: str) -> list[Callback]:
    """What --calibrate asks for."""
    guard, clip, monitor = NonFiniteGuard("skip"), ZClip(), GradientMonitor()
    chosen = {"none": [], "monitor": [monitor], "clip": [clip, monitor], "full": [guard, clip, monitor]}
    return chosen[calibrate]


def tensorboard_command(logs: str) -> str:
    """Returns a line for the shell that works from this folder, be the environment activated or not."""
    program = shutil.which("tensorboard", path=os.path.dirname(sys.executable)) or "tensorboard"
    inside = program.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(program) if inside else program, "--logdir", logs])


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="train for a few seconds only")
    parser.add_argument("--data-dir", type=Path, metavar="PATH", help=".txt files, also in sub-folders, or one")
    parser.add_argument(
        "--calibrate", choices=["none", "monitor", "clip", "full"], default="full", help="which callbacks"
    )
    parser.add_argument("--lr", type=float, default=MAX_LR, help="learning rate after the warm-up")
    parser.add_argument("--steps", type=int, metavar="N", help=f"optimizer steps (default {STEPS})")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--log-dir", default="lightning_logs", metavar="DIR")
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, measures the loss on the rest of the text, and says what the gradients did."""
    parser, options = parse(argv)
    try:
        train, validation = load(options.data_dir, 10 * CONTEXT)
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

    seed_everything(options.seed)
    # The text is in memory: workers would only copy it from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    steps = options.steps or (FAST_STEPS if options.fast else STEPS)
    samples = windows(train, CONTEXT, 1)
    order = RandomSampler(samples, replacement=True, num_samples=steps * BATCH_SIZE)
    trainer = Trainer(
        max_epochs=1,  # of `steps` random windows: the text is not read through
        log_every_n_steps=LOG_EVERY,
        logger=TensorBoardLogger(options.log_dir, name="language_model", default_hp_metric=False),
        callbacks=callbacks(options.calibrate),
        num_sanity_val_steps=0,
        limit_val_batches=4 if options.fast else 1.0,
        enable_checkpointing=False,
        devices=1,  # too little work to share
    )
    model = GPT(options.lr)
    held_out = DataLoader(windows(validation, CONTEXT, CONTEXT), 128)
    trainer.fit(model, DataLoader(samples, BATCH_SIZE, sampler=order), held_out)
    size = len(validation.encode()) / len(validation)  # bytes per character
    result = {"bits_per_character": float(trainer.callback_metrics["val/loss"]) / math.log(2) * size}
    result |= count_baselines(train, validation)
    result |= {"spikes": float(model.spikes), "clipped": float(model.clipped)}
    print(
        f"val/bits_per_character {result['bits_per_character']:.4f} (trivial baseline: bigrams {result['bigram']:.4f})"
    )
    print(f"unigrams {result['unigram']:.4f}; {model.clipped} steps clipped", end="; ")
    print(f"{model.spikes} steps took a gradient of more than {SPIKE_RATIO} times the usual norm")
    if options.fast and result["bits_per_character"] > result["bigram"]:
        print("--fast is too short to reach the trivial baseline; it is there to see that everything works.")
    for monitor in (one for one in trainer.callbacks if isinstance(one, GradientMonitor)):
        print(monitor.summary())
    print(f"to see the charts: {tensorboard_command(options.log_dir)}")
    return result


if __name__ == "__main__":
    main()
