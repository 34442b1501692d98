"""What the tab keeps of every tensor between two rows, and what of a logged step means something."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.bare_runs import bare_run, give, judged
from helpers.event_files import count_magnitudes
from helpers.tiny_modules import same_bits
from torch import nn

from lightning_calib.dashboard.layer_table import LayerTable, Masks, TabMemory, layers_of, rows_of
from lightning_calib.dashboard.record_stream import RecordStream
from lightning_calib.functional.saved_state import DamagedStateError
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.step_record import GuardEvent, StepRecord
from lightning_calib.steps.weight_update import WeightUpdate
from lightning_calib.tensorboard.contract import ABSENT

ALL = [True] * 4


@pytest.fixture
def view():
    return bare_run().view


@pytest.fixture
def memory(view):
    return TabMemory(RecordStream(rows_of(view)))


def test_rows_are_the_plans_tensors(view):
    rows = rows_of(view)
    assert (rows.optimizer, rows.kind, rows.suffix) == (0, "SGD", "")
    assert rows.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert (rows.owners, rows.dims, rows.estimated) == (("0", "0", "1", "1"), (2, 1, 2, 1), (False,) * 4)
    assert (rows.modules, rows.module_of) == (("0", "1"), (0, 0, 1, 1))


def test_of_large_and_empty_tensors_the_update_is_an_estimate_or_nothing():
    net = nn.Sequential(nn.Linear(300, 300), nn.Linear(3, 1))
    net[1].register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rows = rows_of(GradientView(0, optimizer, net, suffix="", units=False, scaler=None))
    assert dict(zip(rows.names, rows.estimated, strict=True)) == {
        "0.weight": True,
        "0.bias": False,
        "1.weight": False,
        "1.bias": False,
        "1.nothing": False,
    }


# Between two rows


def test_the_largest_norm_of_each_tensor_is_kept_and_whether_it_had_a_gradient(memory):
    first = memory.add(torch.tensor([1.0, 0.0, 3.0, 0.0]), [True, False, True, False])
    second = first.add(torch.tensor([0.0, 2.0, math.nan, 0.0]), [False, True, True, False])
    assert first.peak.tolist() == [1.0, 0.0, 3.0, 0.0]
    torch.testing.assert_close(second.peak, torch.tensor([1.0, 2.0, math.nan, 0.0]), equal_nan=True)
    assert (memory.since, first.since) == ((), (True, False, True, False))
    assert second.since == (True, True, True, False)
    assert memory.peak is None


def test_the_last_twenty_incidents_are_kept(memory):
    for step in range(25):
        memory = memory.add_incident(GuardEvent(step, "0.weight", "bad"))
    assert [step for step, *_ in memory.incidents] == [*range(5, 25)]


def test_what_was_saved_comes_back_to_the_bit(view, memory):
    assert TabMemory.restored(rows_of(view), view.plan, memory.saved(), "tab").peak is None
    full = memory.add(torch.tensor([1.0, 0.0, 3.0, math.nan]), ALL).add_incident(GuardEvent(3, "0.weight", "bad"))
    saved = full.saved()
    torch.save(saved, "tab.pt")
    found = TabMemory.restored(rows_of(view), view.plan, torch.load("tab.pt", weights_only=True), "tab")
    same_bits([found.peak, found.since, found.incidents], [full.peak, full.since, full.incidents])
    same_bits(found.saved(), saved)
    full.peak.fill_(7.0)
    same_bits(found.saved(), saved)


def test_of_other_rows_what_has_a_name_is_taken_up(view, memory):
    saved = memory.add(torch.tensor([1.0, 2.0, 3.0, 4.0]), [True, False, True, True]).saved()
    net = nn.Sequential(view.module[0], nn.Identity(), nn.Linear(1, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    other = GradientView(0, optimizer, net, suffix="", units=False, scaler=None)
    found = TabMemory.restored(rows_of(other), other.plan, saved, "tab")
    assert (found.peak.tolist(), found.since) == ([1.0, 2.0, 0.0, 0.0], (True, False, False, False))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("peak", torch.ones(3), r"`tab.peak` must be a tensor of numbers, shape \(4,\)"),
        ("since", [True], "`tab.since` must have 4 entries, got 1"),
        ("since", [1, 1, 1, 1], "`tab.since.0` must be True or False"),
        ("incidents", [[-1, "a", "b"]], "`tab.incidents.0.0` must be a whole number >= 0"),
        ("incidents", [[1, "a", "b", "dead"]], "`tab.incidents` must be of nonfinite, spike, rewind, got 'dead'"),
        ("incidents", [[1, "a"]], "`tab.incidents.0` must have 4 entries, got 2"),
        ("incidents", None, "`tab.incidents` must be a list"),
    ],
)
def test_damage_is_told_with_its_key(view, memory, key, value, text):
    saved = memory.add(torch.ones(4), ALL).saved() | {key: value}
    with pytest.raises(DamagedStateError, match=text):
        TabMemory.restored(rows_of(view), view.plan, saved, "tab")


# A logged step


def logged(view, gradient=1.0, used=0.5):
    """The table of a step that was logged and taken, and its record."""
    table = LayerTable(view, rows_of(view))
    give(view.module, gradient)
    view.look_again()
    table.see_logged(histograms=True)
    give(view.module, used)
    reading = view.read_used()
    table.see_used()
    norms = torch.ones(4, dtype=torch.float64)
    update = WeightUpdate(norms[0], norms[0], 10 * norms, 20 * norms)
    return table, judged(bare_run(), used=reading, norm_used=reading.norm, update=update)


def test_the_numbers_of_a_logged_step(view, memory):
    table, record = logged(view)
    sizes = torch.tensor([6.0, 2.0, 2.0, 1.0], dtype=torch.float64).sqrt()
    seen = (record, memory.add(9 * sizes, ALL))
    layers, masks = table.numbers(*seen), table.masks(*seen)
    torch.testing.assert_close(
        layers.T, torch.stack([sizes, sizes / 2, 9 * sizes, torch.full((4,), 10.0), torch.full((4,), 20.0)]).double()
    )
    assert masks == Masks(ALL, ALL, ALL)
    same_bits(layers_of(layers, masks, table.empty, taken=True), layers.float())
    untaken = layers_of(layers, masks, table.empty, taken=False)
    assert untaken[:, [1, 3, 4]].tolist() == [[ABSENT] * 3] * 4
    same_bits(untaken[:, [0, 2]], layers[:, [0, 2]].float())


def test_of_an_optimizer_that_rests_only_the_peak_is_known(view, memory):
    table = LayerTable(view, rows_of(view))
    seen = (StepRecord(), memory.add(torch.ones(4), [True, True, False, True]))
    layers, masks = table.numbers(*seen), table.masks(*seen)
    found = layers_of(layers, masks, table.empty, taken=False)
    assert found[:, 2].tolist() == [1.0, 1.0, ABSENT, 1.0]
    assert found[:, [0, 1, 3, 4]].tolist() == [[ABSENT] * 4] * 4
    assert table.histograms() is None


def test_a_row_that_was_logged_before_does_not_show_through(view, memory):
    table, record = logged(view)
    table.forget()
    seen = (record.rest(), memory)
    layers, masks = table.numbers(*seen), table.masks(*seen)
    assert not layers.any()
    assert masks == Masks([], [False] * 4, [])
    assert table.histograms() is None


def test_where_what_was_used_is_computed_the_same_tensors_have_it(view, memory):
    table, record = logged(view)
    table.given_after = []
    assert table.masks(record, memory).after == ALL


@pytest.mark.parametrize("window_scale", [1.0, 4.0])
def test_histograms_count_magnitudes_as_a_loop_does(view, window_scale):
    view.begin_step(window_scale)
    for i, tensor in enumerate(view.plan.tensors):
        tensor.grad = torch.arange(tensor.numel(), dtype=torch.float32).reshape(tensor.shape) * 3.0**i
    view.look_again()
    table = LayerTable(view, rows_of(view))
    table.see_logged(histograms=True)
    before, after = table.histograms()
    for module, members in enumerate(((0, 1), (2, 3))):
        values = [value for i in members for value in (window_scale * view.gradients[i]).flatten().tolist()]
        assert before[module].tolist() == count_magnitudes(values)
    assert bool((after == ABSENT).all())  # what the optimizer used was not seen


def test_a_module_without_a_gradient_is_absent_from_the_histogram(view):
    for tensor in view.module[1].parameters():
        tensor.grad = None
    view.look_again()
    table = LayerTable(view, rows_of(view))
    table.see_logged(histograms=True)
    before, _ = table.histograms()
    assert bool((before[1] == ABSENT).all())
    assert float(before[0, 3:].sum()) == 8.0
    assert table.given() == [True, True, False, False]


def test_a_tensor_without_elements_is_absent_and_shifts_no_other(memory):
    net = nn.Sequential(nn.Linear(3, 2))
    net.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    optimizer = torch.optim.SGD([net.nothing, net[0].weight, net[0].bias], lr=0.1)
    view = GradientView(0, optimizer, net, suffix="", units=False, scaler=None)
    give(net, 1.0)
    view.begin_step()
    table = LayerTable(view, rows_of(view))
    table.see_logged(histograms=False)
    table.see_used()
    two = torch.tensor([1.0, 2.0], dtype=torch.float64)
    update = WeightUpdate(two[0], None, two, 10 * two)
    record = judged(bare_run(), used=view.reading(), update=update)
    seen = (record, TabMemory(RecordStream(table.rows)))
    layers, masks = table.numbers(*seen), table.masks(*seen)
    found = layers_of(layers, masks, table.empty, taken=True)
    assert found[0].tolist() == [ABSENT] * 5
    assert found[1:, 3:].tolist() == [[1.0, 10.0], [2.0, 20.0]]
    assert table.histograms() is None
