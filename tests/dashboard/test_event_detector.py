"""Events: what is unusual, said once, in words with numbers; and silence on a healthy run."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from helpers.tiny_modules import same_bits

from lightning_calib.dashboard.event_detector import EventDetector
from lightning_calib.dashboard.layer_baseline import DEAD_ROWS, LayerBaseline, aligned
from lightning_calib.dashboard.records import Logged
from lightning_calib.report.detect import Jumps, Spikes
from lightning_calib.report.events import Pause
from lightning_calib.steps.step_record import GuardEvent
from lightning_calib.tensorboard.contract import ABSENT, EVENT_KINDS, GLOBAL_NAMES, STATISTICS

NAMES = ("a.weight", "a.bias", "b.weight")


def noise(rows, sigma=0.3, seed=0):
    return (sigma * torch.randn(rows, generator=torch.Generator().manual_seed(seed))).exp().tolist()


def logged(step, peak=(1.0, 1.0, 1.0), idle=(False, False, False), incidents=(), **totals):
    layers = torch.full((3, len(STATISTICS)), ABSENT)
    layers[:, list(STATISTICS).index("peak")] = torch.tensor(peak)
    norm = math.sqrt(sum(x * x for x in peak if x > 0 and math.isfinite(x)))
    totals = {"grad_norm_max": norm, "nonfinite_total": 0.0, "skipped_total": 0.0, "lr": 0.1} | totals
    values = torch.tensor([totals.get(name, ABSENT) for name in GLOBAL_NAMES])
    return Logged(step, layers, values, None, torch.tensor(idle), incidents)


def follow(rows, detector):
    found = []
    for row in rows:
        events, detector = detector.after(row)
        found += events
    return found, detector


def told(rows):
    return follow(rows, EventDetector(NAMES))[0]


# Spikes


def test_a_spike_is_told_with_the_factor_over_the_median():
    spikes = Spikes()
    values = noise(60)
    assert [spikes.times(value) for value in values] == [0.0] * 60
    times = spikes.times(30.0)
    assert times == pytest.approx(30.0 / sorted(values[-40:])[19], rel=0.05)  # the median lies between two values


@pytest.mark.parametrize(("sigma", "most"), [(0.1, 0), (0.3, 0), (0.6, 10), (1.0, 20)])
def test_noise_is_not_a_spike(sigma, most):
    spikes = Spikes()
    assert sum(spikes.times(value) > 0 for value in noise(20_000, sigma)) <= most


def test_a_trend_is_not_a_spike():
    for slope in (-0.02, 0.02):
        spikes = Spikes()
        assert not any(spikes.times(v * math.exp(slope * i)) for i, v in enumerate(noise(500)))


def test_nothing_is_unusual_without_a_past_nor_what_is_not_a_norm():
    spikes = Spikes()
    assert [spikes.times(value) for value in (1.0, 100.0, 1.0, 1e6, math.nan, math.inf, 0.0)] == [0.0] * 7
    assert len(spikes.logs) == 4


def test_a_level_that_stays_high_is_told_seldom():
    rows = [logged(i, peak=(v, v, v)) for i, v in enumerate(noise(30) + [50.0 * v for v in noise(300, seed=1)])]
    assert 1 <= len(told(rows)) <= 6


def test_the_layer_is_the_one_that_rose_most_above_its_own_level():
    rows = [logged(i, peak=(v, 1e-3 * v, 10.0 * v)) for i, v in enumerate(noise(30, 0.1))]
    (event,) = told([*rows, logged(30, peak=(3.0, 1.0, 90.0))])
    assert (event.kind, event.step, event.layer) == ("spike", 30, "a.bias")
    assert "a.bias rose most" in event.text
    assert "at step 30" in event.text
    assert "ZClip" in event.text
    assert event.value == pytest.approx(math.sqrt(9 + 1 + 8100), rel=1e-6)


# Not finite, skipped


def test_a_norm_that_is_not_finite_names_the_deepest_tensor_and_the_span():
    rows = [logged(9), logged(19, peak=(math.nan, math.inf, 1.0), nonfinite_total=3.0)]
    (event,) = told(rows)
    assert (event.kind, event.layer, event.value) == ("nonfinite", "a.bias", 3.0)
    assert "3 steps between steps 9 and 19" in event.text
    assert "2 of 3 tensors" in event.text


def test_what_the_guard_knows_comes_first_and_the_rest_is_counted():
    incident = GuardEvent(14, "b.weight", "step 14: the gradient is not finite in 1 of 3 tensors.")
    found = told([logged(9), logged(19, nonfinite_total=1.0, incidents=(incident,))])
    assert [(event.step, event.layer, event.text, event.kind) for event in found] == [incident]
    found = told([logged(9), logged(19, peak=(1.0, 1.0, math.nan), nonfinite_total=9.0, incidents=(incident,))])
    assert [event.step for event in found] == [14]  # one of a kind is enough for a row
    found = told([logged(9), logged(19, nonfinite_total=0.0)])
    assert found == []


@pytest.mark.parametrize(("scale", "part"), [(ABSENT, "Weights"), (1024.0, "normal"), (0.5, "bf16-mixed")])
def test_a_skipped_step_is_told_by_what_it_means(scale, part):
    (event,) = told([logged(4), logged(5, skipped_total=1.0, loss_scale=scale)])
    assert event.kind == "skip"
    assert part in event.text
    assert event.text.startswith("1 step at step 5 was not taken.")


# Spikes and rewinds that a guard has told


def guarded(step, kind, text="what the console said"):
    return GuardEvent(step, "", text, kind)


def test_a_spike_that_the_guard_has_dropped_is_told_at_its_step_in_its_words_and_once():
    usual = [logged(10 * i, peak=(v, v, v)) for i, v in enumerate(noise(30, 0.1))]
    dropped = logged(300, peak=(99.0,) * 3, incidents=(guarded(294, "spike"), guarded(295, "spike", "once more")))
    (event,) = told([*usual, dropped])
    assert event == (294, "spike", "what the console said", None, None)
    (alone,) = told([*usual, logged(300, peak=(99.0,) * 3)])
    assert "ZClip() or AutoClip() take it" in alone.text
    later = [logged(310 + 10 * i, incidents=(guarded(309 + 10 * i, "spike"),)) for i in range(5)]
    assert told([*usual, dropped, *later])[1].text.endswith("said 5 more of the kind since the last one listed.")


def test_what_becomes_of_a_rewind_is_told_in_the_same_row_and_the_next():
    rows = [logged(i) for i in range(10)]
    rows += [logged(10, incidents=(guarded(9, "rewind", "a"), guarded(10, "rewind", "b")))]
    rows += [logged(11, incidents=(guarded(11, "rewind", "c"),))]
    assert [(event.step, event.text) for event in told(rows)] == [(9, "a"), (10, "b"), (11, "c")]


def test_rewinds_without_end_become_rarer_too():
    events = told([logged(i, incidents=(guarded(i, "rewind"),)) for i in range(2000)])
    assert [event.step for event in events[:21]] == [*range(20), 21]
    assert len(events) < 200


def test_a_memory_from_before_there_were_rewinds_goes_on():
    _, first = follow([logged(i) for i in range(5)], EventDetector(NAMES))
    saved = first.saved()
    del saved["pauses"]["rewind"]
    second = EventDetector(NAMES)
    second.restore(saved, NAMES)
    same_bits(second.saved(), first.saved())
    (event,) = follow([logged(6, incidents=(guarded(6, "rewind"),))], second)[0]
    assert event.kind == "rewind"


# Dead


def test_a_dead_tensor_is_told_once():
    rows = [logged(i) for i in range(5)] + [logged(5 + i, peak=(1.0, 0.0, 1.0)) for i in range(200)]
    (event,) = told(rows)
    assert (event.kind, event.layer, event.step) == ("dead", "a.bias", 5 + DEAD_ROWS - 1)
    assert "missing or exactly zero" in event.text


def test_one_that_never_had_a_gradient_is_told_apart():
    (event,) = told([logged(i, peak=(1.0, ABSENT, ABSENT)) for i in range(100)])
    assert (event.kind, event.layer, event.value) == ("dead", "a.bias", 2.0)
    assert "a.bias and 1 more (b.weight) never got a gradient" in event.text


def test_a_frozen_one_is_meant_to_have_none():
    assert told([logged(i, peak=(1.0, ABSENT, 1.0), idle=(False, True, False)) for i in range(100)]) == []


def test_a_gradient_now_and_then_is_alive():
    assert told([logged(i, peak=(1.0, float(i % DEAD_ROWS == 0), 1.0)) for i in range(200)]) == []


def test_an_optimizer_that_rests_is_not_dead():
    assert told([logged(i, peak=(ABSENT,) * 3, grad_norm_max=ABSENT) for i in range(100)]) == []


# Learning rates


def jumps(rates):
    jump = Jumps()
    return [i for i, rate in enumerate(rates) if jump.from_to(rate) is not None]


SMOOTH = {
    "constant": [0.1] * 50,
    "linear warm-up, row by row": [1e-3 * (i + 1) for i in range(50)],
    "linear warm-up from nothing": [1e-8 + 1e-3 * i for i in range(50)],
    "cosine to zero": [0.5 * (1 + math.cos(math.pi * i / 49)) for i in range(50)],
    "linear to zero": [1 - i / 49 for i in range(50)],
    "exponential": [0.6**i for i in range(50)],
    "inverse root": [(i + 1) ** -0.5 for i in range(50)],
    "one cycle": [0.04 + 0.96 * math.sin(math.pi * i / 30) ** 2 for i in range(30)],
}


@pytest.mark.parametrize("rates", SMOOTH.values(), ids=SMOOTH)
def test_a_smooth_schedule_has_no_jump(rates):
    assert jumps(rates) == []


def test_each_milestone_is_one_jump():
    assert jumps([0.1] * 10 + [0.01] * 10 + [0.001] * 10) == [10, 20]
    assert jumps([0.1] * 10 + [0.051] * 10) == []


def test_a_warm_restart_is_a_jump():
    cycle = [0.5 * (1 + math.cos(math.pi * i / 20)) + 1e-3 for i in range(20)]
    assert jumps(cycle * 3) == [20, 40]


def test_a_dip_of_the_factor_is_told_once_and_not_its_return():
    rows = [logged(i, lr=0.1, lr_effective=0.02 if i == 20 else 0.1) for i in range(50)]
    (event,) = told(rows)
    assert (event.kind, event.step) == ("rate", 20)
    assert "effective learning rate" in event.text
    assert "0.1 to 0.02, 5 times" in event.text


def test_a_scheduler_is_told_as_such():
    (event,) = told([logged(i, lr=0.1 if i < 20 else 0.01, lr_effective=0.1 if i < 20 else 0.01) for i in range(50)])
    assert event.text.startswith("The learning rate fell from 0.1 to 0.01, 10 times, at step 20.")


# How often


def test_events_of_a_kind_become_rarer():
    pause = Pause()
    admitted = [row for row in range(10_000) if pause.admits(row)]
    gaps = [b - a for a, b in pairwise(admitted)]
    assert len(admitted) < 200
    assert gaps[0] == 5
    assert gaps == sorted(gaps)
    assert pause.hidden == 10_000 - len(admitted)


def test_what_is_twice_as_bad_is_told_at_once():
    pause = Pause()
    assert [pause.admits(row, bad) for row, bad in enumerate([1.0, 1.9, 2.5, 4.0, 6.0])] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_what_was_kept_quiet_is_counted_in_the_next_one():
    rows = [logged(i, skipped_total=float(i)) for i in range(12)]
    texts = [event.text for event in told(rows)]
    assert len(texts) == 3
    assert texts[1].endswith("4 more of the kind since the last one listed.")


def test_events_are_of_the_kinds_of_the_contract():
    sick = [logged(i, peak=(1.0, 0.0, 1.0)) for i in range(30)]
    totals = {"nonfinite_total": 1.0, "skipped_total": 1.0, "lr": 1.0, "grad_norm_max": 99.0}
    back = (GuardEvent(30, "", "older weights are put back", "rewind"),)
    sick += [logged(30, peak=(99.0, math.nan, 1.0), incidents=back, **totals)]
    kinds = {event.kind for event in told(sick)}
    assert kinds == set(EVENT_KINDS) - {"summary"}


# Memory


def test_a_saved_memory_tells_what_the_other_tells():
    values = noise(200, 0.4)
    rows = []
    for i, value in enumerate(values):
        spike = 60.0 if i in (40, 90, 91, 150) else 1.0
        totals = {"skipped_total": float(i // 30), "nonfinite_total": float(i // 50), "lr": 0.1 ** (1 + i // 70)}
        found = {40: [("", "told", "spike")], 90: [("", "back", "rewind"), ("", "stands", "rewind")]}.get(i, [])
        totals["incidents"] = tuple(GuardEvent(10 * i, *one) for one in found)
        rows.append(logged(10 * i, peak=(spike * value, 0.0 if i > 60 else 1.0, ABSENT), **totals))
    wanted = told(rows)
    assert {event.kind for event in wanted} == set(EVENT_KINDS) - {"summary"}
    for stop in (10, 70, 91, 160):
        found, first = follow(rows[:stop], EventDetector(NAMES))
        second = EventDetector(NAMES)
        second.restore(first.saved(), NAMES)
        assert found + follow(rows[stop:], second)[0] == wanted


def test_the_memory_follows_a_tensor_by_its_name():
    _, first = follow([logged(i, peak=(1.0, ABSENT, 5.0)) for i in range(DEAD_ROWS + 1)], EventDetector(NAMES))
    second = EventDetector(("new", "b.weight", "a.bias"))
    second.restore(first.saved(), NAMES)
    assert second.baseline.rows.tolist() == [0, DEAD_ROWS + 1, 0]
    assert second.baseline.told.tolist() == [False, False, True]


def test_aligned():
    found = aligned(torch.tensor([[1, 2], [3, 4]]), ["x", "y"], ["y", "z"], 9)
    assert found.tolist() == [[3, 4], [9, 9]]
    assert aligned(torch.ones(0), [], ["z"], 9.0).tolist() == [9.0]


def test_the_level_of_a_tensor_is_robust():
    usual = LayerBaseline.empty(1)
    for i, value in enumerate(noise(300, 0.2)):
        usual = usual.add(torch.tensor([1e6 if i % 50 == 49 else value]))
    assert usual.level.item() == pytest.approx(0.0, abs=0.25)  # of the logarithm; the noise has 0.2
    assert usual.rises(torch.tensor([math.e])).item() == pytest.approx(1.0 - usual.level.item(), rel=1e-5)
    assert usual.rises(torch.tensor([math.nan])).item() == -math.inf


def test_a_text_is_plain_json():
    (event,) = told([logged(9), logged(19, peak=(math.nan,) * 3, nonfinite_total=3.0)])
    assert json.loads(json.dumps(event._asdict(), allow_nan=False))["kind"] == "nonfinite"
