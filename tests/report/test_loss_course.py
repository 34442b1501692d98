"""Where a loss began and ended, how noisy it is, what was learned."""

import numpy as np
import pytest
from helpers.made_runs import healthy

from lightning_calib.report.loss_course import loss_course, noise_of, step_noise


def test_a_trend_and_outliers_are_no_noise():
    random = np.random.default_rng(0)
    values = np.linspace(50, 0, 4000) + random.normal(0, 0.5, 4000)
    values[::100] += 1000
    assert noise_of(values) == pytest.approx(0.5, rel=0.1)
    assert np.isnan(noise_of(values[:3]))


@pytest.mark.parametrize("steps", [5, 50])
def test_the_noise_of_a_step_is_told_from_rows(steps):
    losses = np.random.default_rng(0).normal(1.0, 0.3, (200, steps))
    assert step_noise(losses.mean(axis=1), losses.max(axis=1), steps) == pytest.approx(0.3, rel=0.15)
    assert step_noise(losses.mean(axis=1), np.full(200, np.nan), steps) == pytest.approx(0.3, rel=0.15)


def test_a_run_that_learned():
    course = loss_course(healthy().scalars, 5)
    assert (course.first, course.learned) == (2.4, True)
    assert course.last == pytest.approx(0.32, abs=0.05)


def test_a_loss_that_is_not_known_or_was_not_finite():
    run = healthy()
    for values in (run.scalars.loss, run.scalars.loss_max, run.scalars.loss_first):
        values[:] = np.nan
    unknown = loss_course(run.scalars, 5)
    assert np.isnan([unknown.first, unknown.last, unknown.highest]).all()
    assert (unknown.learned, unknown.learned_once, unknown.best) == (None, False, -1)
    run = healthy()
    run.scalars.loss[40:] = run.scalars.loss_max[40:] = np.inf
    broken = loss_course(run.scalars, 5)
    assert broken.last == broken.highest == np.inf
    assert broken.learned_once


def test_no_rows_at_all():
    assert loss_course(healthy(rows=0).scalars, 1).learned is None


def test_what_was_learned_before_the_largest_loss_counts_as_learned_once():
    run = healthy()
    run.scalars.loss[40] = 900.0
    assert loss_course(run.scalars, 5).learned_once
    run = healthy()
    run.scalars.loss_max[1] = 900.0
    assert not loss_course(run.scalars, 5).learned_once
