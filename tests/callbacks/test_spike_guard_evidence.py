"""SpikeGuard on whole runs: healthy ones keep their bits, and most planted blow-ups end as if they had not been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.plain_recorder import PlainRecorder
from helpers.tiny_modules import same_bits
from lightning.pytorch import Callback, Trainer
from report.planted import fit as planted
from report.planted.healthy import CASES
from torch import Tensor

from benchmarks import spikes
from lightning_calib import SpikeGuard

FIRES = "likelihood-mlp-adamw"  # its norm grows tenfold within some steps while the loss falls: some steps are skipped
FEW = ("constant-mlp-sgd", "one_cycle-cnn_norm-sgd", "clip_1-gru-adamw")


class Ended(Callback):
    """The weights and buffers at the end."""

    state: dict[str, Tensor]

    def on_train_end(self, trainer, pl_module):
        self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}


def run(case: Any, guards: list[SpikeGuard], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """One healthy run with these callbacks more."""
    ended = Ended()

    def trainer(callbacks: list[Callback], **kwargs: Any) -> Trainer:
        return Trainer(callbacks=[*callbacks, *guards, ended], **kwargs)

    monkeypatch.setattr(planted, "Trainer", trainer)
    torch.manual_seed(1000)
    with planted.quiet():
        case.fit(PlainRecorder(case.rows))
    return ended.state


def check(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = "gan" in case.name.lower()
    guard = SpikeGuard(ladder=("skip", "stop")) if by_hand else SpikeGuard()
    same_bits(run(case, [guard], monkeypatch), run(case, [], monkeypatch))
    ladders = [one["ladder"] for one in guard.state_dict()["optimizers"].values()]
    assert [one["spikes"] for one in ladders] == [0] * len(ladders)
    assert all(one["step"] for one in ladders)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.name in FEW], ids=lambda case: case.name)
def test_a_healthy_run_has_no_spike_and_keeps_its_bits(case, monkeypatch):
    check(case, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if "example" not in case.name and case.name != FIRES], ids=lambda case: case.name
)
def test_every_healthy_run_has_no_spike_and_keeps_its_bits(case, monkeypatch):
    check(case, monkeypatch)


@pytest.mark.slow
def test_where_the_norm_grows_while_the_loss_falls_nothing_is_rewound(monkeypatch):
    (case,) = (case for case in CASES if case.name == FIRES)
    guard = SpikeGuard()
    run(case, [guard], monkeypatch)
    saved = guard.state_dict()
    assert saved["tally"]["0"]["rewound"] == 0
    assert saved["optimizers"]["0"]["ladder"]["spikes"] > 0


@pytest.mark.slow
def test_most_blow_ups_end_as_a_run_that_never_saw_them():
    good = 0
    for case in range(len(spikes.CASES)):
        losses = [[spikes.fit((case, way, seed))[3] for seed in range(2)] for way in ("never saw it", "SpikeGuard")]
        (clean, found), spread = losses, max(losses[0]) / min(losses[0])
        good += sum(found) <= max(1.05, spread) * sum(clean)
    assert good >= 16


def test_a_blow_up_is_worse_without_the_guard():
    case = spikes.CASES.index((spikes.BURST, "MLP", "SGD"))
    clean, nothing, guarded = (spikes.fit((case, way, 0)) for way in ("never saw it", "nothing", "SpikeGuard"))
    assert guarded[3] == pytest.approx(clean[3], rel=1e-6)
    assert guarded[4] == [4, 4, 0]
    assert not nothing[3] < 1.05 * clean[3]


def test_the_page_has_the_table_of_the_results():
    assert spikes.table() in spikes.PAGE.read_text()
