"""A row is a pure function of what is remembered: asking for it changes nothing, and a checkpoint may ask."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from helpers.bare_runs import ELEMENTS, SGD, BareFit, Clip, Foreign, Tab, Watches, Written, frozen
from helpers.tiny_modules import different, same_bits

from lightning_calib.steps.step_record import Phase

NORM = math.sqrt(ELEMENTS)
FUSED = partial(torch.optim.SGD, lr=0.1, fused=True)
INF = math.inf


class Case(NamedTuple):
    """A fit, and its batches: each a list of optimizers' indices and gradients."""

    make: Callable[..., BareFit]
    batches: list[list[tuple[int, float | None]]]


def clipped(*, scale: float | None = None, **kwargs: Any) -> BareFit:
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    callbacks = kwargs.pop("callbacks", None) or [Clip(2.0), Clip(1.0, acts=False, key="dry"), Tab()]
    return BareFit(callbacks, scaler=scaler, loggers=[Written()], **kwargs)


ONE = [[(0, value)] for value in (1.0, 0.1, INF, None, 5.0, 0.2, 7.0, 0.3)]
MANY = [
    [(0, 1.0), (1, 0.1)],
    [(1, 2.0)],
    [(0, 3.0), (0, 0.2)],
    [(1, INF)],
    [],
    [(0, None), (1, 4.0)],
    [(0, 1.0), (1, 1.0)],
    [(1, 0.5)],
]
CASES = {
    "one optimizer": Case(clipped, ONE),
    "the Trainer clips, too": Case(partial(clipped, gradient_clip_val=1.0), ONE),
    "a foreign callback comes last": Case(
        lambda: clipped(callbacks=[Clip(2.0), Tab(), Foreign(0.5)], gradient_clip_val=1.0), ONE[:2] + ONE[4:]
    ),
    "a row in every batch": Case(partial(clipped, log_every_n_steps=1), ONE),
    "a GradScaler": Case(partial(clipped, scale=4.0), ONE[:3] + ONE[4:]),
    "a fused optimizer under a GradScaler": Case(partial(clipped, scale=4.0, optimizers=[FUSED]), ONE[:3] + ONE[4:]),
    "two optimizers under manual optimization": Case(partial(clipped, manual=True, optimizers=[SGD, SGD]), MANY),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def play(fit: BareFit, batch: list[tuple[int, float | None]]) -> None:
    for index, gradient in batch:
        fit.step(gradient, index)


def now(fit: BareFit) -> list[Any]:
    """Everything that a row reads."""
    runs = fit.session.runs.values()
    return [[frozen(run.memory), run.record, [one.grad for one in run.view.plan.tensors]] for run in runs]


def memories(found: dict[int, Any]) -> dict[int, Any]:
    return {index: frozen(memory) for index, memory in found.items()}


def remembered(fit: BareFit) -> dict[int, Any]:
    return memories({run.view.index: run.memory for run in fit.session.runs.values()})


def closed(fit: BareFit) -> list[Any]:
    row = fit.session.close_row()
    return [row.values, memories(row.memories), row.records]


@EACH
def test_asked_twice_it_gives_the_same_and_changes_nothing(case):
    fit = case.make()
    for batch in case.batches:
        play(fit, batch)
        before, records = now(fit), [run.record for run in fit.session.runs.values()]
        first = closed(fit)
        same_bits(closed(fit), first)
        same_bits(now(fit), before)
        assert all(run.record is one for run, one in zip(fit.session.runs.values(), records, strict=True))
        fit.end_batch()
    assert fit.trainer.loggers[0].rows


@EACH
def test_what_a_checkpoint_saves_before_our_row_is_written_is_what_is_remembered_after_it(case):
    fit, compared = case.make(), 0
    for batch in case.batches:
        play(fit, batch)
        records = [run.record for run in fit.session.runs.values()]
        over = any(one.turn for one in records) and all(one.phase is not Phase.JUDGED for one in records)
        ahead = memories(fit.session.memories_to_save())
        fit.end_batch()
        if over:  # a step that a GradScaler skips is not told from one that is still to come
            same_bits(ahead, remembered(fit))
            compared += 1
    assert compared > 4


@EACH
@pytest.mark.parametrize("stop", range(7))
def test_a_fit_that_goes_on_from_any_batch_logs_what_one_that_never_stopped_logs(case, stop):
    straight, first, second = case.make(), case.make(), case.make()
    for batch in case.batches:
        play(straight, batch)
        straight.end_batch()
    for batch in case.batches[:stop]:
        play(first, batch)
        first.end_batch()
    kept, net = first.session.memories_to_save(), [one.state_dict() for one in first.nets]
    for run in second.session.runs.values():
        run.memory = kept[run.view.index]
    for mine, theirs in zip(second.nets, net, strict=True):
        mine.load_state_dict(theirs)
    if first.scaler is not None:
        second.scaler.load_state_dict(first.scaler.state_dict())
    second.trainer.fit_loop.epoch_loop._batches_that_stepped = stop
    for batch in case.batches[stop:]:
        play(second, batch)
        second.end_batch()
    wanted = straight.trainer.loggers[0].rows
    same_bits([*first.trainer.loggers[0].rows, *second.trainer.loggers[0].rows], wanted)
    same_bits(remembered(second), remembered(straight))


def test_what_was_closed_and_goes_on_counts_like_a_loop_over_numbers():
    norms = [one * NORM for one in (1.0, 0.1, 5.0, 0.2, 7.0)]
    fit = BareFit([Clip(2.0), Watches()])
    window, total = [], 0
    for i, norm in enumerate(norms):
        fit.step(norm / NORM)
        window.append(norm)
        total += norm > 2.0
        row = fit.session.close_row().values
        assert row["calib/clip_fraction"] == sum(one > 2.0 for one in window) / len(window)
        torch.testing.assert_close(row["calib/grad_norm_max"], max(window), rtol=1e-6, atol=0)
        fit.end_batch()
        window = [] if i % 2 else window  # a row in every second batch
        memory = fit.run().memory
        assert (memory.steps.steps, memory.steps.window_steps) == (i + 1, len(window))
        counts = memory.clips["Clip"]
        assert (counts.steps, int(counts.fired), counts.window_steps) == (i + 1, total, len(window))


# What a row tells


def test_a_row_tells_what_the_step_did():
    written = Written()
    fit = BareFit([Clip(2.0), Watches()], loggers=[written], gradient_clip_val=1.0)
    fit.batch(0.1)
    fit.step(1.0)
    torch.nn.utils.clip_grad_norm_(fit.nets[0].parameters(), 1.0)  # too late for the step, which is not clipped here
    fit.end_batch()
    ((step, row),) = written.rows
    assert step == 1
    wanted = {
        "calib/grad_norm_before": NORM,
        "calib/grad_norm_max": NORM,
        "calib/grad_norm_after": 2.0,
        "calib/clip_fraction": 0.5,
        "calib/update_norm": 0.2,
        "calib/update_ratio": None,
        "calib/lr": 0.1,
        "calib/lr_effective": 0.1,
        "calib/nonfinite_total": 0.0,
        "calib/skipped_total": 0.0,
        "calib/clip_threshold": 1.0,
    }
    assert set(row) == set(wanted)
    for tag, value in wanted.items():
        if value is not None:
            torch.testing.assert_close(row[tag], value, rtol=1e-5, atol=0, msg=lambda text, tag=tag: f"{tag}: {text}")
    assert set(fit.trainer.callback_metrics) == set(wanted)


def test_without_a_monitor_the_row_has_what_the_callbacks_that_act_need():
    fit = BareFit([Clip(2.0)], loggers=[Written()])
    fit.batch()
    fit.batch()
    ((_, row),) = fit.trainer.loggers[0].rows
    assert set(row) == {
        f"calib/{name}" for name in ("grad_norm_before", "grad_norm_max", "grad_norm_after", "clip_fraction")
    }


def test_a_step_that_was_not_taken_has_no_after_and_no_update():
    fit = BareFit([Watches()], loggers=[Written()], log_every_n_steps=1)
    fit.batch(None)
    ((_, row),) = fit.trainer.loggers[0].rows
    assert set(row) == {f"calib/{name}" for name in ("lr", "lr_effective", "nonfinite_total", "skipped_total")}
    assert row["calib/skipped_total"] == 1.0


def test_an_overflow_that_a_fused_optimizer_skips_by_itself_has_no_after_either():
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fit = BareFit([Watches()], [FUSED], scaler=scaler, loggers=[Written()], log_every_n_steps=1)
    fit.batch(1.0)
    fit.batch(INF)
    rows = [row for _, row in fit.trainer.loggers[0].rows]
    assert "calib/grad_norm_after" in rows[0]
    assert not {"calib/grad_norm_after", "calib/update_norm"} & set(rows[1])
    assert (rows[1]["calib/skipped_total"], rows[1]["calib/nonfinite_total"]) == (1.0, 0.0)
    assert (rows[1]["calib/grad_norm_before"], rows[1]["calib/loss_scale"]) == (INF, 4.0)
    assert math.isnan(rows[1]["calib/grad_norm_max"])


def test_of_several_optimizers_each_tag_ends_in_its_index():
    fit = BareFit([Watches()], [SGD, SGD], manual=True, loggers=[Written()], log_every_n_steps=1)
    play(fit, [(0, 1.0), (1, 2.0)])
    fit.end_batch()
    ((_, row),) = fit.trainer.loggers[0].rows
    found = [row[f"calib/grad_norm_before/{i}"] for i in (0, 1)]
    torch.testing.assert_close(found, [NORM, 2 * NORM], rtol=1e-5, atol=0)
    assert all(tag[-2:] in ("/0", "/1") for tag in row)


def test_where_the_last_word_is_not_ours_the_fraction_is_of_the_logged_step():
    rows = {}
    for factor in (0.5, 1.0):
        fit = BareFit([Watches(), Foreign(factor)], loggers=[Written()], gradient_clip_val=0.5)
        fit.batch(1.0)
        fit.batch(1.0)
        ((_, rows[factor]),) = fit.trainer.loggers[0].rows
    torch.testing.assert_close(rows[0.5]["calib/grad_norm_after"], NORM / 2, rtol=1e-5, atol=0)
    assert "calib/clip_fraction" in rows[0.5]
    with different("the foreign callback has halved it"):
        same_bits(rows[0.5]["calib/grad_norm_after"], rows[1.0]["calib/grad_norm_after"])
