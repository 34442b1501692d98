"""Vectors of users and items in sparse tables learn to recommend: SGD with a clip per row, AdamW for the rest.

python examples/recommendation.py                    planted tastes, Zipf popularity: nothing to download
python examples/recommendation.py --data-dir PATH    ratings.dat (user::item::rating::time), ratings.csv (with a header)
                                                     or MovieLens' u.data; the file or its folder
python examples/recommendation.py --calibrate none   without the callbacks: the rows of what is popular diverge
python examples/recommendation.py --fast             a few seconds, to see that everything works

Copy recommendation_data.py, loader and baselines, along with this file.
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from recommendation_data import TOP, DataError, Popularity, Ratings, describe_cold, load, rank, rated
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard

SEED = 1  # of the weights and the order of the ratings
EPOCHS = 10
FAST_EPOCHS = 4
LOG_EVERY = 10  # steps between two points of a chart
BATCH_SIZE = 512
WIDTH = 32  # of a user's and an item's vector
TABLE_LR = 300.0  # SGD's: a row that is met once must learn from that; what is popular bears it only with a clip
DENSE_LR = 3e-3  # AdamW's
MAX_ROW_NORM = 0.003  # of one row of a table in one gradient: the row moves by 0.9 at most, with this TABLE_LR
RATING_WEIGHT = 0.3  # of the rating loss beside the matching loss
DROPOUT = 0.5  # on the vectors
HALF_TRUST = 5.0  # ratings of a user that make the vector count half: most users have fewer


class Recommender(LightningModule):
    """Popularity and biases, which are counted, and two vectors, which learn what is left to say about a pair.

    The element-wise product of a user's and an item's vector predicts the rating; the dot product, after a dense layer
    each (two towers), predicts which item of the batch is whose. Such a softmax learns log p(item | user) / p(item):
    to recommend, the log of the popularity is added.
    """

    automatic_optimization = False  # two optimizers: one for the tables, one for the rest

    def __init__(self, popularity: Popularity, users: int, items: int, table_lr: float = TABLE_LR):
        super().__init__()
        self.popularity, self.table_lr = popularity, table_lr
        self.register_buffer("user_bias", popularity.user_bias)
        self.register_buffer("item_bias", popularity.item_bias)
        self.register_buffer("trust", (popularity.activity / (popularity.activity + HALF_TRUST)).unsqueeze(1))
        self.user_table = nn.Embedding(users, WIDTH, sparse=True)
        self.item_table = nn.Embedding(items, WIDTH, sparse=True)
        for table in (self.user_table, self.item_table):
            nn.init.normal_(table.weight, std=0.1)
        self.user_tower, self.item_tower = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        for tower in (self.user_tower, self.item_tower):
            nn.init.eye_(tower.weight)
            nn.init.zeros_(tower.bias)
        self.taste = nn.Linear(WIDTH, 1, bias=False)
        self.dropout = nn.Dropout(DROPOUT)

    def rate(self, users: Tensor, items: Tensor) -> Tensor:
        product = self.dropout(self.trust[users] * self.user_table(users) * self.item_table(items))
        biases = self.popularity.mean + self.user_bias[users] + self.item_bias[items]
        return biases + self.taste(product).squeeze(1)

    def match(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of shape (len(users), len(items))."""
        user = self.trust[users] * self.user_tower(self.dropout(self.user_table(users)))
        return user @ self.item_tower(self.dropout(self.item_table(items))).T

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        users, items, values = batch
        rating_loss = functional.mse_loss(self.rate(users, items), values)
        # The batch's other items are what the user could have rated; the same item twice is not its own rival.
        same = (items[:, None] == items).fill_diagonal_(False)
        scores = self.match(users, items).masked_fill(same, -torch.inf)
        match_loss = functional.cross_entropy(scores, torch.arange(len(items), device=items.device))
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(RATING_WEIGHT * rating_loss + match_loss)
        for optimizer in optimizers:
            optimizer.step()
        self.log_dict({"train/rating_loss": rating_loss, "train/match_loss": match_loss}, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        tables = [self.user_table.weight, self.item_table.weight]
        dense = [weights for weights in self.parameters() if all(weights is not table for table in tables)]
        return [torch.optim.SGD(tables, lr=self.table_lr), torch.optim.AdamW(dense, lr=DENSE_LR)]


class PopularityShare(Callback):
    """Each popularity decile's share of the item table's squared gradient, as it is when this callback's turn comes.

    A decile is a tenth of the items. Logs share/<name>_decile_<1 to 10> once per epoch.
    """

    def __init__(self, name: str, counts: Tensor):
        self.name = name
        self.decile = torch.empty_like(counts)
        self.decile[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts)) * 10 // len(counts)
        self.epoch, self.run = torch.zeros(10), torch.zeros(10)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradient = pl_module.item_table.weight.grad
        if isinstance(optimizer, torch.optim.SGD) and gradient is not None:
            gradient = gradient.coalesce()
            squares = gradient.values().square().sum(1)
            self.epoch.index_add_(0, self.decile[gradient.indices()[0].cpu()], squares.cpu())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shares = self.epoch / self.epoch.sum()
        pl_module.log_dict({f"share/{self.name}_decile_{i + 1}": share for i, share in enumerate(shares)})
        self.epoch, self.run = torch.zeros(10), self.run + self.epoch


@torch.no_grad()
def evaluate(model: Recommender, train: Ratings, test: Ratings, items: int) -> dict[str, float]:
    """Returns the metrics, of the model and of popularity, over users and items that training has seen."""
    model.eval()
    popular, everything = model.popularity.recent.log(), torch.arange(items)
    users, sizes = test.users[test.users >= 0].unique(return_counts=True)
    ours, theirs = [], []
    for chunk, count in zip(users.split(512), sizes.split(512), strict=True):
        seen, wanted = (rated(chunk, ratings, items) for ratings in (train, test))
        ours.append(rank(model.match(chunk, everything) + popular, seen, wanted, count))
        theirs.append(rank(popular.expand(len(chunk), -1), seen, wanted, count))
    (recall, ndcg), (popular_recall, popular_ndcg) = (torch.cat(part, 1).mean(1).tolist() for part in (ours, theirs))
    both = (test.users >= 0) & (test.items >= 0)
    pairs, values = (test.users[both], test.items[both]), test.values[both]
    error = MeanSquaredError(squared=False)
    rmse, bias_rmse, mean_rmse = (
        float(error(answer, values))
        for answer in (
            model.rate(*pairs),
            model.popularity.rate(*pairs),
            torch.full_like(values, model.popularity.mean),
        )
    )
    return {
        "recall": recall, "baseline": popular_recall, "ndcg": ndcg, "baseline_ndcg": popular_ndcg,
        "rmse": rmse, "baseline_rmse": bias_rmse, "mean_rmse": mean_rmse,
    }  # fmt: skip


def callbacks(calibrate: str, counts: Tensor) -> list[Callback]:
    """What --calibrate asks for, between two looks at the item table's gradient."""
    chosen: list[Callback] = []
    if calibrate == "full":
        chosen.append(NonFiniteGuard("skip"))
    if calibrate in ("clip", "full"):
        # torch's clip_grad_norm_ knows neither rows nor sparse gradients; without a policy the rest is left alone.
        chosen.append(GradientClip(None, scope="unit", rules={"*_table.weight": MAX_ROW_NORM}))
    if calibrate != "none":
        chosen.append(GradientMonitor())
    return [PopularityShare("before", counts), *chosen, PopularityShare("after", counts)]


def tensorboard_command(logs: str) -> str:
    """Returns a line for the shell that works from this folder, be the environment activated or not."""
    program = shutil.which("tensorboard", path=os.path.dirname(sys.executable)) or "tensorboard"
    inside = program.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(program) if inside else program, "--logdir", logs])


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="train for a few seconds only")
    parser.add_argument("--data-dir", type=Path, metavar="PATH", help="ratings.dat, ratings.csv or u.data")
    parser.add_argument(
        "--calibrate", choices=["none", "monitor", "clip", "full"], default="full", help="which callbacks"
    )
    parser.add_argument(
        "--lr", type=float, default=TABLE_LR, help=f"learning rate of the tables (default: {TABLE_LR:g})"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help=f"default: {EPOCHS}, or {FAST_EPOCHS} with --fast")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--log-dir", default="lightning_logs", metavar="DIR")
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, recommends, and says what the gradients did."""
    parser, options = parse(argv)
    try:
        train, test, users, items = load(options.data_dir)
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

    seed_everything(options.seed)
    # The ratings are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    popularity = Popularity(train, users, items)
    model = Recommender(popularity, users, items, options.lr)
    batches = DataLoader(TensorDataset(*train), BATCH_SIZE, shuffle=True)
    trainer = Trainer(
        max_epochs=options.epochs or (FAST_EPOCHS if options.fast else EPOCHS),
        log_every_n_steps=min(LOG_EVERY, len(batches)),
        logger=TensorBoardLogger(options.log_dir, name="recommendation", default_hp_metric=False),
        callbacks=callbacks(options.calibrate, popularity.counts),
        enable_checkpointing=False,
        devices=1,  # too little work to share
    )
    trainer.fit(model, batches)
    result = evaluate(model.cpu(), train, test, items)
    print(describe_cold(train, test))
    finite = all(bool(weights.isfinite().all()) for weights in model.parameters())
    if not finite:
        print("The weights are not finite: --lr is too high without a clip per row (--calibrate clip or full).")
    before, after = (one.run / one.run.sum() for one in trainer.callbacks if isinstance(one, PopularityShare))
    print("share of the item table's squared gradient by popularity decile (most popular first):")
    for name, shares in (("before", before), ("after", after)):
        print(f"{name:>6} the callbacks: {' '.join(f'{share:6.1%}' for share in shares.tolist())}")
    print(
        f"test/rmse {result['rmse']:.4f} (trivial baseline: biases {result['baseline_rmse']:.4f}, "
        f"mean {result['mean_rmse']:.4f})"
    )
    for name, baseline in (("recall", "baseline"), ("ndcg", "baseline_ndcg")):
        print(f"test/{name}@{TOP} {result[name]:.4f} (trivial baseline: what is popular lately {result[baseline]:.4f})")
    low = result["recall"] < result["baseline"] or result["ndcg"] < result["baseline_ndcg"]
    if options.fast and finite and (low or result["rmse"] > result["baseline_rmse"]):
        print("--fast is too short to reach the trivial baseline; it is there to see that everything works.")
    for monitor in (one for one in trainer.callbacks if isinstance(one, GradientMonitor)):
        print(monitor.summary())
    print(f"to see the charts: {tensorboard_command(options.log_dir)}")
    first = {f"first_decile_{name}": float(shares[0]) for name, shares in (("before", before), ("after", after))}
    return result | first


if __name__ == "__main__":
    main()
