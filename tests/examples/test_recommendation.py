"""The recommender beats popularity, the clip bounds its tables' rows, and both formats are read."""

import math

import pytest
import torch
from helpers.run_example import example as example_module
from helpers.write_ratings import lines, write_csv, write_dat, write_tabs
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard


@pytest.fixture(scope="module")
def data():
    return example_module("recommendation_data")


@pytest.fixture(scope="module")
def recommendation():
    return example_module("recommendation")


# ---- the run ----


def test_the_fast_run_beats_popularity_and_reports(recommendation, capsys):
    result = recommendation.main(["--fast"])
    output = capsys.readouterr().out.splitlines()
    assert result["recall"] > result["baseline"] + 0.02
    assert result["ndcg"] > result["baseline_ndcg"] + 0.02
    assert result["rmse"] < result["mean_rmse"]
    assert any(line.startswith("test/rmse ") and "(trivial baseline: biases " in line for line in output)
    assert any(
        line.startswith("test/recall@10 ") and "(trivial baseline: what is popular lately " in line for line in output
    )
    assert any("users have one training rating. Of " in line for line in output)
    assert any("GradientClip reduced" in line for line in output)
    assert output[-1].startswith("to see the charts: ")
    assert output[-1].endswith("--logdir lightning_logs")
    assert result["first_decile_after"] < result["first_decile_before"] - 0.02
    for name in ("before", "after"):
        (told,) = (line for line in output if line.strip().startswith(f"{name} the callbacks: "))
        shares = [float(share.rstrip("%")) for share in told.split(": ")[1].split()]
        assert len(shares) == 10
        assert sum(shares) == pytest.approx(100, abs=0.6)  # ten numbers rounded to a tenth


@pytest.mark.slow
def test_every_way_to_calibrate_returns_the_same_metrics_and_only_the_clip_bears_the_learning_rate(
    recommendation, capsys
):
    results = {
        way: recommendation.main(["--fast", "--epochs", "1", "--calibrate", way]) for way in ("none", "monitor", "clip")
    }
    assert all(result.keys() == results["none"].keys() for result in results.values())
    assert math.isnan(results["none"]["rmse"])
    assert math.isnan(results["monitor"]["rmse"])
    assert math.isfinite(results["clip"]["rmse"])
    assert capsys.readouterr().out.count("The weights are not finite: --lr is too high without a clip") == 2


@pytest.mark.slow
def test_a_lower_rate_needs_no_clip(recommendation, capsys):
    result = recommendation.main(["--fast", "--calibrate", "none", "--lr", "50"])
    assert result["recall"] > result["baseline"]
    assert result["first_decile_before"] == result["first_decile_after"]
    assert "not finite" not in capsys.readouterr().out


def test_each_word_of_the_command_line_brings_its_callbacks(recommendation):
    kinds = {
        way: [type(one) for one in recommendation.callbacks(way, torch.arange(20))[1:-1]]
        for way in ("none", "monitor", "clip", "full")
    }
    assert kinds["none"] == []
    assert kinds["monitor"] == [GradientMonitor]
    assert kinds["clip"] == [GradientClip, GradientMonitor]
    assert kinds["full"] == [NonFiniteGuard, GradientClip, GradientMonitor]


class Rows(Callback):
    """Keeps the row norms of the item table's gradient, and the norm of the dense gradients."""

    def __init__(self):
        self.rows, self.dense = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if isinstance(optimizer, torch.optim.SGD):
            for table in (pl_module.user_table, pl_module.item_table):
                assert table.weight.grad.is_sparse
                self.rows.append(table.weight.grad.coalesce().values().norm(dim=1))
        else:
            self.dense.append(torch.cat([one.grad.flatten() for one in optimizer.param_groups[0]["params"]]))


def test_the_clip_bounds_every_row_of_the_sparse_tables_and_nothing_else(recommendation, data):
    train, _, users, items = data.load(None)
    popularity = data.Popularity(train, users, items)
    model = recommendation.Recommender(popularity, users, items)
    before, after = Rows(), Rows()
    trainer = Trainer(
        callbacks=[before, recommendation.callbacks("clip", popularity.counts)[1], after],
        max_steps=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(*train), 256))
    bound = recommendation.MAX_ROW_NORM
    loose, tight = torch.cat(before.rows), torch.cat(after.rows)
    assert (loose > bound).any()
    assert (loose < bound).any()
    assert tight.max() <= bound * (1 + 1e-5)  # float32
    torch.testing.assert_close(tight[loose < bound], loose[loose < bound], atol=0, rtol=0)
    torch.testing.assert_close(after.dense, before.dense, atol=0, rtol=0)


# ---- the parts ----


def test_ranks_are_those_of_a_loop(recommendation, data):
    torch.manual_seed(0)
    scores, seen, wanted = torch.randn(6, 40), torch.rand(6, 40) < 0.3, torch.rand(6, 40) < 0.2
    wanted &= ~seen
    sizes = wanted.sum(1) + 2  # two test items that training does not have: they cannot be found
    recall, ndcg = data.rank(scores, seen, wanted, sizes)
    for user in range(6):
        order = [i for i in scores[user].argsort(descending=True).tolist() if not seen[user, i]][:10]
        hits = [bool(wanted[user, i]) for i in order]
        ideal = sum(1 / math.log2(place + 2) for place in range(min(10, int(sizes[user]))))
        assert float(recall[user]) == pytest.approx(sum(hits) / int(sizes[user]))
        gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
        assert float(ndcg[user]) == pytest.approx(gain / ideal, rel=1e-5)


def test_what_users_have_rated_is_marked_and_the_unknown_is_not(data):
    ratings = data.Ratings(torch.tensor([4, 1, -1, 4, 2]), torch.tensor([0, 2, 1, -1, 1]), torch.ones(5))
    marks = data.rated(torch.tensor([1, 4]), ratings, 3)
    assert marks.tolist() == [[False, False, True], [True, False, False]]


def test_biases_are_means_that_start_at_nothing(data):
    means = data.damped_mean(torch.tensor([0, 0, 2]), torch.tensor([3.0, 4.0, -11.0]), 4)
    torch.testing.assert_close(means, torch.tensor([7 / 12, 0, -1, 0]))


# ---- the loader: what it takes ----


def test_ratings_are_split_by_time_and_only_the_past_is_known(data, tmp_path):
    rows = lines()
    write_dat(
        tmp_path, [*rows[::-1], "new::i1::5::5000", "u1::unseen::6::5001"]
    )  # 42 ratings: the last 4 are the test's
    train, test, users, items = data.load(tmp_path)
    assert (users, items, len(train.users), len(test.users)) == (5, 8, 38, 4)
    assert train.values.tolist() == [float(i % 10 + 1) for i in range(38)]
    assert test.users.tolist() == [3, 4, -1, 1]
    assert test.items.tolist()[2:] == [1, -1]


@pytest.mark.parametrize("header", ["userId,movieId,rating,timestamp", "rating,when_time,user,item"])
def test_csv_columns_are_found_by_their_names(data, tmp_path, header):
    names = [next(word for word in ("user", "rating", "time", "i") if word in name) for name in header.split(",")]
    rows = [dict(zip(("user", "i", "rating", "time"), line.split("::"), strict=True)) for line in lines()]
    write_csv(tmp_path, [",".join('"' + row["i"] + '"' if n == "i" else row[n] for n in names) for row in rows], header)
    write_dat(tmp_path / "..", lines())
    wanted = data.load((tmp_path / "..").resolve())
    for half, expected in zip(data.load(tmp_path)[:2], wanted[:2], strict=True):
        torch.testing.assert_close(tuple(half), tuple(expected))


def test_the_tabs_of_movielens_100k_are_read(data, tmp_path):
    write_dat(tmp_path / "..", lines())
    write_tabs(tmp_path, lines())
    (tmp_path / "u.item").write_bytes(b"1|Toy Story (1995)|01-Jan-1995||caf\xe9\n")  # as it lies beside
    wanted = data.load((tmp_path / "..").resolve())
    for half, expected in zip(data.load(tmp_path)[:2], wanted[:2], strict=True):
        torch.testing.assert_close(tuple(half), tuple(expected))


@pytest.mark.parametrize("name", ["ratings.dat", "ratings.csv", "u.data", "ratings_small.csv"])
def test_a_file_may_stand_in_place_of_its_folder(data, tmp_path, name):
    write_dat(tmp_path, lines())
    wanted = data.load(tmp_path)
    write_tabs(tmp_path, lines())
    path = write_csv(tmp_path, [line.replace("::", ",") for line in lines()])
    if name == "ratings_small.csv":
        path.rename(tmp_path / name)
    for half, expected in zip(data.load(tmp_path / name)[:2], wanted[:2], strict=True):
        torch.testing.assert_close(tuple(half), tuple(expected))


def test_line_ends_and_the_byte_order_mark_of_other_systems_are_read(data, tmp_path):
    (tmp_path / "ratings.dat").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines(), ""]).encode())
    train, _, users, _ = data.load(tmp_path)
    assert (len(train.users), users) == (36, 5)
