"""What a fit has logged comes back from its event files, number by number, whatever the files have gone through."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.logged_fits import logged_fit
from helpers.rewrite_events import as_first_edition, event_file, rewrite
from helpers.tiny_modules import SGD, Tiny, TwoNets
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from lightning_calib import GradientClip, NonFiniteGuard, Report, ZClip, read_events
from lightning_calib.report.run import Layers, Run, Scalars
from lightning_calib.tensorboard.event_runs import runs_of
from lightning_calib.tensorboard.facts_record import parse_facts
from lightning_calib.tensorboard.refused import Refused

FLOAT32 = 1e-6  # relative: what a record rounds


def assert_same(found: Run, kept: Run) -> None:
    """The numbers from the files are those that the monitor has."""
    assert found.facts == kept.facts
    assert found.counts._replace(left=None, known=0, epochs=0) == kept.counts._replace(left=None, known=0, epochs=0)
    assert found.counts.left == pytest.approx(kept.counts.left, rel=1e-3)  # a mean of means of rows
    rows = len(found.scalars.step)
    for name in Scalars._fields:
        np.testing.assert_allclose(
            getattr(found.scalars, name), getattr(kept.scalars, name)[:rows], rtol=FLOAT32, err_msg=name
        )
    assert (found.layers is None) == (kept.layers is None)
    for name in Layers._fields if found.layers is not None else ():
        mine, theirs = getattr(found.layers, name), getattr(kept.layers, name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_allclose(mine, theirs, rtol=FLOAT32, err_msg=name)
        else:
            assert mine == theirs, name


def test_the_numbers_are_those_that_the_monitor_has() -> None:
    monitor = logged_fit(Tiny(), 40, callbacks=[GradientClip(0.5)])
    (found,), (kept,) = runs_of(read_events("logs")), monitor.report().runs
    assert_same(found, kept)
    assert found.clippers == kept.clippers
    assert Report([found]).as_dict()["findings"] == monitor.report().as_dict()["findings"]
    assert np.isfinite(found.scalars.loss).all()


def test_every_optimizer_has_its_own() -> None:
    module = TwoNets(partial(torch.optim.SGD, lr=0.1), torch.optim.AdamW)
    monitor = logged_fit(module, 40)
    found = runs_of(read_events("logs"))
    assert [one.facts.optimizer for one in found] == ["SGD", "AdamW"]
    for mine, kept in zip(found, monitor.report().runs, strict=True):
        assert_same(mine._replace(counts=kept.counts), kept)  # Lightning plans steps, and batches are what is counted


def test_a_gradient_that_is_not_finite_and_a_skipped_step_come_back() -> None:
    monitor = logged_fit(Tiny(gains={4: float("nan"), 5: float("inf")}), 20, callbacks=[NonFiniteGuard("skip")])
    (found,), (kept,) = runs_of(read_events("logs")), monitor.report().runs
    assert_same(found, kept)
    assert (found.counts.nonfinite, found.counts.skipped) == (2, 2)
    assert np.isinf(found.scalars.grad_norm_before).any()
    assert np.isnan(found.scalars.grad_norm_max[2]), "neither step of that row was finite"
    assert np.isnan(found.scalars.grad_norm_after).any()


def test_several_clippers_have_the_rates_that_a_file_knows() -> None:
    callbacks = [ZClip(), GradientClip(0.5, name="mine"), GradientClip(1e9, dry_run=True)]
    monitor = logged_fit(Tiny(), 40, callbacks=callbacks)
    found = {one.name: one for one in runs_of(read_events("logs"))[0].clippers}
    kept = {one.name: one for one in monitor.report().runs[0].clippers}
    assert found.keys() == kept.keys()
    assert found["ZClip"].clip_rate is None  # its steps are among those of both
    assert found["GradientClip(mine)"] == kept["GradientClip(mine)"]
    assert found["GradientClip"].kind == "dry"
    assert found["GradientClip"].clip_rate == 0.0


def test_layers_have_names_and_scalars_are_there_without_layers() -> None:
    logged_fit(Tiny(), 10)
    rows = read_events("logs").optimizers[0]
    assert rows.layers is not None
    assert rows.layers.names[0] == "net.0.weight"
    assert rows.layers.values["update"].shape == (5, 6)
    logged_fit(Tiny(), 10, "plain", layers=False)
    rows = read_events("plain").optimizers[0]
    assert rows.layers is None
    assert np.isfinite(rows.scalars["grad_norm_before"]).all()
    assert runs_of(read_events("plain"))[0].layers is None


def test_a_logger_with_a_prefix_is_read() -> None:
    logged_fit(Tiny(), 10, layers=False, logger=TensorBoardLogger(".", name=None, version="logs", prefix="mine"))
    assert np.isfinite(read_events("logs").optimizers[0].scalars["grad_norm_before"]).all()


def test_files_of_the_first_edition_are_read_and_what_is_unknown_is_unknown() -> None:
    logged_fit(Tiny(), 40, callbacks=[GradientClip(0.05)])
    as_first_edition(event_file(Path("logs")))
    rows = read_events("logs")
    (run,) = runs_of(rows)
    assert rows.optimizers[0].facts is None
    assert rows.problems == ()
    assert "loss" not in rows.optimizers[0].scalars
    assert np.isnan(run.scalars.loss).all()
    assert run.facts.optimizer == "SGD"
    (clipper,) = run.clippers
    assert (clipper.kind, clipper.max_norm) == ("fixed", pytest.approx(0.05))
    assert clipper.clip_rate == pytest.approx(runs_of(rows)[0].scalars.clip_fraction.mean())
    report = Report([run])
    assert report.as_dict()["optimizers"][0]["loss_first"] is None
    assert report.findings[0].code == "clip-cuts-rate"
    assert not [one for one in report.findings if one.code == "unused-parameter"]


def test_a_clip_that_is_not_there_is_not_made_up() -> None:
    logged_fit(Tiny(), 20)
    as_first_edition(event_file(Path("logs")))
    assert runs_of(read_events("logs"))[0].clippers == ()


@pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty.*", "ignore:.*resuming from a checkpoint that ended before.*"
)
def test_steps_that_a_resumed_run_has_written_again_count_once() -> None:
    keep = ModelCheckpoint(dirpath="kept", every_n_train_steps=10, save_top_k=-1, filename="{step}")
    logged_fit(Tiny(), 20, callbacks=[keep], enable_checkpointing=True)
    monitor = logged_fit(Tiny(), 30, callbacks=[keep], enable_checkpointing=True, ckpt_path="kept/step=10.ckpt")
    assert len(list(Path("logs").glob("*tfevents*"))) == 2
    rows = read_events("logs")
    assert rows.optimizers[0].step.tolist() == list(range(1, 30, 2))
    assert_same(runs_of(rows)[0], monitor.report().runs[0])


def test_a_scalar_that_ended_before_the_resumption_does_not_stand_again() -> None:
    for steps, tags in (((9, 19, 29), ("grad_norm_before", "loss_scale")), ((19, 29, 39), ("grad_norm_before",))):
        with SummaryWriter("logs", filename_suffix=f".{len(tags)}") as writer:
            for step in steps:
                for tag in tags:
                    writer.add_scalar(f"calib/{tag}", step, step)
        path = max(Path("logs").glob("*tfevents*"), key=lambda one: one.stat().st_mtime_ns)
        path.rename(path.with_name(f"events.out.tfevents.{2 - len(tags)}"))
    scalars = read_events("logs").optimizers[0].scalars
    np.testing.assert_array_equal(scalars["grad_norm_before"], [9, 19, 29, 39])
    np.testing.assert_array_equal(scalars["loss_scale"], [9, np.nan, np.nan, np.nan])


def test_files_of_one_second_are_read_in_the_order_of_their_numbers() -> None:
    for number, steps in ((9, (9, 19, 29)), (10, (19, 29, 39))):
        with SummaryWriter("logs", filename_suffix=".new") as writer:
            for step in steps:
                writer.add_scalar("calib/grad_norm_before", number, step)
        (path,) = Path("logs").glob("*.new")
        path.rename(path.with_name(f"events.out.tfevents.1700000000.host.1.{number}"))
    np.testing.assert_array_equal(read_events("logs").optimizers[0].scalars["grad_norm_before"], [9, 10, 10, 10])


@pytest.mark.slow
def test_of_a_long_run_the_rows_become_as_far_apart_as_those_of_its_end() -> None:
    monitor = logged_fit(Tiny(gains={777: 100.0}), 2100, log_every_n_steps=1)
    rows = read_events("logs").optimizers[0]
    assert len(rows.step) == 2100, "every scalar with a tag"
    assert np.isnan(rows.scalars["loss"]).any(), "the records have fewer rows"
    (found,), (kept,) = runs_of(read_events("logs")), monitor.report().runs
    assert set(np.diff(found.scalars.step)) == {4}
    assert not np.isnan(found.scalars.loss[:-1]).any()
    assert found.scalars.loss_max.max() == pytest.approx(kept.scalars.loss_max.max())
    assert found.scalars.grad_norm_max.max() == pytest.approx(kept.scalars.grad_norm_max.max())
    assert found.layers is not None
    assert len(found.layers.step) <= 525
    assert Report([found]).findings[0].code == monitor.report().findings[0].code == "rate-too-high"


def test_a_file_that_ends_within_a_record_is_read_up_to_there() -> None:
    logged_fit(Tiny(), 20)
    path = event_file(Path("logs"))
    whole = read_events("logs")
    path.write_bytes(path.read_bytes()[:-2000])
    rows = read_events("logs")
    assert 0 < len(rows.optimizers[0].step) < len(whole.optimizers[0].step)
    (problem,) = rows.problems
    assert "ends within a record or is damaged after step" in problem
    assert "Read it again" in problem


def test_a_damaged_file_is_read_up_to_the_damage() -> None:
    logged_fit(Tiny(), 40)
    path = event_file(Path("logs"))
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 255
    path.write_bytes(bytes(data))
    rows = read_events("logs")
    assert len(rows.optimizers[0].step) > 3
    assert "is damaged" in rows.problems[0]


def test_a_record_that_is_not_what_it_promises_is_left_out_with_the_reason() -> None:
    logged_fit(Tiny(), 20)

    def change(event):
        for value in event.summary.value:
            if value.tag.startswith("calib/layers"):
                value.tensor.tensor_content = value.tensor.tensor_content[:-4]

    rewrite(event_file(Path("logs")), change)
    rows = read_events("logs")
    assert rows.optimizers[0].layers is None
    assert "bytes of numbers" in rows.problems[0]
    assert len(rows.optimizers[0].step) == 10


FACTS = {"schema": 1, "facts": {"optimizer": "SGD"}, "layers": {}, "clippers": []}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("no JSON", "must be JSON"),
        ([], "must be an object"),
        ({**FACTS, "schema": 2}, "`schema of facts` must be 1, got 2"),
        ({**FACTS, "facts": {"optimizer": 3}}, "`facts.optimizer` must be a str, got 3"),
        ({**FACTS, "facts": {"optimizer": "SGD", "groups": [{"kind": "new", "lr": 1}]}}, "must be one of adam, sign"),
        ({**FACTS, "facts": {"optimizer": "SGD", "groups": [{"kind": "sgd", "lr": True}]}}, "must be a number"),
        ({**FACTS, "facts": {"optimizer": "SGD", "schedule": "all"}}, "must be a list"),
        ({**FACTS, "facts": {}}, "`facts` must have `optimizer`"),
        ({**FACTS, "layers": {"names": ["a"]}}, "lists of one length"),
        ({**FACTS, "clippers": 1}, "must be a list"),
        ({**FACTS, "clippers": [1]}, "must be an object"),
        ({**FACTS, "clippers": [{"name": "a"}]}, "`clipper` must have `kind`"),
    ],
)
def test_facts_that_are_none_are_refused(found, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        parse_facts(found if isinstance(found, str) else json.dumps(found))


def test_facts_of_a_later_version_may_say_more() -> None:
    assert parse_facts(json.dumps({**FACTS, "more": 1, "facts": {"optimizer": "SGD", "colour": "red"}})).facts.optimizer


def test_refused_facts_are_a_problem_and_not_the_end() -> None:
    logged_fit(Tiny(), 10)

    def change(event):
        for value in event.summary.value:
            if value.tag == "calib/facts":
                value.tensor.string_val[0] = b"{}"

    rewrite(event_file(Path("logs")), change)
    rows = read_events("logs")
    assert rows.optimizers[0].facts is None
    assert "schema of facts" in rows.problems[0]
    assert Report(runs_of(rows)).verdict


def test_a_table_that_would_not_fit_is_a_problem(monkeypatch) -> None:
    logged_fit(Tiny(), 10)
    monkeypatch.setattr("lightning_calib.tensorboard.merge.MOST_NUMBERS", 4)
    rows = read_events("logs")
    assert rows.optimizers == ()
    assert "`size` must be at most 4 numbers" in rows.problems[0]


def test_several_runs_in_one_folder_are_named() -> None:
    for version in ("runs/version_2", "runs/version_10"):
        logged_fit(Tiny(), 4, version)
    with pytest.raises(ValueError, match=r"got runs with 2: version_2, version_10\. Name one of them, such as runs/v"):
        read_events("runs")


def test_a_wrong_folder_is_answered_with_the_nearest_one() -> None:
    logged_fit(Tiny(), 4, "runs/version_0")
    Path("runs/version_7").mkdir()
    Path("file").touch()
    nearest = r"Did you mean \S*runs/version_0\?"
    for folder, reason in (("runs/version_3", "no such folder"), ("runs/version_7", "there are none in it")):
        with pytest.raises(FileNotFoundError, match=f"`logdir` must be a folder .*, got {folder}: {reason}. {nearest}"):
            read_events(folder)
    with pytest.raises(FileNotFoundError, match="got file: a file"):
        read_events("file")


def test_event_files_without_records_of_ours_say_how_to_write_some() -> None:
    with SummaryWriter("logs") as writer:
        writer.add_scalar("loss", 1.0, 1)
    with pytest.raises(FileNotFoundError, match=r"its event files have none\. Train with `Trainer\(callbacks=\[Gradie"):
        read_events("logs")


def test_a_run_without_a_row_has_no_optimizer() -> None:
    logged_fit(Tiny(), 4, log_every_n_steps=10)
    assert read_events("logs").optimizers == ()


def test_events_come_in_words() -> None:
    logged_fit(Tiny(gains={5: float("nan")}), 20, callbacks=[NonFiniteGuard("skip")])
    kinds = [event["kind"] for event in read_events("logs").events]
    assert {"nonfinite", "skip", "summary"} <= set(kinds)


def test_pandas_is_asked_for_only_where_it_is_needed() -> None:
    logged_fit(Tiny(SGD), 10)
    rows = read_events("logs")
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="`to_pandas` needs pandas, which is not installed"):
            rows.to_pandas()
        return
    table = rows.to_pandas()
    assert list(table.columns) == ["optimizer", "step", "layer", "name", "value"]
    norms = table[(table.layer == "net.0.weight") & (table.name == "before")]
    np.testing.assert_array_equal(norms.value, rows.optimizers[0].layers.values["before"][:, 0])
    np.testing.assert_array_equal(norms.step, rows.optimizers[0].layers.step)
    assert not table.value.isna().any()


def test_reading_loads_neither_torch_nor_lightning() -> None:
    logged_fit(Tiny(), 4)
    code = "import sys; from lightning_calib import read_events; read_events('logs'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "tensorboard" in loaded
    assert not loaded & {"torch", "lightning", "pytorch_lightning", "pandas"}
