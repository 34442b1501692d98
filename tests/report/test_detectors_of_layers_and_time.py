"""Layers that do not learn, single steps, statistics, counts: each finding where it must be, and where it must not."""

import numpy as np
import pytest
from helpers.made_runs import column, grads, healthy

from lightning_calib.report import Report
from lightning_calib.report.run import Clipper


def codes(*runs):
    return [one.code for one in Report(runs).findings]


def first(*runs):
    return Report(runs).findings[0]


# ---------------------------------------------------------------- dead, unused, frozen


def kill(run, *tensors, value=0.0, since=0):
    for name in tensors:
        for table in ("before", "after", "peak", "update"):
            column(run, table, name)[since:] = value
    return run


def test_dead_layers_are_named_from_the_output():
    found = first(kill(healthy(), "net.0.weight", "net.2.weight", since=20))
    assert (found.code, found.severity) == ("dead-layer", "look")
    assert found.layers == ("net.2.weight", "net.0.weight")
    assert "have been exactly zero from step 104 to 299" in found.sentence
    assert found.steps == (104, 299)
    assert "LeakyReLU" in found.advice


def test_the_steps_of_the_dead_begin_where_the_last_of_them_became_zero():
    late = kill(kill(healthy(), "net.0.weight", since=20), "net.2.weight", since=25)
    assert first(late).steps == (129, 299)
    assert first(kill(healthy(), "net.0.weight")).steps == (4, 299)
    between = kill(healthy(), "net.0.weight", since=20)
    column(between, "peak", "net.0.weight")[22] = 1.0
    assert first(between).steps == (119, 299)


def test_biases_rare_gradients_and_a_loss_of_zero_are_not_dead():
    rare = kill(healthy(), "net.0.weight")
    column(rare, "peak", "net.0.weight")[45] = 1.0  # between two rows
    everything = kill(healthy(), *healthy().layers.names, since=20)
    everything.scalars.grad_norm_before[20:] = everything.scalars.grad_norm_after[20:] = 0.0
    for run in (kill(healthy(), "net.0.bias"), rare, everything, kill(healthy(rows=19), "net.0.weight")):
        assert "dead-layer" not in codes(run)


def unused(run, *tensors):
    kill(run, *tensors, value=np.nan)
    for name in tensors:
        run.layers.given[run.layers.names.index(name)] = False
    return run


def unnamed(run, name):
    names = tuple("(unnamed 3)" if one == name else one for one in run.layers.names)
    return run._replace(layers=run.layers._replace(names=names))


def test_a_parameter_without_a_gradient_is_unused():
    found = first(unused(healthy(), "net.2.weight", "net.2.bias"))
    assert (found.code, found.severity) == ("unused-parameter", "look")
    assert "`net.2.weight` and `net.2.bias` never got a gradient in 300 steps" in found.sentence
    assert "such as" not in first(unnamed(unused(healthy(), "net.2.weight"), "net.2.weight")).advice
    assert '`self.get_parameter("net.2.weight").requires_grad_(False)`' in found.advice


def test_it_is_left_in_peace_at_first_or_where_a_sibling_is_drawn_now_and_then():
    assert codes(unused(healthy(rows=9), "net.2.weight")) == []
    run = unused(healthy(), "net.2.weight", "net.2.bias")
    kill(run, "net.0.weight", "net.0.bias", value=np.nan, since=50)
    assert codes(run) == []


def test_of_several_optimizers_one_without_any_gradient_has_unused_parameters():
    run = unused(healthy(), *healthy().layers.names)
    run = run._replace(counts=run.counts._replace(steps=0, usable=0))
    other = healthy()._replace(facts=healthy().facts._replace(position=1, optimizers=2))
    assert codes(run, other) == ["unused-parameter"]
    assert codes(run) == ["no-steps-seen"]
    assert first(run, other).sentence.startswith("Optimizer 0 (AdamW): ")


def test_frozen_tensors_are_a_note_and_nothing_else():
    run = unused(healthy(), "embed.weight")
    run.layers.trainable[0] = False
    assert [(one.code, one.severity) for one in Report([run]).findings] == [("frozen", "note")]
    assert "`embed.weight`" in first(run).sentence


def test_no_steps_is_the_verdict():
    run = healthy(rows=0)
    assert Report([run]).verdict == "No optimizer step has been seen yet."
    assert codes(run) == ["no-steps-seen"]


def test_four_faults_in_one_model_are_named_and_nothing_else():
    names = ("a.weight", "b.weight", "c.weight", "dead.weight", "frozen.weight", "head.weight", "extra.weight")
    run = healthy("sgd", names=names)
    run = run._replace(layers=run.layers._replace(dims=(2,) * 7))
    unused(kill(run, "dead.weight"), "extra.weight", "frozen.weight")
    run.layers.trainable[4] = False
    column(run, "update", "head.weight")[:] *= 300
    assert {one.code: one.layers for one in Report([run]).findings} == {
        "dead-layer": ("dead.weight",),
        "unused-parameter": ("extra.weight",),
        "layer-rate": ("head.weight",),
        "frozen": ("frozen.weight",),
    }


# ---------------------------------------------------------------- vanishing, exploding


def test_a_gradient_that_no_longer_moves_a_matrix_vanishes():
    run = healthy("sgd")
    for name, times in (("embed.weight", 1e-9), ("net.0.weight", 1e-7)):
        grads(run, name, times)
        column(run, "update", name)[:] *= times
    found = first(run)
    assert (found.code, found.severity) == ("vanishing", "look")
    assert found.layers == ("embed.weight", "net.0.weight")
    assert "The gradient vanishes on its way to `embed.weight`" in found.sentence
    assert codes(run) == ["vanishing"]


def test_adam_moves_small_gradients_as_far_until_eps():
    run = healthy("adam")
    grads(run, "embed.weight", 1e-5)
    assert codes(run) == []
    grads(run, "embed.weight", 1e-6)
    column(run, "update", "embed.weight")[:] *= 1e-3
    assert codes(run) == ["vanishing"]


def test_what_weight_decay_moves_is_not_moved_by_the_gradient():
    run = healthy("adam")
    group = run.facts.groups[0]._replace(weight_decay=0.01)
    grads(run, "embed.weight", 1e-6)
    column(run, "update", "embed.weight")[:] = 1e-3 * 0.01 * column(run, "weight", "embed.weight")
    assert "vanishing" in codes(run._replace(facts=run.facts._replace(groups=(group,))))


def test_a_group_that_is_slow_by_choice_does_not_vanish():
    run = healthy("sgd")
    slow = run.facts.groups[0]._replace(lr=1e-9)
    column(run, "update", "embed.weight")[:] *= 1e-8
    layers = run.layers._replace(group_of=(1, 0, 0, 0, 0, 0, 0))
    run = run._replace(layers=layers, facts=run.facts._replace(groups=(run.facts.groups[0], slow)))
    assert "vanishing" not in codes(run)


def test_a_block_that_is_drawn_now_and_then_does_not_vanish():
    run = healthy("adam")
    for name in ("embed.weight", "net.0.weight"):
        for table in ("before", "after", "peak"):
            column(run, table, name)[np.arange(60) % 3 > 0] = np.nan
        column(run, "update", name)[np.arange(60) % 3 > 0] = 0.0
    assert "vanishing" not in codes(run)


def test_gradients_that_grow_by_decades_towards_the_input_explode():
    run = healthy("sgd")
    for name, times in (("embed.weight", 3e5), ("net.0.weight", 1e4), ("net.2.weight", 1e2)):
        grads(run, name, times)
    found = first(run)
    assert (found.code, found.severity) == ("exploding", "look")
    assert "as large at `embed.weight` as at `head.weight`, over 4 matrices" in found.sentence


def test_one_large_layer_or_two_decades_do_not_explode():
    one, two = healthy("sgd"), healthy("sgd")
    grads(one, "net.2.weight", 300.0)
    for name, times in (("embed.weight", 100), ("net.0.weight", 30), ("net.2.weight", 5)):
        grads(two, name, times)
    assert codes(one) == codes(two) == []


def test_a_matrix_that_a_thousandth_upsets_explodes():
    run = healthy("adam")
    for name in run.layers.names:
        grads(run, name, 1e4)
    found = first(run)
    assert found.code == "exploding"
    assert found.evidence["sensitivity"] > 1000


# ---------------------------------------------------------------- spikes and shifts


def spiked(kind="sgd", loss=True, rows=60, row=40):
    run = healthy(kind, rows=rows)
    run.scalars.grad_norm_max[row] = 60.0
    column(run, "peak", "net.0.weight")[row] = 60.0
    if loss:
        run.scalars.loss_max[row] = 50.0
        run.scalars.loss[row] += 10.0
    return run


@pytest.mark.parametrize("rows", [60, 8])
def test_a_spike_of_norm_and_loss_is_named_with_step_and_layer(rows):
    found = first(spiked(rows=rows, row=rows * 2 // 3))
    assert (found.code, found.severity) == ("spike", "look")
    assert "most in `net.0.weight`; the loss reached 50 and came back" in found.sentence
    assert found.layers[0] == "net.0.weight"
    assert found.evidence["times"] > 10
    assert "ZClip()" in found.advice
    there = spiked(rows=rows, row=rows * 2 // 3)._replace(clippers=(Clipper("AutoClip", "adaptive", 0.1),))
    assert "noise, and AutoClip clips what it judges too large; look at the batch" in first(there).advice


def test_a_spike_tells_whether_the_loss_came_back():
    run = spiked()
    run.scalars.loss[41:] += 1.5
    run.scalars.loss_max[41:] += 1.5
    assert codes(run) == ["spike", "level-shift"]
    assert "the loss reached 50 and was at 1.9" in first(run).sentence
    assert "the loss reached 50 and is the last" in first(spiked(row=59)).sentence


def test_a_norm_alone_is_no_spike_and_the_start_is_none():
    assert codes(spiked(loss=False)) == []
    assert codes(spiked(row=1)) == []


def test_a_spike_long_before_the_norm_rose_is_seen():
    run = spiked(row=20)
    run.scalars.grad_norm_before[30:] *= 100.0  # while the loss falls
    run.scalars.grad_norm_max[30:] *= 100.0
    assert codes(run) == ["spike"]


def test_the_first_row_of_a_shift_is_no_spike():
    run = shifted(50.0, 1.0)
    run.scalars.grad_norm_max[40] *= 10
    run.scalars.loss_max[40] = 90.0
    assert codes(run) == ["level-shift"]


def test_without_a_loss_only_a_hundred_times_is_a_spike():
    run = spiked(loss=False)
    run.scalars.loss[:] = run.scalars.loss_max[:] = run.scalars.loss_first[:] = np.nan
    assert codes(run) == []
    run.scalars.grad_norm_max[40] = 600.0
    assert codes(run) == ["spike"]


def shifted(norm=10.0, loss=1.0):
    run = healthy("sgd")
    run.scalars.grad_norm_before[40:] *= norm
    run.scalars.grad_norm_max[40:] *= norm
    run.scalars.loss[40:] += loss
    run.scalars.loss_max[40:] += loss
    return run


def test_a_lasting_shift_for_the_worse_is_named():
    found = first(shifted())
    assert (found.code, found.severity) == ("level-shift", "look")
    assert found.steps == (204, 299)
    assert "From between steps 199 and 204 on the loss is higher and stays so" in found.sentence
    assert found.evidence["change"] == pytest.approx(10, rel=0.3)


def test_a_plateau_that_is_left_is_no_shift():
    run = shifted(11.0, 0.0)
    run.scalars.loss[40:] *= 0.5
    run.scalars.loss_max[40:] *= 0.5
    assert codes(run) == []


def test_a_shift_of_the_loss_alone_has_to_double_it():
    assert codes(shifted(1.0, 0.25)) == []
    assert codes(shifted(1.0, 1.0)) == ["level-shift"]


def test_with_a_few_rows_a_shift_of_the_data_is_seen():
    run = healthy("adam", rows=10)
    run.scalars.loss[5:] = [316, 236, 195, 157, 137]
    run.scalars.loss_max[5:] = run.scalars.loss[5:] * 1.3
    run.scalars.grad_norm_before[5:] *= 500
    assert codes(run) == ["level-shift"]


# ---------------------------------------------------------------- batch-norm, loss-summed, skipped


def normed(batch=32, shift=0.2, val=np.nan):
    run = healthy("sgd")
    run.scalars.norm_shift[:] = shift
    run.scalars.val_loss[:] = val
    return run._replace(facts=run.facts._replace(norm_layers=("bn",), batch_size=batch))


@pytest.mark.parametrize(
    ("batch", "shift", "val", "words"),
    [
        (32, 2.0, np.nan, "running means are 2 standard deviations"),
        (32, 0.7, 9.0, "the validation loss is 9 where training is at"),
        (2, 0.4, np.nan, "over 2 samples per batch"),
    ],
)
def test_statistics_that_are_not_the_datas_are_named(batch, shift, val, words):
    found = first(normed(batch, shift, val))
    assert (found.code, found.severity) == ("batch-norm", "look")
    assert words in found.sentence
    assert "PreciseBatchNorm()" in found.advice
    assert found.layers == ("bn",)


def test_overfitting_and_tiny_batches_without_batch_norm_are_none():
    assert codes(normed(val=9.0)) == []
    run = normed(batch=2)
    assert codes(run._replace(facts=run.facts._replace(norm_layers=()))) == []


def summed(first_loss):
    run = healthy("adam")
    run.scalars.loss_first[:] = first_loss
    run.scalars.loss[:] *= first_loss / 2.4
    run.scalars.loss_max[:] = run.scalars.loss + 0.02 * first_loss
    return run


def test_a_first_loss_of_the_batch_size_times_that_of_chance_is_a_sum():
    found = first(summed(32 * 2.4))
    assert (found.code, found.severity) == ("loss-summed", "look")
    assert "32 samples times 2.4, and ln 10 = 2.3" in found.sentence
    assert 'reduction="mean"' in found.advice


@pytest.mark.parametrize("loss", [2.4, 32 * 0.7, 32 * 9.0, 1e5])
def test_other_first_losses_are_of_other_units(loss):
    assert "loss-summed" not in codes(summed(loss))


def skipping(skipped, steps=300, scale=np.nan):
    run = healthy()
    run.scalars.loss_scale[:] = scale
    return run._replace(counts=run.counts._replace(skipped=skipped, steps=steps))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (skipping(30), ["skipped-steps"]),
        (skipping(3), []),
        (skipping(16, scale=1.0), ["loss-scale"]),
        (skipping(60, scale=1024.0), ["skipped-steps"]),
        (skipping(16, scale=0.25), ["skipped-steps"]),
        (skipping(60, steps=100_000, scale=1024.0), ["loss-scale"]),
    ],
)
def test_skipped_steps_are_named_beyond_what_is_usual(run, expected):
    assert codes(run) == expected
    if expected == ["skipped-steps"] and run.scalars.loss_scale[0] > 0:
        assert 'precision="bf16-mixed"' in first(run).advice
