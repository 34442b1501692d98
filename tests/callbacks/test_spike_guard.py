"""SpikeGuard in real fits: what is skipped, rewound, accepted, stopped, and that a healthy run keeps its bits."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from helpers.dispatch_counts import step_counts
from helpers.tiny_modules import (
    SGD,
    Rows,
    Tiny,
    TwoNets,
    batches_that_stepped,
    data,
    different,
    fit,
    same_bits,
    scaled,
    weights,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from benchmarks.models import Given, small
from benchmarks.variants import Variant, plain
from lightning_calib import (
    GradientMonitor,
    LearningRateControl,
    MaxNorm,
    NonFiniteGuard,
    Percentile,
    SpikeBackoff,
    SpikeError,
    SpikeGuard,
    WeightRelative,
    ZClip,
    ZScore,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*returned `None`.*"),
]

ADAMW = partial(torch.optim.AdamW, lr=1e-2)
MOMENTUM = partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-2)
START, END = 60, 100
BURST = dict.fromkeys(range(START, START + 4), 300.0)
Guard = partial(SpikeGuard, snapshot_every_n_steps=10)


def stands(guard: SpikeGuard, index: int = 0) -> dict[str, Any]:
    return guard.state_dict()["optimizers"][str(index)]["ladder"]


def tally(guard: SpikeGuard) -> dict[str, Any]:
    return guard.state_dict()["tally"]["0"]


def ends(module: Tiny, trainer: Any) -> list[Any]:
    return [weights(module), [b.clone() for b in module.buffers()], trainer.optimizers[0].state_dict()["state"]]


class Jumps(Tiny):
    """The learning rate is ``times`` as large from step 60 on, for three steps."""

    times = 1000.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        group = self.trainer.optimizers[0].param_groups[0]
        group["lr"] = 1e-2 * (self.times if START <= self.trainer.global_step < START + 3 else 1.0)


class States(Callback):
    """Copies of the training state when a batch starts and when it has ended, by step."""

    def __init__(self) -> None:
        self.starts: dict[int, Any] = {}
        self.ends: dict[int, Any] = {}

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.starts[trainer.global_step] = copy.deepcopy(ends(pl_module, trainer))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.ends[trainer.global_step - 1] = copy.deepcopy(ends(pl_module, trainer))


# Skip


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM, partial(ADAMW, fused=True)])
def test_bad_batches_leave_no_trace(optimizer):
    module, guard = Tiny(optimizer, BURST), Guard()
    found = ends(module, fit(module, [guard], END))
    clean = Tiny(optimizer, dict.fromkeys(BURST))
    same_bits(found, ends(clean, fit(clean, [], END)))
    assert tally(guard)["skipped"] == stands(guard)["spikes"] == 4
    assert tally(guard)["steps"] == END
    plain = Tiny(optimizer, BURST)
    with different("nobody guards it"):
        same_bits(found, ends(plain, fit(plain, [], END)))


@pytest.mark.parametrize("first", [True, False])
def test_a_spike_enters_no_policy_rule_or_history_wherever_the_guard_stands(first):
    def company(guard: list[Callback]) -> list[Callback]:
        ours = [ZClip(), LearningRateControl(SpikeBackoff()), GradientMonitor()]
        return [*guard, *ours] if first else [*ours, *guard]

    found, wanted = company([Guard()]), company([])
    fit(Tiny(ADAMW, BURST), found, END, logger=Rows())
    fit(Tiny(ADAMW, dict.fromkeys(BURST)), wanted, END, logger=Rows())
    for one in wanted[:2]:
        (mine,) = [other for other in found if type(other) is type(one)]
        for part in ("parts", "state"):
            saved, expected = (other.state_dict()["optimizers"]["0"] for other in (mine, one))
            same_bits(saved.get(part, []), expected.get(part, []))


def test_the_norms_of_the_run_are_those_of_steps_that_were_taken():
    monitor = GradientMonitor()
    fit(Tiny(ADAMW, BURST), [monitor, Guard()], END, logger=Rows())
    assert "ran from" in monitor.summary()
    assert max(float(x) for x in monitor.summary().split("ran from ")[1].split(" (")[0].split(" to ")) < 10


class Normalised(Tiny):
    """BatchNorm first, and a batch whose inputs are large, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, net, step):
        x, y = data(step)
        bad = self.gains.get(step, 1.0) > 1
        return nn.functional.mse_loss(net(x * (1000 if bad else 1)), y) * self.gains.get(step, 1.0)


def test_batch_norm_is_as_before_a_skipped_step():
    module, states = Normalised(ADAMW, BURST), States()
    fit(module, [Guard(), states], END)
    for step in BURST:
        same_bits(states.ends[step], states.starts[step])
    with different("it moves in other steps"):
        same_bits(states.ends[START - 1][1], states.starts[START - 1][1])


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_bad_batches_leave_no_trace(fused):
    def run(gains: dict) -> list[Any]:
        module = Tiny(partial(ADAMW, fused=fused), gains)
        trainer = fit(module, [Guard()], END, plugins=scaled(2.0**4))
        return [*ends(module, trainer), trainer.precision_plugin.scaler.get_scale()]

    same_bits(run(BURST)[:3], run(dict.fromkeys(BURST))[:3])
    assert run(BURST)[3] == 2.0**4


def test_a_scalers_overflow_is_not_judged():
    guard = Guard(ladder=("skip",))
    fit(Tiny(ADAMW, {70: 1e9}), [guard], END, plugins=scaled(2.0**12))
    assert stands(guard)["spikes"] == 0
    assert stands(guard)["step"] == END - tally(guard)["skipped"] < END


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_not_finite_is_left_to_the_other_guard(order):
    company = [Guard(), NonFiniteGuard("skip")][::order]
    fit(Tiny(ADAMW, {50: float("nan"), 70: 300.0}), company, END)
    guard, other = company[::order]
    assert stands(guard)["spikes"] == 1
    assert other.state_dict()["optimizers"]["0"]["total"] == 1
    assert tally(guard)["skipped"] == 2


def test_a_norm_that_overflows_is_a_spike():
    class Huge(Tiny):
        def on_after_backward(self):
            if self.trainer.global_step == 70:
                for p in self.parameters():
                    p.grad.fill_(1e38)

    guard = Guard()
    module = Huge(SGD)
    fit(module, [guard, NonFiniteGuard("raise")], END)
    assert stands(guard)["spikes"] == 1
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_a_window_of_micro_batches_is_judged_as_a_whole():
    class Micro(Tiny):
        def training_step(self, batch, batch_idx):
            return self.loss(self.net, self.trainer.global_step)

    guard = Guard()
    fit(Micro(ADAMW, BURST), [guard], END, accumulate_grad_batches=2)
    assert stands(guard)["spikes"] == tally(guard)["skipped"] == 4


class Loud(Tiny):
    """The loss is large on some steps, the gradient is not."""

    def loss(self, net, step):
        return super().loss(net, step) + (100.0 if step in range(70, 73) else 0.0)


def test_the_loss_alone_can_be_a_spike(caplog):
    guard = Guard()
    with caplog.at_level("WARNING", "lightning_calib"):
        fit(Loud(ADAMW), [guard], END)
    assert stands(guard)["spikes"] == 3
    assert "the loss is 10" in caplog.text
    assert "the gradient norm is" not in caplog.text


def test_a_negative_loss_is_not_judged():
    class Negative(Tiny):
        def loss(self, net, step):
            return super().loss(net, step) - 100.0

    guard = Guard()
    fit(Negative(ADAMW, BURST), [guard], END)
    assert stands(guard)["spikes"] == 4


def test_a_loss_that_falls_through_zero_is_no_spike_on_either_side():
    class Falling(Tiny):
        def loss(self, net, step):
            wave = 0.3 * ((7 * step) % 11 - 5) / 5
            return 0.01 * super().loss(net, step) + 1.5 - 0.02 * step + wave

    guard = Guard()
    fit(Falling(ADAMW), [guard], 150)
    assert stands(guard)["spikes"] == 0


def test_with_several_optimizers_each_has_its_own_ladder():
    guard = Guard(ladder=("skip", "stop"))
    module = TwoNets(SGD, ADAMW, {60: 300.0, 561: 300.0})
    fit(module, [guard], 2 * END)
    assert (stands(guard, 0)["spikes"], stands(guard, 1)["spikes"]) == (1, 1)


# Rewind


def rewound(optimizer: Any, **arguments: Any) -> tuple[SpikeGuard, States]:
    guard, states = Guard(**arguments), States()
    fit(Jumps(optimizer), [states, guard], END)
    return guard, states


@pytest.mark.parametrize("optimizer", [ADAMW, partial(MOMENTUM, lr=1e-2)])
def test_a_rewind_puts_back_the_snapshot_to_the_bit(optimizer):
    guard, states = rewound(optimizer)
    assert stands(guard)["rewinds"] == 1
    (at,) = [step for step in range(START, END) if any(_alike(states.ends[step], states.starts[k]) for k in (40, 50))]
    assert at == START + 5
    same_bits(states.ends[at], states.starts[50])
    assert tally(guard)["rewound"] == START + 1 - 50
    assert tally(guard)["skipped"] == 5
    state = states.ends[at][2]
    with different("training goes on from there"):
        same_bits(states.ends[at + 1][2], state)


def _alike(one: Any, other: Any) -> bool:
    try:
        same_bits(one, other)
    except AssertionError:
        return False
    return True


def test_without_a_rewind_the_run_is_lost():
    def last(ladder: tuple[str, ...]) -> float:
        module = Jumps(ADAMW)
        fit(module, [Guard(ladder=ladder)], 80)
        return float(sum(module.loss(module.net, step).detach() for step in range(1000, 1010)))

    assert last(("skip", "rewind", "stop")) < 0.5 * last(("skip",))


def test_weights_newer_than_the_first_snapshot_lose_their_state():
    class Early(Jumps):
        def on_train_batch_start(self, batch, batch_idx):
            group = self.trainer.optimizers[0].param_groups[0]
            group["lr"] = 100.0 if self.trainer.global_step == 30 else 1e-2

    guard, states = Guard(snapshot_every_n_steps=1000), States()
    fit(Early(ADAMW), [states, guard], 60)
    assert stands(guard)["rewinds"] == 1
    same_bits(states.ends[35], states.starts[0])
    assert states.ends[35][2] == {}


def test_bad_data_are_told_from_bad_weights_and_a_rewind_is_taken_back():
    burst = dict.fromkeys(range(START, START + 15), 300.0)
    module, guard, states = Tiny(ADAMW, burst), Guard(), States()
    found = ends(module, fit(module, [guard, states], END))
    clean = Tiny(ADAMW, dict.fromkeys(burst))
    same_bits(found, ends(clean, fit(clean, [], END)))
    assert (stands(guard)["rewinds"], tally(guard)["rewound"], tally(guard)["skipped"]) == (0, 0, 15)
    with different("the older weights are there for one step"):
        same_bits(states.ends[START + 4], states.ends[START])
    same_bits(states.ends[START + 5], states.ends[START])


def test_the_second_rewind_goes_to_an_older_snapshot():
    class Twice(Jumps):
        def on_train_batch_start(self, batch, batch_idx):
            group = self.trainer.optimizers[0].param_groups[0]
            group["lr"] = 10.0 if self.trainer.global_step in (60, 68) else 1e-2

    guard, states = Guard(), States()
    fit(Twice(ADAMW), [states, guard], END)
    assert stands(guard)["rewinds"] == 2
    same_bits(states.ends[65], states.starts[50])
    same_bits(states.ends[73], states.starts[40])
    assert tally(guard)["rewound"] == 11 + 13


def test_no_snapshot_is_taken_in_trouble(monkeypatch):
    guard, taken = Guard(), []
    original = type(guard).on_train_batch_start

    def spy(self, trainer, *args):
        original(self, trainer, *args)
        taken.append([one.step for one in self._recoveries[0].snapshots.kept])

    monkeypatch.setattr(SpikeGuard, "on_train_batch_start", spy)
    fit(Tiny(ADAMW, dict.fromkeys(range(59, 63), 300.0)), [guard], END)
    assert sorted({step for kept in taken for step in kept}) == [0, 10, 20, 30, 40, 50, 73, 83, 93]
    assert max(map(len, taken)) == 3


def test_the_rate_is_lower_for_some_steps_after_a_rewind():
    rows = Rows()
    guard = Guard(lr_factor=0.5, lr_steps=6)
    fit(Jumps(ADAMW), [guard, GradientMonitor(1, layers=False)], END, logger=rows)
    pure, used = rows.values("calib/lr"), rows.values("calib/lr_effective")
    assert [step for step, (a, b) in enumerate(zip(pure, used, strict=True)) if a != b] == list(range(66, 72))
    assert used[66] == pytest.approx(0.5 * pure[66])


def test_a_scalers_state_comes_back_too():
    class Scaled(Jumps):
        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            if self.trainer.global_step == 55:
                self.trainer.precision_plugin.scaler._scale.fill_(2.0**3)

    guard = Guard()
    trainer = fit(Scaled(ADAMW), [guard], END, plugins=scaled(2.0**4))
    assert stands(guard)["rewinds"] == 1
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**4


# Stop, and accept


def erratic(step: int) -> float:
    return 50.0 ** (1 + step % 4)


def test_spikes_that_nothing_ends_stop_the_run_and_the_error_teaches(tmp_path, caplog):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=20, filename="{step}", save_top_k=-1)
    module = Tiny(ADAMW, {step: erratic(step) for step in range(START, 200)})
    guard = Guard()
    with pytest.raises(SpikeError) as error:
        fit(module, [guard, saver], 200, enable_checkpointing=True)
    text = str(error.value)
    assert text.startswith("Spikes go on after 20 skipped steps and 0 rewinds, and 2 more that did not help.")
    assert f"The last checkpoint is {str(tmp_path / 'step=80.ckpt')!r}: resume from it with" in text
    assert "Look first at the learning rate" in text
    assert "the run ends here" in text


def test_without_a_checkpoint_the_error_says_so():
    module = Tiny(ADAMW, {step: erratic(step) for step in range(START, 200)})
    with pytest.raises(SpikeError, match=r"after 3 skipped .*There is no checkpoint.*add a `ModelCheckpoint"):
        fit(module, [Guard(ladder=("skip", "stop"), max_skips=3)], 200)


@pytest.mark.parametrize("ladder", [("skip", "rewind", "stop"), ("skip",), ("skip", "rewind")])
def test_a_level_that_stays_is_accepted_and_guarded(ladder):
    gains = dict.fromkeys(range(START, 200), 50.0) | {150: 15000.0}
    module, guard = Tiny(partial(SGD, lr=1e-4), gains), Guard(ladder=ladder)
    fit(module, [guard], 200)
    spikes = 20 + 4 * ("rewind" in ladder) + 1
    assert stands(guard)["spikes"] == spikes + 1
    assert tally(guard)["skipped"] == spikes
    assert stands(guard)["step"] == 200


def test_one_line_for_the_first_and_counts_for_repeats(caplog):
    burst = dict.fromkeys(range(START, START + 20), 300.0)
    with caplog.at_level("WARNING", "lightning_calib"):
        fit(Tiny(ADAMW, burst), [Guard(ladder=("skip", "stop"))], END)
    told = [text for text in caplog.messages if "times its level" in text]
    assert [text.split("; ")[-1] for text in told] == ["the first spike."] + [
        f"{n} spikes so far." for n in (2, 4, 8, 16)
    ]
    assert told[0].startswith("[calib] step 60 (epoch 8, batch 4): the gradient norm is ")
    assert "learning rate 0.01; the step is skipped, 1 of at most 20" in told[0]


# Healthy runs


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM])
@pytest.mark.parametrize("options", [{}, {"plugins": 1}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.5}])
def test_a_healthy_run_keeps_its_bits(optimizer, options):
    def run(callbacks: list[Callback]) -> list[Any]:
        module = Tiny(optimizer)
        parts = {**options, **({"plugins": scaled(2.0**4)} if "plugins" in options else {})}
        return ends(module, fit(module, callbacks, END, **parts))

    guard = Guard(min_ratio=4.0)
    same_bits(run([guard]), run([]))
    assert stands(guard)["spikes"] == 0
    assert stands(guard)["taken"] == END


def test_two_guards_wait_once_for_the_device():
    def counted(*callbacks: Callback) -> int:
        model = Given(small(10), "meta")
        both = Variant("", "", lambda: [copy.deepcopy(one) for one in callbacks])
        return step_counts(model, both).minus(step_counts(Given(small(10), "meta"), plain())).syncs

    guards = [NonFiniteGuard("skip"), SpikeGuard()]
    assert counted(*guards) == counted(*guards[::-1]) == counted(guards[1])


# Resume


class Until(Callback):
    """Ends the run as a kill would, after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint("killed.ckpt")
            raise KeyError("killed")


@pytest.mark.parametrize("at", [40, 62, 64, 70])
def test_killed_in_the_ladder_and_resumed_equals_never_stopped(at):
    def make() -> tuple[Tiny, SpikeGuard]:
        return Tiny(ADAMW, BURST), Guard(ladder=("skip", "rewind", "stop"))

    module, guard = make()
    wanted, saved = ends(module, fit(module, [guard], END)), guard.state_dict()
    module, guard = make()
    with pytest.raises(KeyError, match="killed"):
        fit(module, [guard, Until(at)], END)
    module, guard = make()
    same_bits(ends(module, fit(module, [guard], END, ckpt_path="killed.ckpt")), wanted)
    same_bits(guard.state_dict(), saved)


def test_after_a_resume_the_loaded_checkpoint_is_the_first_snapshot():
    module, guard = Jumps(ADAMW), Guard()
    with pytest.raises(KeyError, match="killed"):
        fit(module, [guard, Until(58)], END)
    module, guard, states = Jumps(ADAMW), Guard(), States()
    fit(module, [guard, states], END, ckpt_path="killed.ckpt")
    same_bits(states.ends[START + 5], states.starts[58])
    assert stands(guard)["rewinds"] == 1


def test_a_rewind_on_trial_stands_after_a_resume():
    burst = dict.fromkeys(range(START, START + 8), 300.0)
    module, guard = Tiny(ADAMW, burst), Guard()
    with pytest.raises(KeyError, match="killed"):
        fit(module, [guard, Until(START + 5)], END)
    assert torch.load("killed.ckpt", weights_only=True)["callbacks"]["SpikeGuard"]["optimizers"]["0"]["ladder"][
        "on_trial"
    ]
    module, guard, states = Tiny(ADAMW, burst), Guard(), States()
    fit(module, [guard, states], END, ckpt_path="killed.ckpt")
    same_bits(states.ends[START + 6], states.starts[START + 5])
    assert stands(guard)["rewinds"] == 0
    assert not stands(guard)["on_trial"]


def test_of_other_parameters_or_another_policy_nothing_is_taken_up(caplog):
    fit(Tiny(ADAMW), [Guard()], 40).save_checkpoint("a.ckpt")
    with caplog.at_level("WARNING", "lightning_calib"):
        fit(Tiny(ADAMW), [Guard(Percentile(99))], 45, ckpt_path="a.ckpt")
    assert "the saved state is of other parameters or another method; it starts afresh" in caplog.text


# Arguments and refusals


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"policy": 1.0}, TypeError, "`policy` must be a policy, got 1.0"),
        ({"policy": WeightRelative()}, ValueError, "`policy` must be one that needs no weights"),
        ({"min_ratio": 0.5}, ValueError, "`min_ratio` must be in"),
        ({"ladder": "skip"}, TypeError, "`ladder` must be some of 'skip', 'rewind', 'stop', in this order, got 'skip'"),
        ({"ladder": ("stop", "skip")}, ValueError, "in this order"),
        ({"ladder": ()}, ValueError, "in this order"),
        ({"ladder": ("skip", "clip")}, ValueError, "in this order"),
        ({"max_skips": 0}, ValueError, "`max_skips` must be a whole number >= 1"),
        ({"max_rewinds": 0}, ValueError, 'or leave "rewind" out'),
        ({"snapshot_every_n_steps": 0}, ValueError, "`snapshot_every_n_steps`"),
        ({"max_snapshot_gb": 0}, ValueError, "`max_snapshot_gb`"),
        ({"lr_factor": 0.0}, ValueError, "`lr_factor` must be in"),
        ({"lr_steps": 0}, ValueError, "`lr_steps`"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, kind, words):
    with pytest.raises(kind, match=words):
        SpikeGuard(**arguments)


def test_the_size_of_snapshots_is_told_and_bounded(caplog):
    with caplog.at_level("INFO", "lightning_calib"):
        fit(Tiny(ADAMW), [Guard()], 1)
    assert "SpikeGuard: skip, rewind, stop (3 snapshots of about 0.00116 MB of host memory)" in caplog.text
    with pytest.raises(MisconfigurationException, match="`max_snapshot_gb` must be at least what 3 snap"):
        fit(Tiny(ADAMW), [Guard(max_snapshot_gb=1e-7)], 1)
    fit(Tiny(ADAMW), [Guard(max_snapshot_gb=1e-7, ladder=("skip",))], 1)


def test_manual_optimization_and_several_optimizers_cannot_be_rewound():
    with pytest.raises(MisconfigurationException, match=r"cannot rewind under several optimizers: .*ladder=\("):
        fit(TwoNets(SGD, SGD), [Guard()], 4)

    class Manual(TwoNets):
        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(self.loss(self.net, batches_that_stepped(self.trainer)))
            self.optimizers().step()

        def configure_optimizers(self):
            return self.optimizer(self.net.parameters())

    with pytest.raises(MisconfigurationException, match="cannot rewind under manual optimization"):
        fit(Manual(SGD, SGD), [Guard()], 4)
    fit(Manual(SGD, SGD), [Guard(ladder=("skip", "stop"))], 4)


@pytest.mark.filterwarnings("ignore:.*Two things clip.*")
def test_what_fails_without_a_gradient_is_refused():
    with pytest.raises(MisconfigurationException, match="cannot drop steps under"):
        fit(Tiny(ADAMW), [Guard()], 4, gradient_clip_val=1.0, gradient_clip_algorithm="value")
    rprop = Tiny(partial(torch.optim.Rprop, lr=0.01))
    with pytest.raises(MisconfigurationException, match="Rprop: it reads the learning rate before"):
        fit(rprop, [Guard(lr_factor=0.5)], 4)
    fit(rprop, [Guard()], 4)


def test_any_policy_says_what_is_expected():
    for policy in (MaxNorm(5.0), Percentile(95, warmup_steps=20), ZScore(4.0, robust=False)):
        guard = Guard(policy)
        fit(Tiny(ADAMW, {70: 300.0}), [guard], END)
        assert 1 <= stands(guard)["spikes"] <= 2, policy
