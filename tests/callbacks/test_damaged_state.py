"""Damaged state in a checkpoint: one warning that names callback, key and loss, a fresh start of that part, no more."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers import callbacks_with_state
from helpers.event_files import Recorded
from helpers.tiny_modules import Tiny, fit, same_bits, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger
from modes.hosts import fabric_loop
from torch import Tensor

from lightning_calib import AutoClip, GradientClip, GradientMonitor, ZClip, ZScore

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]

SGD = partial(torch.optim.SGD, lr=1.0)
STOP, END = 9, 12
GAINS = {3: math.nan, 6: 50.0}
REMOVED = object()
CENTRALIZE = ("GradientCentralize", "optimizers")  # it remembers nothing there
FUZZ = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def every() -> list[Any]:
    """Of each one; the burst is a spike to SpikeGuard."""
    shadow = [0.4, GradientClip(callbacks_with_state.SPIKES, scope="layer")]
    return callbacks_with_state.every(2, ZScore(4.0, warmup_steps=3), shadow)


def run(callbacks: list[Any], steps: int = END, gains: dict[int, float] | None = None, **kwargs: Any) -> Any:
    return fit(Tiny(SGD, gains), callbacks, steps, logger=TensorBoardLogger("logs", name=None), **kwargs)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of a healthy run."""
    folder = tmp_path_factory.mktemp("intact")
    logger = TensorBoardLogger(folder, name=None)
    fit(Tiny(SGD, GAINS), every(), STOP, logger=logger).save_checkpoint(folder / "intact.ckpt")
    return torch.load(folder / "intact.ckpt", weights_only=True)


def changed(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested containers with one node in another state."""
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    if len(path) == 1 and value is REMOVED:
        copy.pop(path[0])
    elif len(path) == 1:
        copy[path[0]] = value
    else:
        copy[path[0]] = changed(node[path[0]], path[1:], value)
    return copy


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def resumed(intact: dict[str, Any], path: tuple[Any, ...], value: Any, callbacks: Callable = every) -> Any:
    """The trainer and the module of a run that goes on from a checkpoint with one damaged node."""
    torch.save({**intact, "callbacks": changed(intact["callbacks"], path, value)}, "damaged.ckpt")
    module = Tiny(SGD)
    logger = TensorBoardLogger("logs", name=None)
    return fit(module, callbacks(), END, logger=logger, ckpt_path="damaged.ckpt"), module


def damage(lines: list[str]) -> list[str]:
    return [line for line in lines if "damaged" in line]


def state_of(trainer: Any, name: str) -> dict[str, Any]:
    return next(one for one in trainer.callbacks if one.state_key == name).state_dict()


PART = ("optimizers", "0", "parts", 0)
LADDER, SIGNALS = ("optimizers", "0", "ladder"), ("optimizers", "0", "signals")
COUNT = "how often it reduced gradients"
TAB = "what the Gradients tab remembers"
REPORT = "what the report knows of the run"
SHADOWS = "what is known of its shadows"
LOST: list[tuple[tuple[Any, ...], Any, str, str]] = [
    # The six places in which a missing key was not told, or ended the tab.
    (("ZClip", "tally"), REMOVED, "`state.tally` is missing", "its copy of the counts of steps"),
    (("ZClip", "tally", "0", "steps"), REMOVED, "`tally.0.steps` is missing", "its copy of the counts of steps"),
    (("ZClip", "optimizers", "0", "count"), REMOVED, "`optimizers.0.count` is missing", COUNT),
    (("ZClip", "optimizers", "0", "count", "fired"), REMOVED, "`optimizers.0.count.fired` is missing", COUNT),
    (("GradientMonitor", "optimizers", "0", "low"), REMOVED, "`optimizers.0.low` is missing", "the norms so far"),
    (("NonFiniteGuard", "optimizers", "0", "row"), REMOVED, "`optimizers.0.row` is missing", "the incidents so far"),
    (("GradientMonitor", "dashboard", "0", "peak"), REMOVED, "`dashboard.0.peak` is missing", TAB),
    (
        ("GradientMonitor", "dashboard", "0", "happenings", "lr", "last"),
        REMOVED,
        "`dashboard.0.happenings.lr.last` is missing",
        TAB,
    ),
    (("GradientMonitor", "report", "0", "losses"), REMOVED, "`report.0.losses` is missing", REPORT),
    (("GradientMonitor", "report", "0", "window", "given"), 3, "`report.0.window.given` must be a list, got 3", REPORT),
    (("GradientMonitor", "shadows", "0", "names"), REMOVED, "`shadows.0.names` is missing", SHADOWS),
    (("GradientMonitor", "shadows", "0", "counts", "fired"), 3, "`shadows.0.counts.fired` must be a tensor", SHADOWS),
    (("GradientMonitor", "shadows", "0", "counts", "steps"), 1, "`shadows.0.counts` contradicts itself", SHADOWS),
    (("GradientMonitor", "shadows", "0", "rows", "seen"), 99, "`shadows.0.rows` contradicts itself", SHADOWS),
    (
        ("GradientMonitor", "shadows", "0", "learnt", "MaxNorm(0.4)"),
        REMOVED,
        "`shadows.0.learnt.MaxNorm(0.4)` is missing",
        "what its shadows have learnt",
    ),
    (("GradientMonitor", "shadows", "0", "learnt"), REMOVED, "`shadows.0.learnt` is missing", SHADOWS),
    (("GradientMonitor", "dashboard", "0", "shadows"), 3, "`dashboard.0.shadows` must be a dictionary, got 3", TAB),
    (("GradientMonitor", "report", "0", "layers", "seen"), 999, "`report.0.layers` contradicts itself", REPORT),
    # Sections and books.
    (("ZClip",), "junk", "`state` must be a dictionary, got 'junk'", "all that it remembered"),
    (("ZClip", "version"), True, "`version` must be a whole number >= 0, got True", "all that it remembered"),
    (("ZClip", "optimizers"), 3, "`optimizers` must be a dictionary, got 3", "what it remembered of this optimizer"),
    (("ZClip", "optimizers"), REMOVED, "`state.optimizers` is missing", "what it remembered of this optimizer"),
    (("ZClip", "optimizers", "0"), REMOVED, "`optimizers.0` is missing", "what it remembered of this optimizer"),
    (("GradientMonitor", "dashboard"), [1], "`dashboard` must be a dictionary, got [1]", TAB),
    (("GradientMonitor", "dashboard", "0"), REMOVED, "`dashboard.0` is missing", TAB),
    # Types, shapes, finiteness.
    (("ZClip", *PART), None, "`optimizers.0.parts.0` must be a dictionary, got None", "what ZScore(robust=True)"),
    (("ZClip", *PART, "kind"), 5, "`optimizers.0.parts.0.kind` must be a text, got 5", "what ZScore(robust=True)"),
    (("ZClip", *PART, "state", "more"), 1, "`optimizers.0.parts.0.state` has the unknown key 'more'", "what ZScore"),
    (
        ("ZClip", *PART, "state", "mean"),
        torch.zeros(2),
        "state.mean` must be a tensor of numbers, shape (1,), got a tensor of float32, shape (2,)",
        "what ZScore(robust=True) has learnt",
    ),
    (
        ("ZClip", *PART, "state", "var"),
        torch.tensor([math.nan]),
        "`optimizers.0.parts.0.state.var` must hold finite numbers, got 1 of 1 that are not",
        "what ZScore(robust=True) has learnt",
    ),
    (
        ("AutoClip", *PART, "state", "steps"),
        torch.tensor(2**40),
        "`optimizers.0.parts.0.state` contradicts itself: 7 values of 1099511627776 steps in 1024 places",
        "what Percentile(window=None) has learnt",
    ),
    (
        ("LearningRateControl.spikes", "optimizers", "0", "state", "policy_values"),
        torch.ones(1, 1024),
        "`optimizers.0.state` contradicts itself: the values are not in order",
        "what SpikeBackoff(Percentile(window=None)) has learnt",
    ),
    (
        ("LearningRateControl.spikes", "optimizers", "0", "state", "factors"),
        torch.tensor([math.nan]),
        "`optimizers.0.state.factors` must hold finite numbers",
        "what SpikeBackoff",
    ),
    (
        ("LearningRateControl.distance", "optimizers", "0", "state", "farthest"),
        torch.tensor([math.nan]),
        "`optimizers.0.state.farthest` must hold finite numbers",
        "what DistanceOverGradients",
    ),
    (
        ("LearningRateControl.distance", "optimizers", "0", "start", 1),
        torch.full((8,), math.nan),
        "`optimizers.0.start.1` must hold finite numbers, got 8 of 8",
        "what DistanceOverGradients",
    ),
    (
        ("LearningRateControl.distance", "optimizers", "0", "start"),
        REMOVED,
        "`optimizers.0.start` is missing",
        "what DistanceOverGradients",
    ),
    (("GradientMonitor", "optimizers", "0", "stride"), 0, "`optimizers.0` contradicts itself", "the norms so far"),
    (
        ("GradientMonitor", "optimizers", "0", "low"),
        torch.tensor(math.nan),
        "`optimizers.0.low` must hold",
        "the norms",
    ),
    (("NonFiniteGuard", "optimizers", "0", "total"), -1, "must be a whole number >= 0, got -1", "the incidents so far"),
    (("NonFiniteGuard", "optimizers", "0", "last"), ["a"] * 6, "at most 5 entries, got 6", "the incidents so far"),
    (("SpikeGuard", *LADDER, "held"), 3, "`optimizers.0.ladder.held` must be a list, got 3", "what it knew of spikes"),
    (("SpikeGuard", *LADDER, "spikes"), REMOVED, "`optimizers.0.ladder.spikes` is missing", "what it knew of spikes"),
    (("SpikeGuard", *LADDER, "on_trial"), 1, "`optimizers.0.ladder.on_trial` must be True or False", "what it knew"),
    (
        ("SpikeGuard", *LADDER, "held", 0, 0),
        math.nan,
        "`optimizers.0.ladder.held.0.0` must be a finite number, got nan",
        "what it knew of spikes",
    ),
    (("SpikeGuard", *SIGNALS, "levels"), [1.0], "`optimizers.0.signals.levels` must have 2 entries", "what it knew"),
    (
        ("SpikeGuard", *SIGNALS, "policy", "state", "mean"),
        torch.zeros(3),
        "`optimizers.0.signals.policy.state.mean` must be a tensor of numbers, shape (2,)",
        "what ",
    ),
    (
        ("GradientMonitor", "report", "0", "incidents", 0, 2),
        None,
        "`report.0.incidents.0.2` must be a text, got None",
        REPORT,
    ),
    (("GradientMonitor", "dashboard", "0", "since"), [True], "`dashboard.0.since` must have 6 entries, got 1", TAB),
    (("GradientMonitor", "dashboard", "0", "totals", "rows"), 3, "`dashboard.0.happenings.row` are not the same", TAB),
    (
        ("GradientMonitor", "dashboard", "0", "incidents"),
        [[1, 2, 3]],
        "`dashboard.0.incidents.0.1` must be a text",
        TAB,
    ),
]


def named(path, value):
    """The same in every process: an object's own name has its address in it."""
    return f"{path} {'removed' if value is REMOVED else value}"[:90]


@pytest.mark.parametrize(("path", "value", "reason", "lost"), LOST, ids=[named(*c[:2]) for c in LOST])
def test_one_warning_names_the_callback_the_key_and_what_is_lost(intact, said, path, value, reason, lost):
    if path[-1] == "since":
        intact = {**intact, "callbacks": changed(intact["callbacks"], (*path[:-1], "peak"), torch.ones(6))}
    trainer, module = resumed(intact, path, value)
    (line,) = damage(said())
    head, dot, name = path[0].partition(".")
    assert line.startswith(f"[calib] {head}({name}): " if dot else f"[calib] {head}: ")
    assert reason in line
    assert f"(lost: {lost}" in line
    assert line.endswith("What is lost starts afresh, the rest is kept.")
    assert trainer.global_step == END
    assert all(weight.isfinite().all() for weight in weights(module))


def test_an_intact_state_says_nothing(intact, said):
    trainer, _ = resumed(intact, (), intact["callbacks"])
    assert not [line for line in said() if "afresh" in line or "damaged" in line]
    assert state_of(trainer, "ZClip")["optimizers"]["0"]["parts"][0]["state"]["seen"] == END - len(
        GAINS
    )  # neither the NaN nor the spike


def test_a_callback_that_is_new_in_the_run_says_nothing(intact, said):
    states = intact["callbacks"]
    without_tab = {key: value for key, value in states["GradientMonitor"].items() if key != "dashboard"}
    few = {"ZClip": states["ZClip"], "GradientMonitor": without_tab}
    resumed(intact, (), few)
    resumed(intact, (), {"ZClip": {"version": 1}})  # saved before it had met an optimizer
    assert not [line for line in said() if "afresh" in line or "damaged" in line]


def test_what_fits_is_kept(intact, said):
    """Of two parts of one callback the first is damaged: the second, and the counts, go on."""
    path = ("GradientClip", "optimizers", "0", "parts", 0, "state", "seen")
    trainer, _ = resumed(intact, path, "junk")
    book = state_of(trainer, "GradientClip")["optimizers"]["0"]
    fresh, kept = (part["state"]["seen"].tolist() for part in book["parts"])
    assert fresh == [END - STOP] * len(fresh)
    assert kept == [END - len(GAINS)] * len(kept)
    assert book["count"]["steps"] == END
    assert len(damage(said())) == 1


def test_a_damaged_state_counts_as_none(intact):
    """The same bits as without it: nothing of it has been taken up."""
    path = ("ZClip", "optimizers", "0", "parts", 0, "state", "mean")

    def alone() -> list[Any]:
        return [ZClip(1.0, warmup_steps=2), GradientMonitor(2)]

    _, damaged = resumed(intact, path, torch.tensor([math.nan]), alone)
    _, fresh = resumed(intact, ("ZClip",), {}, alone)
    _, whole = resumed(intact, (), intact["callbacks"], alone)
    same_bits(weights(damaged), weights(fresh))
    assert any(not torch.equal(a, b) for a, b in zip(weights(damaged), weights(whole), strict=True))


def test_several_losses_are_one_warning(intact, said):
    path = ("ZClip", "optimizers", "0")
    book = {**at(intact["callbacks"], path), "count": 1, "parts": 2}
    intact = {**intact, "callbacks": changed(intact["callbacks"], ("ZClip", "tally"), None)}
    resumed(intact, path, book)
    (line,) = damage(said())
    assert [line.count(part) for part in ("optimizers.0.count", "optimizers.0.parts", "`tally`")] == [1, 1, 1]


def test_the_counts_are_taken_from_another_copy(intact, said):
    trainer, _ = resumed(intact, ("ZClip", "tally"), "junk")
    assert state_of(trainer, "ZClip")["tally"]["0"]["steps"] == END
    assert len(damage(said())) == 1


def test_the_tab_goes_on_without_its_memory(intact):
    trainer, _ = resumed(intact, ("GradientMonitor", "dashboard", "0", "names"), "junk")
    assert [one.step for one in Recorded(trainer.logger.log_dir).of("layers")] == [9, 11]


def test_in_a_fabric_loop_too(said):
    first, again = AutoClip(50.0), AutoClip(50.0)
    fabric_loop([first], SGD, slice(0, 3))
    path = ("optimizers", "0", "parts", 0, "state", "values")
    again.load_state_dict(changed(first.state_dict(), path, "junk"))
    held = fabric_loop([again], SGD)
    (line,) = damage(said())
    assert "AutoClip: " in line
    assert "`optimizers.0.parts.0.state.values` must be a tensor" in line
    same_bits([*held.parameters()], [*fabric_loop([AutoClip(50.0)], SGD).parameters()])


# Whatever stands in the place of any node


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from nodes(item, (*path, key))


MAY_BE_NAN = ("values", "peak", "rows", "open", "first", "highest")  # what is not known


def misfits(path: tuple[Any, ...], old: Any) -> list[Any]:
    """Values that cannot stand where ``old`` did."""
    found: list[Any] = [b"x", 1j, {"a": {"b": []}}, torch.full((2, 3, 4, 5), math.nan)]
    if isinstance(old, Tensor):
        number = old.dtype.is_floating_point
        found += [old.to(torch.complex64), old.to(torch.int64 if number else torch.float32), old[None], old.to("meta")]
        found += [old - 2**40] if old.dtype == torch.int64 else []
        found += [old * math.nan] if number and path[-1] not in MAY_BE_NAN else []
    return found


def junk() -> st.SearchStrategy[Any]:
    numbers = st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf])
    tensors = st.builds(torch.full, st.lists(st.integers(0, 3), max_size=3), numbers)
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors
    return st.just(REMOVED) | st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    )


class Lines(logging.Handler):
    """Keeps what our logger says while it is open; `caplog` is one for all examples of a fuzz."""

    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("lightning_calib").addHandler(self)
        return self.found

    def __exit__(self, *_):
        logging.getLogger("lightning_calib").removeHandler(self)


@FUZZ
@given(st.data())
def test_what_cannot_fit_is_told_wherever_it_stands(intact, data):
    found = [path for path in nodes(intact["callbacks"]) if len(path) > 1 and path[:2] != CENTRALIZE]
    path = data.draw(st.sampled_from(found))
    value = data.draw(st.sampled_from(misfits(path, at(intact["callbacks"], path))))
    with Lines() as lines:
        _, module = resumed(intact, path, value)
    (line,) = damage(lines)
    assert f"[calib] {path[0].split('.')[0]}" in line
    assert all(weight.isfinite().all() for weight in weights(module))


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_whatever_stands_anywhere_does_not_end_the_run(intact, data):
    path = data.draw(st.sampled_from([path for path in nodes(intact["callbacks"]) if len(path) > 1]))
    value = data.draw(junk())
    with Lines() as lines:
        _, module = resumed(intact, path, value)
    assert len(damage(lines)) <= 1
    assert all(weight.isfinite().all() for weight in weights(module))
