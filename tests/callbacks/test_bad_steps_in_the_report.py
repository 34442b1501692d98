"""What guards have found and done: events of their own in the tab, and in the report, of a fit and of files alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.event_files import Recorded
from helpers.logged_fits import logged_fit
from helpers.made_runs import healthy
from helpers.tiny_modules import SGD, Tiny
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_calib import NonFiniteGradientError, NonFiniteGuard, Report, SpikeGuard, read_events
from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.run import Run
from lightning_calib.tensorboard.event_runs import runs_of

NAN = float("nan")
ADAMW = partial(torch.optim.AdamW, lr=1e-2)
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]


class Jumps(Tiny):
    """The learning rate is a thousand times as large from step 60 on, for three steps."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        group = self.trainer.optimizers[0].param_groups[0]
        group["lr"] = 1e-2 * (1000.0 if 60 <= self.trainer.global_step < 63 else 1.0)


def both(monitor: Any) -> list[Run]:
    """The numbers of a fit, and those of its event files."""
    return [monitor.report().runs[0], runs_of(read_events("logs"))[0]]


def sentence(run: Run, code: str) -> str:
    return next(one.sentence for one in Report([run]).findings if one.code == code)


def test_the_report_names_the_steps_and_the_tensor_that_were_not_finite():
    monitor = logged_fit(Tiny(SGD, {4: NAN, 15: NAN}), 30, callbacks=[NonFiniteGuard("skip")])
    for run in both(monitor):
        assert run.bad_steps == (BadStep(4, "nonfinite", "net.4.bias"), BadStep(15, "nonfinite", "net.4.bias"))
        told = sentence(run, "nonfinite")
        assert told.startswith("2 steps of 30 had a gradient that was inf or nan, at steps 4 and 15")
        assert "`net.4.bias`" in told
        assert told.endswith("; every one was skipped, so that the weights never saw it.")
        assert [row["step"] for row in Report([run]).as_dict()["bad_steps"]] == [4, 15]


def test_of_one_and_of_many_the_first_is_named():
    one = logged_fit(Tiny(SGD, {4: NAN}), 20, "one", callbacks=[NonFiniteGuard("skip")])
    assert "inf or nan, at step 4" in sentence(one.report().runs[0], "nonfinite")
    bad = dict.fromkeys(range(3, 19, 2), NAN)
    many = logged_fit(Tiny(SGD, bad), 20, "many", callbacks=[NonFiniteGuard("skip", max_consecutive=20)])
    (live,), (files,) = many.report().runs, runs_of(read_events("many"))
    assert len(files.bad_steps) < len(live.bad_steps) == files.counts.nonfinite == 8
    assert "8 steps of 20 had a gradient that was inf or nan, the first at step 3" in sentence(live, "nonfinite")
    assert sentence(files, "nonfinite") == sentence(live, "nonfinite")


def test_a_guard_that_has_come_later_does_not_name_the_first():
    run = healthy()
    run.scalars.nonfinite_total[10:] = 3.0
    counts = run.counts._replace(nonfinite=3, skipped=3)
    for step, told in ((250, "the first between steps 49 and 54"), (53, "the first at step 53")):
        found = run._replace(counts=counts, bad_steps=(BadStep(step, "nonfinite", "head.bias"),))
        assert told in sentence(found, "nonfinite")


def test_a_dropped_spike_and_a_rewind_are_events_of_their_own_in_the_words_of_the_console(said):
    guard = SpikeGuard(snapshot_every_n_steps=10)
    monitor = logged_fit(Jumps(ADAMW), 100, callbacks=[guard])
    lines = [line.removeprefix("[calib] ") for line in said()]
    events = Recorded("logs").events
    (spike,) = events("spike")
    back, stands = events("rewind")
    assert [event["step"] for event in (spike, back, stands)] == [61, 65, 66]
    assert "the step is skipped, 1 of at most 20" in spike["text"]
    assert "steps ago are put back on trial" in back["text"]
    assert "the rewind helps and stands; 11 steps are undone" in stands["text"]
    assert all(event["text"] in lines for event in (spike, back, stands))
    for run in both(monitor):
        assert (run.counts.taken, run.counts.skipped, run.counts.spikes, run.counts.rewound) == (84, 5, 5, 11)
        told = sentence(run, "skipped-steps")
        assert (
            told
            == "SpikeGuard dropped 5 steps of 100, the first at step 61, and a rewind undid 11 that had been taken."
        )
        row = Report([run]).as_dict()["optimizers"][0]
        assert (row["taken"], row["skipped"], row["spikes"], row["rewound"]) == (84, 5, 5, 11)
        assert [one.kind for one in run.bad_steps if one.kind == "rewind"] == ["rewind", "rewind"]
    assert "11 steps were undone by a rewind" in " ".join(monitor.report()._more)


def test_a_rewind_that_is_taken_back_is_an_event_too_and_undoes_nothing():
    module = Tiny(ADAMW, dict.fromkeys(range(60, 75), 300.0))
    monitor = logged_fit(module, 100, callbacks=[SpikeGuard(snapshot_every_n_steps=10)])
    texts = [event["text"] for event in Recorded("logs").events("rewind")]
    assert len(texts) == 2
    assert "put back on trial" in texts[0]
    assert "the data are to blame: the newer ones are put back" in texts[1]
    assert both(monitor)[1].counts.rewound == 0
    assert sentence(both(monitor)[0], "skipped-steps") == "SpikeGuard dropped 15 steps of 100, the first at step 60."


def test_nothing_is_said_of_a_run_without_a_spike():
    monitor = logged_fit(Tiny(ADAMW), 60, callbacks=[SpikeGuard(), NonFiniteGuard()])
    for run in both(monitor):
        assert (run.bad_steps, run.counts.spikes, run.counts.rewound) == ((), 0, 0)
        assert run.counts.taken == 60


@pytest.mark.parametrize(("guard", "told"), [(SpikeGuard, 1), (NonFiniteGuard, 0)])
def test_the_monitor_tells_of_what_no_guard_tells(guard, told, said):
    monitor = logged_fit(Tiny(SGD, {15: NAN}), 16, callbacks=[guard()])
    lines = [line for line in said() if "had a gradient that was inf or nan" in line and "after" not in line]
    assert len(lines) == told
    assert monitor.report().runs[0].facts.guarded is not bool(told)


def test_steps_dropped_as_spikes_do_not_hide_bad_steps_that_were_taken():
    run = healthy()
    run.scalars.nonfinite_total[10:] = 2.0
    counts = run.counts._replace(nonfinite=2, skipped=5)
    for spikes, severity in ((5, "act"), (3, "look")):
        found = Report([run._replace(counts=counts._replace(spikes=spikes))]).findings
        assert next(one.severity for one in found if one.code == "nonfinite") == severity


def test_steps_dropped_as_spikes_are_no_overflows():
    run = healthy()
    run.scalars.loss_scale[:] = 1024.0
    counts = run.counts._replace(skipped=30, spikes=28)
    findings = {one.code: one.sentence for one in Report([run._replace(counts=counts)]).findings}
    assert findings["skipped-steps"] == "SpikeGuard dropped 28 steps of 300."
    assert findings["loss-scale"].startswith("The GradScaler skipped 2 steps")


@pytest.mark.parametrize("scale", [NAN, 1024.0])
def test_steps_that_are_not_finite_do_not_hide_spikes_and_rewinds(scale):
    run = healthy()
    run.scalars.loss_scale[:] = scale
    run.scalars.nonfinite_total[10:] = 4.0
    counts = run.counts._replace(nonfinite=4, skipped=10, spikes=6, rewound=11)
    found = {one.code: one.sentence for one in Report([run._replace(counts=counts)]).findings}
    assert list(found) == ["nonfinite", "skipped-steps"]
    assert found["skipped-steps"].startswith("SpikeGuard dropped 6 steps of 300")
    assert found["skipped-steps"].endswith("a rewind undid 11 that had been taken.")
    alone = counts._replace(skipped=4, spikes=0, rewound=0)
    assert [one.code for one in Report([run._replace(counts=alone)]).findings] == ["nonfinite"]


@pytest.mark.parametrize(("bad", "severity"), [((35, 36), "look"), ((33, 34, 35, 36), "act")])
def test_bad_steps_after_the_last_row_are_in_the_report_of_the_files(bad, severity):
    """Also where the guard has ended the run, which is when somebody looks."""
    guard = NonFiniteGuard("skip", max_consecutive=3)
    try:
        logged_fit(Tiny(SGD, dict.fromkeys(bad, NAN)), 40, callbacks=[guard], log_every_n_steps=30)
    except NonFiniteGradientError:
        assert severity == "act"
    (run,) = runs_of(read_events("logs"))
    (found,) = (one for one in Report([run]).findings if one.code == "nonfinite")
    assert found.severity == severity
    assert found.sentence.startswith(f"{len(bad)} steps of {bad[-1] + 1} had a gradient that was inf or nan, at steps ")
    assert run.counts.skipped == len(bad) - (severity == "act")
    assert found.steps == (bad[0], bad[-1])
    assert found.advice.startswith("Look at the batch: NonFiniteGuard's `save_batch_to` keeps it.")  # it is there


def test_what_was_found_before_a_checkpoint_is_known_after_it(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=10, filename="at", save_top_k=-1)
    bad = {4: NAN, 15: NAN}
    logged_fit(Tiny(SGD, bad), 10, "first", callbacks=[NonFiniteGuard("skip"), saver], enable_checkpointing=True)
    path = str(tmp_path / "at.ckpt")
    again = logged_fit(Tiny(SGD, bad), 20, "second", callbacks=[NonFiniteGuard("skip")], ckpt_path=path)
    assert [one.step for one in again.report().runs[0].bad_steps] == [4, 15]
    saved = torch.load(path, weights_only=True)
    del saved["callbacks"]["GradientMonitor"]["report"]["0"]["incidents"]  # as earlier versions wrote it
    torch.save(saved, path)
    older = logged_fit(Tiny(SGD, bad), 20, "third", callbacks=[NonFiniteGuard("skip")], ckpt_path=path)
    assert [one.step for one in older.report().runs[0].bad_steps] == [15]
    assert older.report().runs[0].counts.nonfinite == 2
