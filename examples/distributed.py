"""Several processes, one line of callbacks: the same run under DDP (whole copies) or FSDP2 (sharded parameters).

python examples/distributed.py --accelerator cpu --devices 2                     two processes on this machine
python examples/distributed.py --accelerator cpu --devices 2 --strategy fsdp2    with parameters cut in two
python examples/distributed.py --accelerator cpu --devices 2 --spoil             a NaN on the last process only
python examples/distributed.py --accelerator cpu --devices 2 --fast              a few seconds

distributed.md has the commands for several machines.
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_calib import GradientMonitor, NonFiniteGuard, ZClip

SEED = 1  # of the weights and the order of the images; every process starts from the same
EPOCHS = 15
FAST_EPOCHS = 3
LOG_EVERY = 5  # steps between two points of a chart
BATCH_SIZE = 32  # of each process: two of them take steps of 64 images
WIDTH = 256
LR = 0.1
TEST = 360  # of 1,797 images; divides by 2, 3, 4, 5, 6 and 8, so that no process has to pad its share
SPOILT_STEP = 8  # with --spoil
CLASSES = 10


class Perceptron(LightningModule):
    """Two hidden layers, each of which is sharded by itself."""

    def __init__(self, shard: bool, spoil: bool):
        super().__init__()
        self.shard, self.spoil = shard, spoil
        hidden = [nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU()) for inputs in (64, WIDTH)]
        self.net = nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def configure_model(self) -> None:
        if self.shard:
            mesh = self.device_mesh["data_parallel"]
            for layer in (*self.net, self.net):  # the layers first, then what is left
                fully_shard(layer, mesh=mesh)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        last = self.trainer.global_rank == self.trainer.world_size - 1
        if self.spoil and last and self.global_step == SPOILT_STEP:
            self.spoil = False
            return loss * torch.nan
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.accuracy(self.net(batch[0]), batch[1])
        self.log("val/accuracy", self.accuracy, prog_bar=True)  # torchmetrics adds up over the processes

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)


def callbacks(calibrate: str) -> list[Callback]:
    """What --calibrate asks for: nothing in it knows how many processes there are."""
    chosen: dict[str, list[Callback]] = {
        "none": [],
        "monitor": [GradientMonitor()],
        "clip": [ZClip(), GradientMonitor()],
        "full": [NonFiniteGuard("skip"), ZClip(), GradientMonitor()],
    }
    return chosen[calibrate]


def strategy(options: argparse.Namespace) -> Strategy:
    """DDP, or FSDP2 over all processes of all machines."""
    if options.strategy == "ddp":
        return DDPStrategy()
    return ModelParallelStrategy(
        data_parallel_size=options.devices * options.num_nodes,  # by itself it would take the number of machines
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Scikit-learn's 8x8 digits, which need no download, for training and for testing."""
    found = load_digits()
    images, labels = torch.from_numpy(found.data).float() / 16, torch.from_numpy(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    parts = order[TEST:], order[:TEST]
    return tuple(TensorDataset(images[part], labels[part]) for part in parts)


def nearest_mean(train: TensorDataset, test: TensorDataset) -> float:
    """The trivial baseline: each test image gets the class whose mean training image is nearest."""
    means = torch.stack([train.tensors[0][train.tensors[1] == c].mean(0) for c in range(CLASSES)])
    return float((torch.cdist(test.tensors[0], means).argmin(1) == test.tensors[1]).float().mean())


def tensorboard_command(logs: str) -> str:
    """Returns a line for the shell that works from this folder, be the environment activated or not."""
    program = shutil.which("tensorboard", path=os.path.dirname(sys.executable)) or "tensorboard"
    inside = program.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(program) if inside else program, "--logdir", logs])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--fast", action="store_true", help="train for a few seconds only")
    add("--calibrate", choices=["none", "monitor", "clip", "full"], default="full", help="how many of the callbacks")
    add("--strategy", choices=["ddp", "fsdp2"], default="ddp", help="whole copies, or sharded parameters")
    add("--devices", type=int, default=2, metavar="N", help="processes on each machine, one per device")
    add("--num-nodes", type=int, default=1, metavar="N", help="machines")
    add("--accelerator", default="auto", metavar="NAME", help="cpu, gpu or auto")
    add("--spoil", action="store_true", help=f"make the loss of one process NaN in step {SPOILT_STEP}")
    add("--epochs", type=int, default=EPOCHS, metavar="N")
    add("--seed", type=int, default=SEED)
    add("--log-dir", default="lightning_logs", metavar="DIR")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, tests, and says what the gradients did."""
    options = parse(argv)
    seed_everything(options.seed)
    # The images are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    train, test = digits()
    trainer = Trainer(
        strategy=strategy(options),
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        max_epochs=FAST_EPOCHS if options.fast else options.epochs,
        log_every_n_steps=LOG_EVERY,
        logger=TensorBoardLogger(options.log_dir, name="distributed", default_hp_metric=False),
        callbacks=callbacks(options.calibrate),
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    model = Perceptron(shard=options.strategy == "fsdp2", spoil=options.spoil)
    trainer.fit(model, DataLoader(train, BATCH_SIZE, shuffle=True, drop_last=True), DataLoader(test, BATCH_SIZE))
    result = {"accuracy": float(trainer.callback_metrics["val/accuracy"]), "baseline": nearest_mean(train, test)}
    summaries = [one.summary() for one in trainer.callbacks if isinstance(one, GradientMonitor)]
    if trainer.is_global_zero:
        print(f"val/accuracy {result['accuracy']:.4f} (trivial baseline: nearest class mean {result['baseline']:.4f})")
        finite = bool(trainer.callback_metrics["train/loss"].isfinite())  # a longer run helps no other
        if options.fast and finite and result["accuracy"] < result["baseline"]:
            print("--fast is too short to reach the trivial baseline; it is there to see that everything works.")
        print(*summaries, f"to see the charts: {tensorboard_command(options.log_dir)}", sep="\n")
    return result


if __name__ == "__main__":
    main()
