"""The one object that touches gradients: what it has read holds until somebody changes them, and no longer."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.bare_runs import ELEMENTS, SGD, bare_run, give, network
from helpers.tiny_modules import same_bits
from torch import nn

from lightning_calib.functional.segments import Segments
from lightning_calib.steps.gradient_view import GradientView

NORM = math.sqrt(ELEMENTS)
FUSED = partial(torch.optim.SGD, lr=0.1, fused=True)


def bare_view(make=SGD, **kwargs):
    return bare_run(make, **kwargs).view


def close(found, wanted):
    torch.testing.assert_close(float(found), float(wanted), rtol=1e-5, atol=0)


def uneven(view):
    """Other gradients in each tensor."""
    for i, tensor in enumerate(view.plan.tensors):
        tensor.grad = torch.arange(tensor.numel(), dtype=torch.float32).reshape(tensor.shape) - i


def test_a_reading_is_taken_once_and_holds_until_the_view_looks_again():
    view = bare_view()
    close(view.norm(), NORM)
    first = view.reading()
    give(view.module, 2.0)
    assert view.reading() is first
    view.look_again()
    close(view.norm(), 2 * NORM)


def test_each_step_is_looked_at_anew():
    view = bare_view()
    view.norm()
    give(view.module, 3.0)
    assert view.begin_step() is False
    close(view.norm(), 3 * NORM)


@pytest.mark.parametrize("scope", ["global", "group", "layer", "parameter", "unit"])
@pytest.mark.parametrize("units", [False, True])
def test_a_rescale_keeps_all_readings_up(scope, units):
    if scope == "unit" and not units:
        return  # norms of units have to be asked for
    view = bare_view(units=units)
    uneven(view)
    view.begin_step()
    for norm_type in (1.0, 2.0, math.inf):
        view.reading(norm_type)
    segments = Segments.of(view.plan, scope)
    view.rescale(segments.spread(0.5 + torch.arange(len(segments), dtype=torch.float32)))
    for norm_type in (1.0, 2.0, math.inf):
        kept = view.reading(norm_type)
        torch.testing.assert_close(kept.pieces, view.measure(norm_type).pieces, rtol=1e-6, atol=0)
        assert kept is view.readings[norm_type]
    close(view.norm(), nn.utils.get_total_norm([tensor.grad for tensor in view.plan.tensors]))


@pytest.mark.parametrize(("norm_type", "units"), [(2.0, True), (1.0, False), (1.0, True)])
def test_what_is_read_aside_is_read_once_and_no_other_reading_comes_of_it(norm_type, units):
    views = [bare_view(), bare_view()]
    for view in views:
        uneven(view)
        view.begin_step()
        view.norm()
    aside = views[1].read_aside(norm_type, units=units)
    assert views[1].read_aside(norm_type, units=units) is aside
    assert aside.by_unit is units
    half = torch.tensor([0.3])
    for view in views:
        view.rescale(half)
    same_bits(*[view.reading(norm_type).pieces for view in views])
    same_bits(*[view.reading(norm_type).norm for view in views])
    left = views[1].read_aside(norm_type, units=units)
    torch.testing.assert_close(left.pieces, aside.pieces * half, rtol=1e-6, atol=0)
    assert left is not aside


def test_one_pass_serves_who_acts_and_who_only_observes():
    view = bare_view()
    uneven(view)
    view.begin_step()
    assert view.read_aside(2.0, units=False) is view.reading()
    assert view.read_aside(1.0, units=False) is view.reading(1.0)
    view.rescale(torch.tensor([0.3]))
    assert view.read_aside(1.0, units=False) is view.reading(1.0)
    by_units = bare_view(units=True)
    by_units.begin_step()
    assert by_units.read_aside(2.0, units=False) is by_units.read_aside(2.0, units=True) is by_units.reading()


def test_a_dropped_step_has_no_gradient_and_a_norm_of_zero():
    view = bare_view()
    view.norm()
    view.drop()
    assert not view.has_gradient
    assert all(tensor.grad is None for tensor in view.module.parameters())
    assert float(view.norm()) == 0.0


def test_of_a_short_window_the_norms_are_those_of_a_whole_one():
    view = bare_view()
    view.begin_step(4.0)
    close(view.norm(), 4 * NORM)
    view.rescale(torch.tensor([0.5]))
    close(view.norm(), 2 * NORM)
    assert float(view.module[0].weight.grad[0, 0]) == 0.5
    view.begin_step()
    close(view.norm(), NORM / 2)


@pytest.mark.parametrize(
    ("value", "wanted"), [(1.0, True), (0.0, True), (1e30, True), (math.inf, False), (math.nan, False), (None, True)]
)
def test_whether_a_norm_is_finite(value, wanted):
    assert bare_view(gradient=value).is_finite() is wanted


def test_what_the_optimizer_uses_is_read_without_forgetting_what_is_known():
    view = bare_view()
    known = view.reading()
    give(view.module, 0.25)
    close(view.read_used().norm, NORM / 4)
    assert view.reading() is known


def test_other_parameters_are_another_plan():
    run = bare_run()
    view, plan = run.view, run.view.plan
    more = nn.Parameter(torch.ones(2))
    more.grad = torch.ones(2)
    view.optimizer.add_param_group({"params": [more]})
    assert view.begin_step() is True
    assert view.plan is not plan
    close(view.norm(), math.sqrt(ELEMENTS + 2))
    assert view.begin_step() is False


def test_names_and_kinds():
    net = network()
    view = GradientView(1, SGD(net.parameters()), net, suffix="/1", units=False, scaler=None)
    view.begin_step()
    assert (view.label, view.fused, view.has_gradient) == ("SGD/1", False, False)
    assert view.plan.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert not bare_view(FUSED).fused  # without a GradScaler there is nothing to divide out


# Under a GradScaler


def scaled_view(make=FUSED, scale=8.0, gradient=1.0):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    net = network()
    view = GradientView(0, make(net.parameters()), net, suffix="", units=False, scaler=scaler)
    scaler.scale(torch.ones(()))  # makes the scale
    give(net, scale * gradient)
    view.begin_step()
    return view, scaler


def test_a_scale_that_is_still_in_the_gradients_is_divided_out_of_the_norms():
    view, _ = scaled_view()
    assert view.fused
    assert float(view.scale) == 8.0
    close(view.norm(), NORM)
    close(view.read_used().norm, NORM)
    assert float(view.module[0].weight.grad[0, 0]) == 8.0


def test_before_gradients_are_changed_the_scale_is_taken_out_of_them_once():
    view, scaler = scaled_view()
    close(view.norm(), NORM)
    view.rescale(torch.tensor([0.5]))
    assert view.scale is None
    assert float(view.module[0].weight.grad[0, 0]) == 0.5
    view.rescale(torch.tensor([0.5]))  # a GradScaler raises when it is asked a second time
    view.unscale()
    assert float(view.module[0].weight.grad[0, 0]) == 0.25
    close(view.norm(), NORM / 4)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(view.optimizer)


def test_looking_again_the_scale_is_still_out():
    view, _ = scaled_view()
    view.unscale()
    view.look_again()
    assert view.scale is None
    close(view.norm(), NORM)


def test_the_next_step_has_the_scale_in_its_gradients_again():
    view, scaler = scaled_view()
    view.unscale()
    scaler.step(view.optimizer)
    scaler.update()
    give(view.module, 8.0)
    view.begin_step()
    assert float(view.scale) == 8.0
    close(view.norm(), NORM)


def test_other_optimizers_gradients_come_unscaled():
    view, scaler = scaled_view(SGD)
    scaler.unscale_(view.optimizer)
    view.begin_step()
    assert not view.fused
    assert view.scale is None
    close(view.norm(), NORM)


def test_reading_changes_no_gradient():
    view = bare_view(units=True)
    uneven(view)
    before = [tensor.grad.clone() for tensor in view.plan.tensors]
    view.begin_step(2.0)
    view.norm(), view.reading(1.0), view.is_finite(), view.read_used()
    same_bits([tensor.grad for tensor in view.plan.tensors], before)
