"""What the guard's message offers as evidence, and the causes that it ranks by it; never the same list for all."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import ADAM, Plant, every, incidents
from helpers.tiny_modules import Grads, Tiny, fit, same_bits, scaled
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lightning_calib import GradientMonitor, NonFiniteGradientError, NonFiniteGuard
from lightning_calib.incidents.batch_values import bad_input
from lightning_calib.incidents.incident_log import IncidentLog
from lightning_calib.report.incident import Incident, causes, ranked

NAN, INF = math.nan, math.inf
HARMLESS = partial(torch.optim.SGD, lr=1e-6)
PLAIN = Incident(
    bad=2,
    tensors=6,
    deepest="net.2.bias",
    counts="(1 NaN and 0 Inf of 6 elements)",
    around=("net.0.bias", "net.4.weight"),
    infinite=False,
    lost=False,
    rate=0.1,
    origin="",
    data="",
    looked=True,
    precision="32-true",
    loss=1.0,
    norm=2.0,
    times=1.1,
    moved=1e-3,
    since=1,
)


def said_first(said):
    return incidents(said())[0]


def test_the_last_finite_norm_and_how_many_times_its_usual(said):
    grads = Grads()
    fit(Tiny(HARMLESS, {7: 1e6, 8: NAN}), [grads, NonFiniteGuard("skip")])
    usual = torch.tensor(grads.norms[:7]).median().item()
    (line,) = incidents(said())
    norm, times = map(float, re.search(r"the last finite norm was (\S+), (\S+) times its usual", line).groups())
    assert norm == pytest.approx(grads.norms[7], rel=6e-3)
    assert times == pytest.approx(grads.norms[7] / usual, rel=6e-3)
    assert times > 1e4
    assert re.search(
        r"Most likely: the learning rate, or training that explodes \(a norm of \S+, \S+ times its usual\)", line
    )
    assert "Else: arithmetic in the forward pass on this batch" in line


def test_the_first_step_has_no_norm_before(said):
    fit(Tiny(ADAM, {0: NAN}), [NonFiniteGuard("skip")], 2)
    assert "no finite norm is known from before" in said_first(said)


def test_with_few_norms_nothing_is_usual(said):
    fit(Tiny(ADAM, {3: NAN}), [NonFiniteGuard("skip")], 5)
    assert re.search(r"the last finite norm was [\d.]+; weights", said_first(said))


def test_how_far_the_last_step_moved_the_weights(said):
    """Known of logged steps, where GradientMonitor measures it."""
    quick = partial(torch.optim.Adam, lr=1.0)
    fit(Tiny(quick, {4: NAN}), [NonFiniteGuard("skip"), GradientMonitor(1)], 6)
    line = said_first(said)
    moved = float(re.search(r"the last step moved the weights by (\S+) of their norm", line)[1])
    assert moved > 0.1
    assert (
        f"Most likely: the learning rate, or training that explodes (a step that moved the weights by {moved:.2g}"
        in line
    )


def test_an_older_step_is_told_as_such(said):
    fit(Tiny(ADAM, {6: NAN}), [GradientMonitor(4), NonFiniteGuard("skip")], 8)
    assert "a step 3 steps ago, the last one measured, moved the weights by" in said_first(said)


def test_a_bad_tensor_lies_between_finite_ones(said):
    bad = {2: {"net.2.weight": [NAN], "net.2.bias": [NAN]}}
    fit(Tiny(ADAM), [Plant(bad), NonFiniteGuard("skip")], 4)
    assert "finite in module order: net.0.bias before them and net.4.weight after them" in said_first(said)


@pytest.mark.parametrize(
    ("name", "words"), [("net.0.weight", "net.0.bias after them"), ("net.4.bias", "net.4.weight before them")]
)
def test_at_an_end_there_is_one_neighbour(name, words, said):
    fit(Tiny(ADAM), [Plant(every(name, [2])), NonFiniteGuard("skip")], 4)
    assert f"finite in module order: {words};" in said_first(said)


def test_if_all_are_bad_there_is_none(said):
    fit(Tiny(ADAM, {2: NAN}), [NonFiniteGuard("skip")], 4)
    assert "in module order" not in said_first(said)


# ---------------------------------------------------------------- the data


class Fed(Tiny):
    """A row, by default in batch 3, holds what is given."""

    def __init__(self, value, mask=0.0, row=13):
        super().__init__(ADAM)
        self.value, self.mask, self.row = value, mask, row

    def training_step(self, batch, batch_idx):
        return self.net(batch["x"][0]).square().mean()

    def train_dataloader(self):
        x = torch.ones(16, 4)
        x[self.row, 1] = self.value
        mask = torch.zeros(16, 2)
        mask[:, 0] = self.mask
        return DataLoader([{"x": (a,), "mask": b, "id": "a"} for a, b in zip(x, mask, strict=True)], batch_size=4)


@pytest.mark.parametrize("value", [NAN, INF])
def test_an_infinite_input_is_data(value, said):
    fit(Fed(value, -INF), [NonFiniteGuard("skip")], 4)
    counts = "1 NaN and 0 Inf" if math.isnan(value) else "0 NaN and 1 Inf"
    words = f"batch['x'][0]: {counts} of 16 elements, in sample 1"
    assert f"Most likely: the data ({words}): repair or drop these samples." in said_first(said)


def test_the_first_of_a_window_can_be_looked_into_if_it_is_kept(said):
    for kept in (False, True):
        guard = NonFiniteGuard("skip", save_batch_to="bad" if kept else None)
        fit(Fed(NAN, row=9), [guard], 2, accumulate_grad_batches=2)
    without, with_it = incidents(said())
    assert "the data" not in without
    assert "Most likely: the data (batch['x'][0]: 1 NaN" in with_it


def test_a_mask_of_minus_infinity_is_not(said):
    fit(Fed(1.0, -INF), [Plant(every("net.0.bias", [2])), NonFiniteGuard("skip")], 4)
    assert "data" not in said_first(said)


def test_odd_batches_are_looked_into_as_far_as_they_can_be():
    loop: list = [torch.tensor([NAN])]
    loop.append(loop)
    assert bad_input([loop]).text.startswith("batch[0]: 1 NaN")
    odd = [
        None,
        "text",
        {3: torch.tensor([1 + 1j, complex(NAN, 0)])},
        torch.ones(2, 2).to_sparse(),
        torch.ones(3).bool(),
    ]
    assert bad_input([odd]).text == "batch[2][3]: 1 NaN and 0 Inf of 2 elements"
    rows = torch.ones(9, 3)
    rows[[1, 3, 5, 7, 8], 0] = INF
    assert bad_input([rows]).text.endswith("in samples 1, 3, 5 and 2 more")
    assert bad_input([torch.empty(2, device="meta"), [torch.ones(2)]]).text == ""


# ---------------------------------------------------------------- causes


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (
            {"times": 4e6, "norm": 8e6},
            "the learning rate, or training that explodes (a norm of 8e+06, 4e+06 times its usual)",
        ),
        (
            {"moved": 0.4, "times": None},
            "the learning rate, or training that explodes (a step that moved the weights by 0.4",
        ),
        ({"bad": 1}, "arithmetic in the backward pass of the layer of net.2.bias, since the loss was finite"),
        ({}, "arithmetic in the backward pass at or just after net.2.bias, since the loss was finite"),
        ({"bad": 6}, "arithmetic in the backward pass of the loss or of the last layer, since the loss was finite"),
        ({"lost": True}, "arithmetic in the forward pass on this batch, since the norm was usual before it"),
        ({"lost": True, "times": None}, "arithmetic in the forward pass on this batch: a division"),
        (
            {"lost": True, "looked": False},
            "arithmetic in the forward pass on this batch, since the norm was usual before it: a",
        ),
        ({"lost": True, "precision": "16-mixed"}, "a value above 65504 in the forward pass, which fp16 cannot hold"),
        ({"lost": True, "data": "batch: 1 NaN", "times": 50.0}, "the data (batch: 1 NaN)"),
        ({"ruined": True, "data": "batch: 1 NaN"}, "an earlier step, which ruined the weights"),
        ({"named": True, "traced": "..."}, "the operation that the re-run names"),
        ({"named": True, "traced": "...", "times": 1e4}, "the learning rate, or training that explodes"),
        ({"loss": None}, "the backward pass: its loss was not seen"),
    ],
)
def test_causes_are_ranked_by_the_evidence(changes, first):
    incident = PLAIN._replace(**changes)
    assert causes(incident)[0].startswith(first)
    assert ranked(incident).startswith(f"Most likely: {first}")


def test_no_two_kinds_of_evidence_give_one_list():
    changes = [{}, {"bad": 6}, {"lost": True}, {"lost": True, "times": 99.0}, {"times": 99.0}, {"data": "x"}]
    told = [ranked(PLAIN._replace(**one)) for one in changes]
    assert len(set(told)) == len(told)


# ---------------------------------------------------------------- how often, and for how long it is known


def test_the_first_has_a_link_and_the_repeats_have_a_count(said):
    fit(Tiny(ADAM), [Plant(every("net.0.bias", range(9))), NonFiniteGuard("skip", max_consecutive=20)], 9)
    lines = incidents(said())
    assert [re.search(r"(\d+) in all", line)[1] for line in lines] == ["1", "2", "4", "8"]
    assert ["See docs/my-loss-is-nan.md." in line for line in lines] == [True, False, False, False]


def test_the_error_has_all_steps():
    plant = Plant(every("net.0.bias", [1, 2, 3, 5, 8, 9, 10, 11]))
    with pytest.raises(NonFiniteGradientError, match=r"Bad steps \(8 in all\): 1 to 3, 5, 8 to 11\.") as caught:
        fit(Tiny(ADAM), [plant, NonFiniteGuard("skip", max_consecutive=3)], 20)
    assert caught.value.steps == ((1, 3), (5, 5), (8, 11))


def test_a_step_with_two_incidents_is_one_stretch():
    log = IncidentLog()
    for step in (3, 3, 4, 9):
        log.incident(step)
    assert log.steps == [[3, 4], [9, 9]]
    for step in range(20, 5000, 2):
        log.incident(step)
    assert len(log.steps) == 1000
    assert log.steps[-1] == [4998, 4998]


class Saves(Callback):
    """At the end of a batch, before or behind ours."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            trainer.save_checkpoint("stopped.ckpt")


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
@pytest.mark.parametrize("every_n", [1, 5, 4])
def test_a_resumed_run_has_the_same_evidence(every_n, first, said):
    """Whether the row of the last step was written before the checkpoint or not."""
    gains, guards = {8: NAN} if every_n == 1 else {6: NAN}, [NonFiniteGuard("skip"), NonFiniteGuard("skip")]
    company = [GradientMonitor(every_n), guards[0]]
    fit(Tiny(ADAM, gains), [Saves(), *company] if first else [*company, Saves()], 10)
    fit(Tiny(ADAM, gains), [GradientMonitor(every_n), guards[1]], 10, ckpt_path="stopped.ckpt")
    same_bits(*(guard.state_dict()["optimizers"]["0"] for guard in guards))
    assert all("moved the weights" in line for line in incidents(said()))


def test_norms_that_overflow_are_no_usual_norms():
    log = IncidentLog()
    for norm in (1.0, 2.0, INF, 3.0):
        log.close(torch.tensor(norm))
    assert log.before(4).norm == 3.0
    assert log.saved()["norms"] == [1.0, 2.0, 3.0]
    for _ in range(100):
        log.close(torch.tensor(5.0))
    assert len(log.norms) == 64
    assert log.before(200)._asdict() == {"norm": 5.0, "times": 1.0, "moved": None, "since": 201}


def test_a_scaler_is_no_hindrance(said):
    fit(Tiny(HARMLESS, {7: 1e3, 8: NAN}), [NonFiniteGuard("skip")], plugins=scaled(2.0**4))
    assert "Most likely: the learning rate, or training that explodes" in said_first(said)


def test_the_whole_message(said):
    """As a reader sees it."""
    torch.manual_seed(0)
    fit(Tiny(partial(torch.optim.SGD, lr=0.01), {7: NAN}), [NonFiniteGuard("skip")], 9)
    line = re.sub(r"\d+\.\d+(e-\d+)?", "N", said_first(said))
    assert line == (
        "[calib] step 7 (epoch 1, batch 0): the gradient is not finite in 6 of 6 tensors, deepest listed net.4.bias "
        "(1 NaN and 0 Inf of 1 elements); loss nan, learning rate N; the last finite norm was N, N times its usual; "
        "weights and buffers are finite; the step is skipped, 1 in a row, 1 in all. Most likely: arithmetic in the "
        "forward pass on this batch, since the norm was usual before it and the data are finite: a division or a "
        "logarithm at 0, an overflow. See docs/my-loss-is-nan.md."
    )
