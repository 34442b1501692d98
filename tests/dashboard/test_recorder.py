"""The writing side of the tab: rows in, records out; rows are pure, and no failure of its own ends a run."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.bare_runs import ELEMENTS, SGD, BareFit, Clip, Tab, frozen
from helpers.event_files import Recorded
from helpers.tiny_modules import same_bits
from torch.utils.tensorboard import SummaryWriter

from lightning_calib.dashboard.event_file import RecordWriter
from lightning_calib.steps.step_record import GuardEvent
from lightning_calib.tensorboard.contract import ABSENT

NORM = math.sqrt(ELEMENTS)


class Notes(Clip):
    """Has found something in steps whose norm is not finite, as a guard does."""

    def _inspect(self, view, record):
        if bool(record.norm_before.isfinite()):
            return record
        return record._replace(incident=GuardEvent(self.step, "0.weight", "it is not finite"))

    step = 0


def writers(folder="logs"):
    return [RecordWriter(SummaryWriter(Path(folder).resolve()))]  # its thread may write when the test has ended


def fitted(tab=None, gradients=(1.0, 5.0, 0.1, 2.0), **kwargs):
    tab = tab or Tab(writers())
    fit = BareFit([Clip(2.0), tab], **kwargs)
    for gradient in gradients:
        fit.batch(gradient)
    return fit, tab


def finish(fit, tab, folder="logs"):
    tab._recorder.finish(fit.session.runs.values(), fit.session.step)
    return Recorded(folder)


# What is written


def test_a_row_is_a_record_of_layers_one_of_totals_and_the_first_one_of_histograms():
    found = finish(*fitted())
    assert [(one.tag.split(".")[0], one.step) for one in found.found] == [
        ("calib/layers", 1),
        ("calib/globals", 1),
        ("calib/hist", 1),
        ("calib/layers", 3),
        ("calib/globals", 3),
    ]
    sizes = torch.tensor([6, 2, 2, 1]).sqrt()
    torch.testing.assert_close(found.column("before"), torch.stack([5 * sizes, 2 * sizes]))
    torch.testing.assert_close(found.column("after"), torch.stack([2 / NORM * sizes] * 2))
    torch.testing.assert_close(found.column("peak"), torch.stack([5 * sizes, 2 * sizes]))
    torch.testing.assert_close(found.column("update"), torch.stack([0.2 / NORM * sizes] * 2), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.total("grad_norm_before"), [5 * NORM, 2 * NORM], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.total("norm_p50"), [3 * NORM, 1.5 * NORM], rtol=1e-5, atol=0)
    assert found.total("loss_scale") == [ABSENT] * 2


def test_a_histogram_has_both_sides_of_the_step():
    found = finish(*fitted(gradients=(1.0, 5.0)))
    ((_, _, counts),) = found.of("hist")
    before, after = counts
    assert before[:, 2].tolist() == [2.0, 2.0]  # 2^2 <= 5 < 2^3
    assert after[:, 2].tolist() == [-1.0, -1.0]  # 5 becomes 2 / sqrt(11)
    assert before[:, 3:].sum(1).tolist() == after[:, 3:].sum(1).tolist() == [8.0, 3.0]


def test_a_step_that_was_not_taken_has_no_after():
    found = finish(*fitted(gradients=(1.0, None)))
    (layers,) = found.of("layers")
    assert found.column("before").tolist() == found.column("after").tolist() == [[ABSENT] * 4]
    torch.testing.assert_close(found.column("peak"), torch.tensor([[6.0, 2.0, 2.0, 1.0]]).sqrt())
    assert layers.step == 1


def test_an_incident_is_told_with_the_next_row_and_once():
    notes, tab = Notes(2.0), Tab(writers())
    fit = BareFit([notes, tab])
    for gradient in (math.inf, 1.0, 1.0, 1.0):
        fit.batch(gradient)
    told = finish(fit, tab).events("nonfinite")
    assert [(one["step"], one["layer"], one["text"]) for one in told] == [(0, "0.weight", "it is not finite")]


def test_an_incident_after_the_last_row_is_told_at_the_end():
    notes, tab = Notes(2.0), Tab(writers())
    fit = BareFit([notes, tab])
    for notes.step, gradient in enumerate((1.0, math.inf, 1.0, 1.0, math.inf)):  # rows of steps 1 and 3
        fit.batch(gradient)
    found = finish(fit, tab)
    assert [(one["step"], one["layer"]) for one in found.events("nonfinite")] == [(1, "0.weight"), (4, "0.weight")]
    assert found.of("events")[-1].step == 5


def test_a_summary_waits_for_the_next_record_and_the_same_one_comes_once():
    fit, tab = fitted()
    for _ in range(2):
        tab._recorder.summarise(fit.run(), "All is well.", 2)
    assert [one["text"] for one in finish(fit, tab).events("summary")] == ["All is well."]


def test_of_several_optimizers_each_has_its_records():
    tab = Tab(writers())
    fit, _ = fitted(tab, manual=True, optimizers=[SGD, SGD])
    found = finish(fit, tab)
    assert [one.step for one in found.of("layers", 0)] == [one.step for one in found.of("layers", 1)] == [1, 3]
    assert all(one.tag.endswith("/1") for one in found.of("layers", 1))


def test_what_waits_at_the_end_is_written_at_one_step_for_all_optimizers():
    tab = Tab(writers())
    fit, _ = fitted(tab, manual=True, optimizers=[SGD, SGD, SGD])
    for index in range(3):
        tab._recorder.facts[index] = "{}"
        tab._recorder.summarise(fit.run(index), "All is well.", 3)
    found = finish(fit, tab)
    assert [[one.step for one in found.of("events", index)] for index in range(3)] == [[4]] * 3
    assert [(one.tag, one.step) for one in found.facts] == [
        ("calib/facts/0", 4),
        ("calib/facts/1", 4),
        ("calib/facts/2", 4),
    ]


def test_charts_and_texts_come_with_a_line_on_where_to_see_them():
    line = Tab(writers("logs/run"))._recorder.furnish([""])
    folder = Path("logs").resolve()
    assert line.startswith(f"to see the gradients of every layer: tensorboard --logdir {folder}, then http")
    assert Tab()._recorder.furnish([""]) is None


# Rows are pure


def test_what_is_collected_and_closed_changes_nothing():
    fit, tab = fitted(gradients=(1.0, math.inf, 0.1))
    fit.step(5.0)
    run, recorder = fit.run(), tab._recorder
    before, state = frozen(run.memory), copy.copy(vars(recorder.tables[0]))
    memory = run.memory.end_step(run.record)
    values = recorder.collect(run, memory)
    again = recorder.collect(run, memory)
    same_bits(again, values)
    row = {"calib/grad_norm_before": 1.0, "calib/update_norm": 0.5}
    records, after = recorder.close(run, memory, row, values, 3)
    more, later = recorder.close(run, memory, row, values, 3)
    same_bits([more, frozen(later)], [records, frozen(after)])
    assert records
    same_bits(frozen(run.memory), before)
    assert all(vars(recorder.tables[0])[key] is value for key, value in state.items())
    assert recorder.last == 1  # of the last row that was written
    assert (after.tab.peak, after.tab.since, after.tab.incidents) == (None, (), ())


def test_after_a_row_the_logged_step_is_forgotten():
    fit, tab = fitted(gradients=(1.0, 5.0))
    table = tab._recorder.tables[0]
    assert (table.before, table.given_before, table.given_after, table.counts_before) == (None, [], [], None)
    fit.step(3.0)  # of which no row is due
    assert table.before is None
    torch.testing.assert_close(fit.run().memory.tab.peak, 3 * torch.tensor([6.0, 2.0, 2.0, 1.0]).sqrt())


def test_a_run_that_resumes_writes_what_one_that_never_stopped_writes():
    gradients = (1.0, 5.0, 0.1, 2.0, 7.0, math.inf, 3.0, 1.0)
    wanted = finish(*fitted(gradients=gradients, tab=Tab(writers("whole"))), "whole")
    first, tab = fitted(gradients=gradients[:5], tab=Tab(writers("first")))
    saved = {"dashboard": tab._recorder.saved(first.session.memories_to_save())}
    resumed = Tab(writers("second"), saved=saved)
    fit = BareFit([Clip(2.0), resumed])
    run, old = fit.run(), first.run().memory
    run.memory = old._replace(tab=run.memory.tab)
    fit.nets[0].load_state_dict(first.nets[0].state_dict())
    fit.trainer.fit_loop.epoch_loop._batches_that_stepped = 5
    for gradient in gradients[5:]:
        fit.batch(gradient)
    second = finish(fit, resumed, "second")
    assert resumed.losses.found == []
    same_bits(Recorded("first").found + second.found, wanted.found)


def test_other_parameters_write_what_is_unfinished_and_go_on_with_what_is_known_by_name():
    fit, tab = fitted(gradients=(1.0, 5.0, 2.0))
    more = torch.nn.Parameter(torch.ones(2))
    more.grad = torch.ones(2)
    fit.trainer.optimizers[0].add_param_group({"params": [more]})
    fit.batch(1.0)
    found = finish(fit, tab)
    assert [tuple(one.value.shape) for one in found.of("layers")] == [(4, 5), (5, 5)]
    torch.testing.assert_close(found.of("layers")[1].value[:4, 2], 2 * torch.tensor([6.0, 2.0, 2.0, 1.0]).sqrt())
    assert fit.run().memory.tab.stream.layers.rows == 2


def test_damage_to_what_the_tab_remembers_is_a_fresh_start_of_it():
    fit, tab = fitted()
    saved = {"dashboard": tab._recorder.saved(fit.session.memories_to_save())}
    saved["dashboard"]["0"]["peak"] = "a text"
    resumed = Tab(saved=saved)
    again = BareFit([resumed])
    assert again.run().memory.tab.stream.layers.rows == 0
    assert "`dashboard.0.peak` must be a tensor" in resumed.losses.found[0]
    assert "lost: what the Gradients tab remembers" in resumed.losses.found[0]


# Failures


class Broken:
    """Stands in the place of something that the recorder needs."""

    def __getattr__(self, name):
        raise OSError("disk full")


def failing():
    """A writer whose file cannot be written."""
    return [RecordWriter(Broken())]


def broken_tables(tab):
    tab._recorder.tables[0] = Broken()


CALLS = {
    "furnish": lambda recorder, run: recorder.furnish(Broken()),
    "prepare": lambda recorder, run: recorder.prepare(Broken()),
    "begin_step": lambda recorder, run: recorder.begin_step(run),
    "end_step": lambda recorder, run: recorder.end_step(Broken()),
    "see_used": lambda recorder, run: recorder.see_used(run),
    "collect": lambda recorder, run: recorder.collect(run, run.memory),
    "close": lambda recorder, run: recorder.close(run, run.memory, {}, [], 1),
    "end_row": lambda recorder, run: recorder.end_row(),
    "summarise": lambda recorder, run: recorder.summarise(Broken(), "text", 1),
    "finish": lambda recorder, run: recorder.finish([Broken()], 1),
    "saved": lambda recorder, run: recorder.saved(Broken()),
}


@pytest.mark.parametrize("call", [name for name in CALLS if name != "furnish"])
def test_an_error_anywhere_ends_the_records_with_one_line(call):
    fit, tab = fitted()
    run, memory = fit.run(), fit.run().memory
    broken_tables(tab)
    assert CALLS[call](tab._recorder, run) is None
    assert len(tab.told) == 1
    assert tab.told[0].startswith("the dashboard's records end here, training goes on: ")
    for later in CALLS.values():
        assert later(tab._recorder, run) is None
    assert len(tab.told) == 1
    same_bits(frozen(run.memory), frozen(memory))


def test_a_fit_whose_records_ended_goes_on_with_its_rows():
    fit, tab = fitted()
    broken_tables(tab)
    rows = []
    for gradient in (1.0, 2.0, 3.0, 4.0):
        fit.step(gradient)
        rows.append(fit.session.close_row())
        fit.end_batch()
    assert len(tab.told) == 1
    assert all(row.records == [] and row.values for row in rows)
    steps = fit.run().memory.steps
    assert (steps.steps, steps.window_steps) == (8, 0)


def test_charts_that_cannot_be_written_are_this_ranks_trouble_alone():
    tab = Tab(failing())
    assert tab._recorder.furnish([""]) is None
    assert not tab._recorder.off
    assert tab.told == ["TensorBoard's other tabs lack their charts, training goes on: OSError('disk full')"]


def test_a_writer_that_fails_is_told_once_and_what_is_remembered_goes_on():
    fit, tab = fitted(Tab(failing()))
    assert tab.told == ["the dashboard's records end here, training goes on: OSError('disk full')"]
    assert not tab._recorder.off
    assert fit.run().memory.tab.stream.layers.rows == 2
    finished = partial(tab._recorder.finish, fit.session.runs.values(), 4)
    finished()
    assert len(tab.told) == 1


def test_records_that_have_ended_end_once():
    fit, tab = fitted(Tab(failing()))
    broken_tables(tab)
    fit.batch(1.0)
    assert tab._recorder.off
    assert len(tab.told) == 1
