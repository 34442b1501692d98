"""Shadows: judged on every step, never applied; their numbers are those of an independent judge and of a dry run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from helpers.tiny_modules import SGD, Grads, Tiny, TwoNets, different, fit, network, same_bits, scaled, weights
from lightning.pytorch import Callback
from torch import nn

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    EMARelative,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientStabilizer,
    MaxNorm,
    NonFiniteGuard,
    Percentile,
    Policy,
    SpikeGuard,
    WeightRelative,
    ZClip,
    ZScore,
)
from lightning_calib.callbacks.public import arguments_of
from lightning_calib.callbacks.segment_rescaler import SegmentRescaler

pytestmark = [
    pytest.mark.filterwarnings("ignore:Two things clip the gradient:UserWarning"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
]

SCOPES = ["global", "group", "layer", "parameter", "unit"]
STEPS, SPIKES = 24, {5: 20.0, 9: 0.05, 15: 30.0, 16: 8.0}
POLICIES: dict[str, tuple[Policy, Callable[[], Any]]] = {
    "fixed": (MaxNorm(0.4), partial(oracles.MaxNormOracle, 0.4)),
    "percentile": (Percentile(60, window=6, warmup_steps=3), partial(oracles.PercentileOracle, 60, 6, 3)),
    "zscore": (ZScore(1.2, decay=0.9, warmup_steps=4), partial(oracles.RobustZScoreOracle, 1.2, 0.9, 4)),
    "zscore of the paper": (
        ZScore(1.2, decay=0.9, warmup_steps=4, robust=False),
        partial(oracles.ZClipOracle, 1.2, 0.9, 4),
    ),
    "ema": (EMARelative(1.05, decay=0.9, warmup_steps=3), partial(oracles.EMARelativeOracle, 1.05, 0.9, 3)),
    "weights": (WeightRelative(0.2), partial(oracles.WeightRelativeOracle, 0.2, 1e-3)),
}
EVERY = [
    MaxNorm(0.4),
    Percentile(60, window=6, warmup_steps=3),
    AutoClip(40),
    ZScore(1.2, warmup_steps=4),
    AGC(0.05),
    AdaGC(warmup_steps=3, warmup_max_norm=0.5),
    GradientClip(ZScore(1.2, warmup_steps=4), scope="layer"),
    GradientClip(0.3, norm_type=1.0, name="one"),
    GradientClip(0.1, scope="unit", norm_type=math.inf, name="largest"),
    GradientClip(None, rules={"*.0.*": 0.1, "*bias": EMARelative(warmup_steps=2)}, name="rules"),
    GradientNormalize(GradientStabilizer(), scope="parameter"),
]


class Weights(Callback):
    """The weights before each step."""

    def __init__(self) -> None:
        self.seen: list[list[np.ndarray]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([oracles.to_numpy(p) for p in pl_module.parameters()])


def shadows(module: Any, given: Any, *others: Any, steps: int = STEPS, **trainer: Any) -> Any:
    monitor = GradientMonitor(shadow=given)
    fit(module, [*others, monitor], steps, **trainer)
    return monitor.report().shadow


# ------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", POLICIES)
def test_the_numbers_are_an_independent_judges(scope, name):
    policy, oracle = POLICIES[name]
    seen, weights_seen, module = Grads(), Weights(), Tiny(SGD, SPIKES)
    (found,) = shadows(module, [GradientClip(policy, scope=scope)], seen, weights_seen)
    _, labels, count = oracles.label_elements(module.net, scope, module.optimizers().optimizer)
    judge = oracles.ClipOracle(labels, [oracle() for _ in range(count)])
    fired, factors, lowest, kept = [], [], [], []
    for gradients, before in zip(seen.seen, weights_seen.seen, strict=True):
        arrays = [oracles.to_numpy(one) for one in gradients]
        left = judge.step(arrays, before)
        fired.append(any(one < 1 for one in judge.coefficients))
        factors.append(np.mean(judge.coefficients))
        lowest.append(min(judge.coefficients))
        kept.append(_norm(left) / _norm(arrays))
    targets = [one for one in judge.targets if math.isfinite(one)]
    assert found.steps == STEPS
    assert found.clip_rate == pytest.approx(np.mean(fired), abs=1e-6)  # float32 of a count over a count
    # The judge sees norms in float32: 1e-5 is a hundred of its roundings, which states carry on.
    assert found.mean_factor == pytest.approx(np.mean(factors), rel=1e-5)
    assert found.lowest_factor == pytest.approx(min(lowest), rel=1e-4)
    assert found.kept == pytest.approx(np.mean(kept), rel=1e-5)
    assert found.threshold == pytest.approx(np.median(targets), rel=1e-4)
    assert any(fired)
    assert not all(fired) or scope in ("parameter", "unit", "layer")  # of many segments one always fires


def _norm(arrays: Any) -> float:
    return math.sqrt(sum(float(np.square(np.abs(one)).sum()) for one in arrays))


@pytest.mark.parametrize("one", EVERY, ids=[repr(one)[:40] for one in EVERY])
@pytest.mark.parametrize(
    ("module", "trainer"),
    [
        (Tiny, {}),
        (Tiny, {"accumulate_grad_batches": 3}),
        (partial(Tiny, partial(torch.optim.AdamW, lr=0.01, fused=True)), {"plugins": True}),
        (partial(TwoNets, SGD, partial(torch.optim.AdamW, lr=0.01)), {}),
    ],
    ids=["plain", "accumulation", "GradScaler", "two optimizers"],
)
def test_a_shadow_is_a_dry_run(one, module, trainer):
    """Of the same policy in a run of its own: the rate, and what the policy has learnt."""
    trainer = {**trainer, "plugins": scaled(2.0**8)} if "plugins" in trainer else trainer
    gains = {**SPIKES, **{500 + step: gain for step, gain in SPIKES.items()}}
    if "plugins" in trainer:
        gains[7] = 1e9  # overflows: neither sees it
    judged = one if isinstance(one, SegmentRescaler) else GradientClip(one)
    set_so = {name: getattr(judged, name) for name in arguments_of(type(judged))}
    dry_run = type(judged)(**{**set_so, "dry_run": True})
    monitor = GradientMonitor(shadow=[one])
    fit(_gained(module, gains), [monitor], STEPS, **trainer)
    fit(_gained(module, gains), [dry_run, GradientMonitor()], STEPS, **trainer)
    states, dry = monitor.state_dict()["shadows"], dry_run.state_dict()["optimizers"]
    assert states.keys() == dry.keys()
    for index, state in states.items():
        (learnt,) = state["learnt"].values()
        same_bits(learnt["parts"], dry[index]["parts"])
        assert state["counts"]["fired"].tolist() == [int(dry[index]["count"]["fired"])]
        assert state["counts"]["steps"] == dry[index]["count"]["steps"] > 0


def _gained(module: Any, gains: dict[int, float]) -> Any:
    made = module()
    made.gains = gains
    return made


def test_a_shadow_sees_what_the_first_of_ours_sees():
    """Wherever the monitor stands, and whoever acts before it."""
    still = partial(torch.optim.SGD, lr=0.0)  # so that the clip changes no later norm
    alone, behind = (shadows(Tiny(still, SPIKES), EVERY, *others) for others in ([], [GradientClip(0.1)]))
    assert [one.clip_rate for one in alone] == [one.clip_rate for one in behind]
    assert [one.kept for one in alone] == [one.kept for one in behind]
    assert any(0 < one.clip_rate < 1 for one in alone)


def test_a_step_that_a_guard_drops_is_not_judged_and_counts_as_not_reduced():
    gains = {**SPIKES, 7: math.nan}
    found = shadows(Tiny(SGD, gains), [0.4, ZScore(1.2, warmup_steps=4)], NonFiniteGuard("skip"))
    dry = GradientClip(0.4, dry_run=True)
    fit(Tiny(SGD, gains), [NonFiniteGuard("skip"), dry], STEPS)
    count = dry.state_dict()["optimizers"]["0"]["count"]
    assert found[0].steps == found[1].steps == count["steps"] == STEPS
    assert found[0].clip_rate == pytest.approx(int(count["fired"]) / STEPS)
    assert found[0].clip_rate < 1


def test_a_step_that_is_not_finite_has_no_factor():
    """Without a guard: the others' mean is told, and the policies have not seen it."""
    module = Tiny(partial(torch.optim.SGD, lr=0.0), {3: math.nan, 5: 50.0})
    (found,) = shadows(module, [0.4], steps=8)
    assert found.steps == 8
    assert 0 < found.lowest_factor < found.mean_factor < 1
    assert found.mean_factor == found.kept


@pytest.mark.filterwarnings("ignore:.*returned `None`:UserWarning")
def test_before_the_first_step_nothing_is_known():
    monitor = GradientMonitor(shadow=[1.0])
    assert monitor.report().shadow == ()
    fit(Tiny(gains=dict.fromkeys(range(9))), [monitor], max_epochs=1)
    (found,) = monitor.report().shadow
    assert found[2:6] == (None, None, None, None)
    assert "no step was judged" in str(monitor.report())


# --------------------------------------------------------------------------------------------- observes


COMPANY: dict[str, Callable[[], list[Any]]] = {
    "nobody": list,
    "a clip": lambda: [GradientClip(0.4)],
    "by units": lambda: [AGC(0.05)],
    "a norm of another type, second": lambda: [GradientClip(0.4), GradientClip(0.3, norm_type=1.0, name="second")],
    "by layers": lambda: [GradientClip(ZScore(1.0, warmup_steps=3), scope="layer"), ZClip(1.0, warmup_steps=3)],
    "guards": lambda: [NonFiniteGuard("skip"), SpikeGuard(ladder=("skip",))],
}


@pytest.mark.parametrize("company", COMPANY.values(), ids=COMPANY)
@pytest.mark.parametrize("trainer", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}])
def test_shadows_move_no_bit(company, trainer):
    gains = {**SPIKES, 11: math.nan} if company is COMPANY["guards"] else SPIKES
    ends = []
    for shadow in (None, EVERY):
        module, callbacks = Tiny(partial(torch.optim.AdamW, lr=0.02), gains), company()
        trained = fit(module, [*callbacks, GradientMonitor(2, shadow=shadow)], STEPS, **trainer)
        state = [one.state_dict() for one in callbacks]
        ends.append([weights(module), [one.state_dict() for one in trained.optimizers], state])
    same_bits(*ends)


def test_an_error_of_a_policy_ends_the_shadows_and_not_the_run(said):
    class Fails(Policy):
        calls = 0

        def init(self, norms: torch.Tensor) -> Any:
            return MaxNorm(1.0).init(norms)

        def __call__(self, observation: Any, state: Any) -> Any:
            type(self).calls += observation.norms.device.type != "meta"
            if type(self).calls > 20:
                raise RuntimeError("a bug")
            return torch.full_like(observation.norms, 1e-6), state

    module = Tiny()
    found = shadows(module, [Fails(), MaxNorm(0.4)], GradientClip(0.5), steps=40)
    alone = Tiny()
    fit(alone, [GradientClip(0.5)], 40)
    same_bits(weights(module), weights(alone))
    assert 0 < found[0].steps < 40
    assert found[0].clip_rate == 1.0
    assert [line for line in said() if "shadows are judged no longer" in line and "a bug" in line]


# -------------------------------------------------------------------------------------------- agreement


def test_agreement_with_what_really_clips():
    policy = Percentile(60, window=6, warmup_steps=3)
    same, other = shadows(Tiny(SGD, SPIKES), [policy, 1e9], GradientClip(policy))
    assert same.agreement == 1.0
    assert other.agreement == pytest.approx(1 - same.clip_rate)
    assert 0 < same.clip_rate < 1


def test_agreement_with_the_trainers_clip():
    same, other = shadows(Tiny(SGD, SPIKES), [0.4, 1e-6], gradient_clip_val=0.4)
    assert same.agreement == 1.0
    assert other.agreement == pytest.approx(same.clip_rate)


class ClipsItself(Tiny):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kinds: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.4)


@pytest.mark.parametrize("module", [Tiny, ClipsItself])
def test_no_agreement_where_nobody_clips_or_it_is_not_known(module):
    found = shadows(module(SGD, SPIKES), [0.4, ZScore()])
    assert [one.agreement for one in found] == [None, None]


# ------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("stop", [10, 12], ids=["within a window", "as a row is due"])
def test_stopped_and_resumed_is_as_never_stopped(stop):
    def run(steps: int, **kinds: Any) -> Any:
        monitor, module = GradientMonitor(4, shadow=EVERY), Tiny(SGD, SPIKES)
        trained = fit(module, [GradientClip(0.5), monitor], steps, **kinds)
        return trained, monitor, weights(module)

    run(stop)[0].save_checkpoint("stopped.ckpt")
    torch.load("stopped.ckpt", weights_only=True)
    _, whole, moved = run(STEPS)
    _, again, moved_again = run(STEPS, ckpt_path="stopped.ckpt")
    same_bits(moved, moved_again)
    same_bits(again.state_dict()["shadows"], whole.state_dict()["shadows"])
    assert again.report().shadow == whole.report().shadow
    forgotten = torch.load("stopped.ckpt", weights_only=True)
    del forgotten["callbacks"]["GradientMonitor"]["shadows"]
    torch.save(forgotten, "forgotten.ckpt")
    fresh = run(STEPS, ckpt_path="forgotten.ckpt")[1]
    with different("shadows have forgotten what they saw"):
        same_bits(fresh.state_dict()["shadows"], whole.state_dict()["shadows"])
    assert [one.steps for one in fresh.report().shadow] == [STEPS - stop] * len(EVERY)


def test_other_shadows_than_the_checkpoints_start_afresh_with_a_word(said):
    fit(Tiny(), [GradientMonitor(shadow=[1.0])], 10).save_checkpoint("one.ckpt")
    monitor = GradientMonitor(shadow=[1.0, ZScore()])
    fit(Tiny(), [monitor], 20, ckpt_path="one.ckpt")
    assert [one.steps for one in monitor.report().shadow] == [10, 10]
    assert [line for line in said() if "the checkpoint's shadows are MaxNorm(1.0)" in line]


def test_shadows_of_other_parameters_start_afresh_with_a_word(said):
    fit(Tiny(), [GradientMonitor(shadow=[GradientClip(ZScore(), scope="layer")])], 10).save_checkpoint("one.ckpt")
    saved = torch.load("one.ckpt", weights_only=True)
    (learnt,) = saved["callbacks"]["GradientMonitor"]["shadows"]["0"]["learnt"].values()
    learnt["parts"][0]["segments"] = "of another model"
    torch.save(saved, "one.ckpt")
    monitor = GradientMonitor(shadow=[GradientClip(ZScore(), scope="layer")])
    fit(Tiny(), [monitor], 20, ckpt_path="one.ckpt")
    assert [line for line in said() if "of other parameters or another policy; it starts afresh" in line]


def test_shadows_go_on_when_parameters_are_unfrozen():
    class Unfreezes(Tiny):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 12 and len(self.trainer.optimizers[0].param_groups) == 1:
                self.trainer.optimizers[0].add_param_group({"params": list(self.net[4].parameters())})

        def configure_optimizers(self) -> Any:
            return self.optimizer(self.net[:4].parameters())

    found = shadows(Unfreezes(SGD, SPIKES), [0.4, ZScore(), AdaGC(warmup_steps=2)])
    assert [one.steps for one in found] == [STEPS] * 3
    assert all(one.clip_rate > 0 for one in found[::2])


# ---------------------------------------------------------------------------------------------- silence


def test_console_and_summary_are_silent_about_shadows(said):
    told = []
    for shadow in (None, [0.4, ZScore(1.2, warmup_steps=4), AdaGC()]):
        before = len(said())
        monitor = GradientMonitor(shadow=shadow)
        fit(Tiny(SGD, SPIKES), [monitor], STEPS)
        told.append([*said()[before:], monitor.summary(), monitor.report().verdict])
    assert told[0] == told[1]
    assert "ZScore" in str(monitor.report())


def test_the_start_line_says_why_gradients_are_read_again(said):
    shadows(Tiny(), [AGC(), GradientClip(1.0, norm_type=1.0)], steps=2)
    (line,) = [line for line in said() if "precision" in line]
    assert "gradients are read once more for shadows (norm_type 1, the norms of units)" in line


# -------------------------------------------------------------------------------------------- arguments


def test_true_is_a_sensible_set():
    found = shadows(Tiny(), True)
    names = ["MaxNorm(1.0)", "Percentile(90.0)", "Percentile()", "ZScore()", "AdaGC()"]
    assert [one.name for one in found] == names


@pytest.mark.parametrize("none", [None, False, [], ()])
def test_no_shadows(none):
    assert shadows(Tiny(), none) == ()


def test_names_are_what_was_written():
    given = [0.5, Percentile(90, 50), GradientClip(ZScore(), scope="layer"), AGC(0.1), GradientNormalize(2.0, name="b")]
    found = shadows(Tiny(), given, steps=2)
    assert [one.name for one in found] == [
        "MaxNorm(0.5)",
        "Percentile(90, window=50)",
        "GradientClip(ZScore(), scope='layer')",
        "AGC(0.1)",
        "b",
    ]
    assert [one.scope for one in found] == ["global", "global", "layer", "unit", "global"]
    assert found[3].policy == "WeightRelative(factor=0.1, min_weight_norm=0.001)"


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (ZScore(), TypeError, "`shadow` must be a list of policies or callbacks of ours, True or None, got ZScore"),
        ("zscore", TypeError, "`shadow` must be a list"),
        ([ZScore], TypeError, "`shadow[0]` must be a number, a policy, or a callback that clips or normalises"),
        ([1.0, NonFiniteGuard()], TypeError, "`shadow[1]` must be a number, a policy, or a callback"),
        ([None], TypeError, "`shadow[0]` must be"),
        ([True], TypeError, "`shadow[0]` must be"),
        ([-1.0], ValueError, "`max_norm` must be in (0, inf]"),
        ([1.0, MaxNorm(1.0)], ValueError, "`shadow` must be a list of different entries, got ['MaxNorm(1.0)'"),
    ],
)
def test_what_is_no_shadow_is_refused(given, error, told):
    with pytest.raises(error) as found:
        GradientMonitor(shadow=given)
    assert told in str(found.value)
    assert "Use for instance" in str(found.value) or "Use " in str(found.value) or "Leave one" in str(found.value)


def test_a_glob_that_matches_nothing_is_refused_when_training_starts():
    with pytest.raises(ValueError, match=r"rules.*nett"):
        shadows(Tiny(), [GradientClip(None, rules={"nett.*": 1.0})])


def test_a_state_that_is_too_large_is_refused_when_training_starts():
    with pytest.raises(ValueError, match="MB of every checkpoint"):
        shadows(Tiny(), [GradientClip(Percentile(window=10**6), scope="unit")])


def test_an_argument_may_be_set_until_a_fit_begins():
    monitor = GradientMonitor()
    monitor.shadow = [0.4]
    fit(Tiny(), [monitor], 3)
    assert [one.name for one in monitor.report().shadow] == ["MaxNorm(0.4)"]


# ------------------------------------------------------------------------------------------------ report


def test_the_report_tells_of_shadows_in_every_form():
    monitor = GradientMonitor(4, shadow=[0.4, GradientClip(ZScore(), scope="layer", name="by layer")])
    fit(TwoNets(SGD, SGD, SPIKES), [monitor], 2 * STEPS)
    report = monitor.report()
    assert [(one.optimizer, one.name) for one in report.shadow] == [
        (index, name) for index in (0, 1) for name in ("MaxNorm(0.4)", "by layer")
    ]
    text, page, told = str(report), report.to_markdown(), report.as_dict()["shadow"]
    assert "MaxNorm(0.4), optimizer 1: would have reduced " in text
    assert "To first order" in text
    assert "### Shadows" in page
    assert [row["clip_rate"] for row in told] == [one.clip_rate for one in report.shadow]
    course = report.shadow[0].course
    assert len(course.step) == len(course.threshold) == len(course.clip_rate) > 2
    assert told[0]["course"]["threshold"][0] == pytest.approx(0.4)


def test_rows_stay_bounded():
    monitor = GradientMonitor(1, shadow=[0.4])
    fit(Tiny(net=network), [monitor], 1100)
    course = monitor.report().shadow[0].course
    assert 256 <= len(course.step) <= 512
    assert course.step[-1] == 1099
