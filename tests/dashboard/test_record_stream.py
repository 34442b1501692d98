"""The records of one optimizer: tags, shapes, cadence, and the same after a pause."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers.tiny_modules import different, same_bits

from lightning_calib.dashboard.decimation import MOST
from lightning_calib.dashboard.record_stream import LATEST, RecordStream
from lightning_calib.dashboard.records import Logged, Rows
from lightning_calib.report.events import Event
from lightning_calib.report.shadow_rows import ShadowNames
from lightning_calib.tensorboard.contract import ABSENT, GLOBAL_NAMES, HISTOGRAM_COLUMNS, SHADOW_COLUMNS, STATISTICS

NAMES = ("a.weight", "a.bias", "b.weight")


def rows(names=NAMES, suffix="", index=0):
    owners = tuple(name.rpartition(".")[0] for name in names)
    dims = tuple(1 + name.endswith("weight") for name in names)
    return Rows(index, "AdamW", suffix, tuple(names), owners, dims, (False,) * len(names))


def logged(step, scale=1.0, tensors=3, counts=None):
    generator = torch.Generator().manual_seed(step)
    layers = scale * torch.rand(tensors, len(STATISTICS), generator=generator)
    totals = torch.rand(len(GLOBAL_NAMES), generator=generator)
    for name in ("nonfinite_total", "skipped_total"):
        totals[GLOBAL_NAMES.index(name)] = float(step // 400)
    return Logged(step, layers, totals, counts, torch.zeros(tensors, dtype=torch.bool))


def test_tags_say_kind_rows_and_optimizer():
    plain, second = rows().record("layers", torch.zeros(3, 5)), rows(suffix="/1", index=1).record("layers", "")
    assert plain.tag.startswith("calib/layers.")
    assert len(plain.tag) == len("calib/layers.") + 8
    assert second.tag == plain.tag + "/1"
    assert second.about["optimizer"] == 1
    assert rows(NAMES[:2]).record("layers", "").tag != plain.tag
    assert rows().record("globals", "").tag == "calib/globals"
    assert rows(NAMES[:2]).record("events", "").tag == "calib/events"


def test_what_the_tab_must_know_is_json():
    about = rows().record("layers", torch.zeros(3, 5)).about
    assert json.loads(json.dumps(about)) == {
        "kind": "layers",
        "optimizer": 0,
        "optimizer_name": "AdamW",
        "rows": list(NAMES),
        "owners": ["a", "a", "b"],
        "dims": [2, 1, 2],
        "estimated": [False] * 3,
        "stats": [{"name": name, "fold": fold} for name, fold in STATISTICS.items()],
    }
    about = rows().record("hist", torch.zeros(2, 2, 67)).about
    assert about["rows"] == ("a", "b")
    assert (about["columns"], about["low"]) == (HISTOGRAM_COLUMNS, -48)


class Stream:
    """A stream that goes on, row after row."""

    def __init__(self, rows):
        self.now = RecordStream(rows)

    def take(self, row):
        found, self.now = self.now.after(row)
        return found

    def restore(self, saved):
        self.now = RecordStream.restored(self.now.rows, saved)

    def __getattr__(self, name):
        return getattr(self.now, name)


def take(stream, span, **kwargs):
    return [(step, record) for step in span for record in stream.take(logged(step, **kwargs))]


def same(found, wanted):
    assert [(step, one.tag) for step, one in found] == [(step, one.tag) for step, one in wanted]
    for (_, one), (_, other) in zip(found, wanted, strict=True):
        if isinstance(one.value, str):
            assert one.value == other.value
        else:
            assert torch.equal(one.value, other.value)


@pytest.mark.slow
def test_a_stream_goes_on_from_its_saved_state():
    end = 5 * MOST
    wanted = take(Stream(rows()), range(end))
    assert len(wanted) < end + 1200, "rows are pooled"
    assert any(one.tag == "calib/events" for _, one in wanted)
    for stop in (0, 700, MOST, MOST + 1, 3 * MOST + 2, 4 * MOST + 3):
        first, second = Stream(rows()), Stream(rows())
        found = take(first, range(stop))
        second.restore(json_like(first.saved()))
        same(found + take(second, range(stop, end)), wanted)


def json_like(state):
    """Only builtins and tensors, as a checkpoint gives them back."""
    import io

    memory = io.BytesIO()
    torch.save(state, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=True)


def test_a_pool_keeps_the_largest_and_of_rates_the_last():
    stream, every = Stream(rows()), [logged(step) for step in range(MOST + 2)]
    found = [record for row in every for record in stream.take(row)]
    layers = [one.value for one in found if one.tag.startswith("calib/layers")]
    totals = [one.value for one in found if one.tag == "calib/globals"]
    a, b = every[-2:]
    assert len(layers) == MOST + 1
    assert torch.equal(layers[-1], torch.maximum(a.layers, b.layers))
    assert torch.equal(totals[-1], torch.where(LATEST, b.totals, torch.maximum(a.totals, b.totals)))
    assert LATEST.any()
    assert not LATEST.all()


def test_what_is_unfinished_is_written_and_kept():
    stream = Stream(rows())
    take(stream, range(MOST + 3))
    found, step = stream.unfinished()
    assert step == MOST + 2
    assert [one.tag.split(".")[0] for one in found] == ["calib/layers", "calib/globals"]
    assert torch.equal(found[0].value, logged(MOST + 2).layers)
    assert len(stream.unfinished()[0]) == 2
    take(stream, [MOST + 3])
    assert stream.unfinished() == ([], MOST + 3)


def test_histograms_come_with_the_first_and_every_tenth_row_and_become_rarer():
    stream, due = Stream(rows()), []
    for step in range(4000):
        due += [step] if stream.histogram_due else []
        stream.take(logged(step))
    assert due[:4] == [0, 10, 20, 30]
    assert due[99:103] == [990, 1000, 1020, 1040]
    assert len(due) == 100 + 50 + 50


def test_a_histogram_goes_into_its_own_row():
    counts = torch.rand(2, 2, len(HISTOGRAM_COLUMNS))
    found = {one.tag.split(".")[0]: one.value for one in Stream(rows()).take(logged(0, counts=counts))}
    assert torch.equal(found["calib/hist"], counts)


def test_other_rows_start_a_new_tag_and_a_new_pool_but_not_a_new_count():
    first, second = Stream(rows()), Stream(rows(NAMES[1:]))
    take(first, range(MOST + 1))
    second.restore(first.saved())
    assert second.unfinished()[0] == []
    assert second.layers.rows == MOST + 1
    (record,) = [one for one in second.take(logged(MOST + 1, tensors=2)) if "layers" in one.tag]
    assert torch.equal(record.value, logged(MOST + 1, tensors=2).layers)


def test_events_of_a_step_are_one_record_without_numbers_that_json_has_not():
    stream = Stream(rows())
    take(stream, range(20))
    row = logged(20)
    row.layers[:, list(STATISTICS).index("peak")] = torch.tensor([math.nan, 1e30, 1.0])
    row.totals[GLOBAL_NAMES.index("grad_norm_max")] = 3e38
    for name in ("nonfinite_total", "skipped_total"):
        row.totals[GLOBAL_NAMES.index(name)] = 5.0
    row.totals[GLOBAL_NAMES.index("lr")] = math.inf
    (record,) = [one for one in stream.take(row) if one.tag == "calib/events"]
    found = json.loads(record.value, parse_constant=lambda name: 1 / 0)
    assert {event["kind"] for event in found} >= {"nonfinite", "skip", "spike"}
    assert all(event.keys() == {"step", "kind", "text", "layer", "value"} for event in found)


def test_a_row_that_was_not_this_optimizers_turn_is_absent_not_zero():
    stream = Stream(rows())
    row = logged(0)._replace(layers=torch.full((3, 5), ABSENT), totals=torch.full((len(GLOBAL_NAMES),), ABSENT))
    assert stream.take(row)[0].value.unique().tolist() == [ABSENT]


def test_a_row_leaves_the_stream_that_it_is_given_as_it_is():
    before = RecordStream(rows())
    for step in range(3):
        before = before.after(logged(step))[1].with_event(Event(step, "summary", "so far"))
    kept = json_like(before.saved())
    spiked = logged(3)
    spiked.totals[GLOBAL_NAMES.index("skipped_total")] = 5.0
    first, second = before.after(spiked), before.after(spiked)
    same([(3, one) for one in first[0]], [(3, one) for one in second[0]])
    same_bits(before.saved(), kept)
    same_bits(first[1].saved(), second[1].saved())
    with different("the row is remembered"):
        same_bits(first[1].saved(), kept)


SHADOWS = ShadowNames(("a", "b"), ("A()", "B()"), ("global", "unit"))


def shadowed(step):
    values = torch.rand(2, len(SHADOW_COLUMNS), generator=torch.Generator().manual_seed(step))
    return logged(step)._replace(shadows=values)


def of_shadows(stream, span):
    found = [(step, one) for step in span for one in stream.take(shadowed(step))]
    return [(step, one) for step, one in found if one.about["kind"] == "shadows"]


def test_a_record_of_shadows_is_that_of_the_last_of_its_rows():
    """One for each row up to 1,000, then one for two, the last of them; also after a pause."""
    stream = Stream(replace(rows(), shadows=SHADOWS))
    found = of_shadows(stream, range(MOST + 1))
    assert [step for step, _ in found] == list(range(MOST))
    (waiting,) = [one for one in stream.unfinished()[0] if one.about["kind"] == "shadows"]
    assert torch.equal(waiting.value, shadowed(MOST).shadows)
    paused = stream.saved()
    again = Stream(replace(rows(), shadows=SHADOWS))
    again.restore(paused)
    wanted = of_shadows(stream, range(MOST + 1, MOST + 6))
    same(of_shadows(again, range(MOST + 1, MOST + 6)), wanted)
    assert [step for step, _ in wanted] == [MOST + 1, MOST + 3, MOST + 5]
    assert all(torch.equal(one.value, shadowed(step).shadows) for step, one in wanted)
    assert found[0][1].about["rows"] == ("a", "b")
    assert found[0][1].tag.startswith("calib/shadows.")


def test_what_waits_of_other_shadows_is_left_out():
    stream = Stream(replace(rows(), shadows=SHADOWS))
    of_shadows(stream, range(MOST + 1))
    other = Stream(replace(rows(), shadows=SHADOWS._replace(names=("a", "c"))))
    other.restore(stream.saved())
    assert (other.shadows.values, other.layers.rows) == (None, MOST + 1)
    none = Stream(rows())
    none.restore(stream.saved())
    assert none.shadows.values is None
    assert "shadows" not in none.saved()
