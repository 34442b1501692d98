"""PreciseBatchNorm: training, logs, loaders and compiled code do not notice the pass."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batch_norm_models import EXACT, Net, X, fit, loader, population, statistics
from helpers.tiny_modules import different, same_bits
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import MeanMetric

from lightning_calib.callbacks.precise_batch_norm import PreciseBatchNorm

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Busy(Net):
    """Draws from every generator, keeps lists, counters, tensors, buffers and metrics, logs and plots."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 3), nn.BatchNorm1d(3)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 1))
        nn.init.constant_(self.net[2].weight, 0.1)
        self.metric, self.steps, self.outputs, self.total = MeanMetric(), 0, [], torch.zeros(())
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("wide", torch.zeros(1).expand(3))  # cannot be written to
        self.save_hyperparameters({"lr": 0.05})
        self.drawn: list[Any] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        assert self.trainer.training
        assert all(part.training for part in self.modules())
        noise = torch.rand(()).item() + random.random() + np.random.rand()
        loss = self.head(self.net(batch[0])).square().mean() * (1 + noise)
        self.steps += 1
        self.total += loss.detach()
        self.average.lerp_(batch[0].mean(0), 0.1)
        self.outputs.append(loss.detach())
        self.drawn.append((noise, batch[0]))
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"metric": self.metric}, on_step=False, on_epoch=True)
        self.metric.update(loss)
        self.logger.experiment.add_image("input", batch_idx)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("calib_outputs", float(len(self.outputs)))
        self.outputs.clear()


class Plots(Logger):
    name = version = "plots"

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []
        self.experiment = self

    def add_image(self, *args: Any) -> None:
        self.written.append(args)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.written.append((step, metrics))


class Noisy(Dataset):
    """Augments with the random numbers of the worker that reads it."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (X[index] + torch.rand(()) + random.random(),)


class Own(torch.utils.data.Sampler):
    """Shuffles with a generator of its own, and counts its epochs."""

    def __init__(self) -> None:
        self.generator, self.epochs = np.random.default_rng(3), 0

    def __len__(self) -> int:
        return 30

    def __iter__(self) -> Any:
        self.epochs += 1
        return iter(self.generator.permutation(30).tolist())


LOADERS = {
    "shuffle": lambda: loader(shuffle=True),
    "generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(5)),
    "sampler": lambda: loader(sampler=Own()),
    "batch sampler": lambda: DataLoader(
        TensorDataset(X), batch_sampler=torch.utils.data.BatchSampler(Own(), 8, drop_last=True)
    ),
    "workers": lambda: DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=1),
    "persistent workers": lambda: DataLoader(
        Noisy(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True
    ),
}


@pytest.mark.parametrize(
    ("name", "val"), [*((name, True) for name in LOADERS), ("shuffle", False), ("batch sampler", False)]
)
def test_the_same_bits_with_and_without(name, val):
    ends = []
    for callbacks in ([PreciseBatchNorm()], []):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        module, logger = Busy(), Plots()
        trainer = fit(
            module,
            *callbacks,
            train=LOADERS[name](),
            val=loader() if val else None,
            max_epochs=3,
            logger=logger,
            log_every_n_steps=1,
        )
        rng = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
        kept = [module.steps, module.outputs, module.total, module.drawn]
        ends.append((module, [logger.written, trainer.callback_metrics, rng, kept]))
        assert "log" not in vars(module)
    (module, traces), (plain, expected) = ends
    same_bits(traces, expected)
    ours, theirs = dict(module.state_dict()), dict(plain.state_dict())
    with different("the statistics are the one thing that changes"):
        same_bits(statistics(module), statistics(plain))
    for key in statistics(module):
        del ours[key], theirs[key]
    same_bits(ours, theirs)
    assert len(logger.written) > 12


def test_persistent_workers_stay_and_ours_go():
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            running = trainer.train_dataloader._iterator
            seen.append((id(running), [worker.pid for worker in running._workers]))

    before = set(torch.multiprocessing.active_children())
    fit(Net(), PreciseBatchNorm(), Watch(), train=LOADERS["persistent workers"](), max_epochs=3)
    assert len(seen) == 12
    assert seen[1:] == seen[:-1]
    assert set(torch.multiprocessing.active_children()) == before


def test_a_dictionary_of_loaders_and_a_stream_without_length():
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter([X[:8], X[8:24], X[24:]])

    class Two(Net):
        def training_step(self, batch: dict[str, Any]) -> Tensor:
            assert batch["short"][0].shape == (20, 4)
            return self.net(batch["long"]).square().mean()

    module = Two()
    streams = {"long": DataLoader(Stream(), batch_size=None), "short": loader(X[:20], batch_size=20)}
    fit(module, PreciseBatchNorm(), train=streams, max_epochs=2)
    torch.testing.assert_close(statistics(module), population(module, [(X[:8],), (X[8:24],), (X[24:],)]), **EXACT)


def test_compiled_parts_are_seen_at_every_pass_and_not_compiled_again():
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    counts = []
    for callbacks in ([PreciseBatchNorm()], []):
        torch.compiler.reset()
        module = Net()
        module.net = torch.compile(module.net, backend=backend)
        fit(module, *callbacks, train=loader(X[:24]), max_epochs=3)
        if callbacks:
            found = module.net._orig_mod[2].running_var
        counts.append(len(graphs))
    assert counts[0] > 0
    assert counts[1] == 2 * counts[0]
    plain = Net()
    fit(plain, PreciseBatchNorm(), train=loader(X[:24]), max_epochs=3)
    torch.testing.assert_close(found, statistics(plain)["net.2.running_var"], **EXACT)
