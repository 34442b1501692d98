"""A GAN draws handwritten digits: manual optimization, two optimizers, and a clip for one of them.

python examples/vision_gan.py                     scikit-learn's 8x8 digits: nothing to download
python examples/vision_gan.py --clip generator    clip the generator, not the discriminator (or the other one, or both)
python examples/vision_gan.py --fast              a few seconds, to see that everything works
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import itertools
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard

SEED = 1  # of the weights, the noise and the order of the images
EPOCHS = 100  # of 22 batches; each batch takes one step of either optimizer
FAST_EPOCHS = 25
LOG_EVERY = 10  # batches between two points of a chart
BATCH_SIZE = 64
NOISE = 16  # numbers that the generator turns into an image
WIDTH = 128  # hidden units
LR = 4e-3  # twenty times the usual 2e-4: good drawings within seconds, and a game that is less stable
BETAS = (0.5, 0.9)  # less momentum than Adam's default, as is usual for GANs
MAX_NORM = 1.0  # where the clipped network's gradient is cut
JUDGE_STEPS = 300  # of the small classifier whose features are compared
FEATURES = 32  # of that classifier


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with leaky ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


class GAN(LightningModule):
    """The non-saturating game: each network is told by the other one what to do better."""

    def __init__(self, pixels: int, lr: float):
        super().__init__()
        self.automatic_optimization = False  # two optimizers and two losses in one step
        self.lr = lr
        self.generator = nn.Sequential(perceptron(NOISE, WIDTH, WIDTH, pixels), nn.Tanh())
        self.discriminator = perceptron(pixels, WIDTH, WIDTH, 1)

    def forward(self, count: int) -> Tensor:
        return self.generator(torch.randn(count, NOISE, device=self.device))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        of_generator, of_discriminator = self.optimizers()
        fake = self(len(real))

        self.toggle_optimizer(of_discriminator)
        softplus = nn.functional.softplus
        loss = softplus(-self.discriminator(real)).mean() + softplus(self.discriminator(fake.detach())).mean()
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)

        self.toggle_optimizer(of_generator)
        generator_loss = softplus(-self.discriminator(fake)).mean()
        of_generator.zero_grad()
        self.manual_backward(generator_loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)
        self.log_dict({"train/discriminator": loss, "train/generator": generator_loss}, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        # In this order the charts of the generator end in /0, those of the discriminator in /1.
        return [torch.optim.Adam(one.parameters(), self.lr, BETAS) for one in (self.generator, self.discriminator)]


def callbacks(options: argparse.Namespace) -> list[Callback]:
    """What --calibrate and --clip ask for."""
    # Globs on parameter names; None leaves alone. By default {"generator.*": 1.0, "discriminator.*": None}.
    networks = ("generator", "discriminator")
    rules = {f"{name}.*": MAX_NORM if options.clip in (name, "both") else None for name in networks}
    clip = GradientClip(None, rules=rules)
    chosen: dict[str, list[Callback]] = {
        "none": [],
        "monitor": [GradientMonitor()],
        "clip": [clip, GradientMonitor()],
        "full": [NonFiniteGuard("skip"), clip, GradientMonitor()],
    }
    return chosen[options.calibrate]


def judge(images: Tensor, labels: Tensor) -> nn.Sequential:
    """A classifier of digits; its last hidden layer is what images are compared by."""
    network = nn.Sequential(perceptron(images.shape[1], 64, FEATURES), nn.ReLU(), nn.Linear(FEATURES, 10))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(JUDGE_STEPS):
        chosen = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return network.requires_grad_(False)


def frechet(one: Tensor, other: Tensor) -> float:
    """Distance of two normal distributions: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)); 0 if they are the same."""
    one, other = one.double(), other.double()
    values, vectors = torch.linalg.eigh(one.T.cov())
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ other.T.cov() @ root).clamp(min=0).sqrt().sum()
    spread = one.T.cov().trace() + other.T.cov().trace() - 2 * shared
    return float((one.mean(0) - other.mean(0)).square().sum() + spread)


def compare(model: GAN, train: Tensor, labels: Tensor, test: Tensor) -> dict[str, float]:
    """How far drawings, noise and real digits are from digits that nobody has seen; how many kinds are drawn."""
    network = judge(train, labels)
    noise = (train.mean(0) + train.std(0) * torch.randn(len(train), train.shape[1])).clamp(-1, 1)
    with torch.no_grad():
        drawn = model.eval()(len(train))
    there = network[:2](test)
    distance = {
        key: frechet(network[:2](images), there)
        for key, images in {"frechet": drawn, "baseline": noise, "real": train}.items()
    }
    return distance | {"largest_class": float(network(drawn).argmax(1).bincount().max()) / len(drawn)}


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
    add("--clip", choices=["generator", "discriminator", "both"], default="generator", help="which network is clipped")
    add("--lr", type=float, default=LR, help="of both networks")
    add("--epochs", type=int, default=EPOCHS, metavar="N")
    add("--seed", type=int, default=SEED)
    add("--log-dir", default="lightning_logs", metavar="DIR")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, compares, and says what the gradients did."""
    options = parse(argv)
    seed_everything(options.seed)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.data).float() / 8 - 1, torch.from_numpy(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    train, test = order[359:], order[:359]
    # The images are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    trainer = Trainer(
        max_epochs=FAST_EPOCHS if options.fast else options.epochs,
        log_every_n_steps=LOG_EVERY,
        logger=TensorBoardLogger(options.log_dir, name="vision_gan", default_hp_metric=False),
        callbacks=callbacks(options),
        enable_checkpointing=False,
        devices=1,  # too little work to share
    )
    model = GAN(images.shape[1], options.lr)
    trainer.fit(model, DataLoader(TensorDataset(images[train]), BATCH_SIZE, shuffle=True, drop_last=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # the same judge for every run
        result = compare(model.cpu(), images[train], labels[train], images[test])
    drawings = model(64).detach().reshape(8, 8, 8, 8).transpose(1, 2).reshape(1, 64, 64)
    trainer.logger.experiment.add_image("drawings", (drawings + 1) / 2, trainer.global_step)
    print(f"frechet distance {result['frechet']:.2f} (trivial baseline: noise per pixel {result['baseline']:.2f})")
    print(f"real digits are at {result['real']:.2f}; most drawn digit: {result['largest_class']:.0%} of the drawings")
    if options.fast and result["frechet"] > result["baseline"]:
        print("--fast is too short to reach the trivial baseline; it is there to see that everything works.")
    for monitor in (one for one in trainer.callbacks if isinstance(one, GradientMonitor)):
        print(monitor.summary())
    print(f"to see the charts: {tensorboard_command(options.log_dir)}")
    return result


if __name__ == "__main__":
    main()
