"""What GradientMonitor writes for the tab, number by number, from real fits."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.event_files import Recorded, count_magnitudes
from helpers.tiny_modules import Grads, Rows, Tiny, TwoNets, fit, make_trainer, network, scaled, weights
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.optim import SGD, AdamW

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard, ZClip
from lightning_calib.tensorboard.contract import ABSENT, ABSENT_EXPONENT, GLOBAL_NAMES

NAMES = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "net.4.weight", "net.4.bias"]


def run(module, callbacks, max_steps=12, **kwargs):
    logger = TensorBoardLogger("logs")
    fit(module, callbacks, max_steps, logger=logger, **kwargs)
    return Recorded(logger.log_dir)


def each_norm(grads):
    """(steps, tensors), float64 inside."""
    rows = [[ABSENT if g is None else g.double().norm().item() for g in step] for step in grads.seen]
    return torch.tensor(rows)


class Weights(Callback):
    """The weights around every step, so that the norms of what a step did are known."""

    def __init__(self):
        self.sizes, self.moves = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pairs = list(zip(self.before, pl_module.parameters(), strict=True))
        self.sizes.append([old.double().norm().item() for old, _ in pairs])
        self.moves.append([(new.detach() - old).double().norm().item() for old, new in pairs])


def close(found, wanted):
    torch.testing.assert_close(found.double(), torch.as_tensor(wanted).double(), rtol=1e-5, atol=1e-12)  # float32 sums


@pytest.mark.parametrize("units", [False, True], ids=["tensors", "units"])
def test_every_column_of_every_row(units):
    before, after, watch = Grads(), Grads(), Weights()
    clip = GradientClip(0.05, scope="unit" if units else "global")
    found = run(Tiny(gains={5: 30.0}), [before, clip, GradientMonitor(), after, watch])
    assert [one.step for one in found.of("layers")] == [3, 7, 11]
    norms = each_norm(before)
    close(found.column("before"), norms[3::4])
    close(found.column("after"), each_norm(after)[3::4])
    close(found.column("peak"), torch.stack([norms[i : i + 4].amax(0) for i in (0, 4, 8)]))
    close(found.column("weight"), torch.tensor(watch.sizes)[3::4])
    close(found.column("update"), torch.tensor(watch.moves)[3::4])
    assert bool((found.column("after") < found.column("before")).any())
    assert bool((found.column("peak")[1] > 10 * found.column("before")[1]).all())
    (about,) = [found.about[tag] for tag in found.tags("layers")]
    assert about["rows"] == NAMES
    assert about["owners"] == [name.rpartition(".")[0] for name in NAMES]
    assert about["dims"] == [2, 1] * 3
    assert about["optimizer_name"] == "SGD"
    assert not any(about["estimated"])


def test_the_globals_are_the_scalars():
    rows, logger = Rows(), TensorBoardLogger("logs")
    fit(Tiny(), [ZClip(1.0, warmup_steps=2), GradientMonitor()], logger=[rows, logger])
    found = Recorded(logger.log_dir)
    assert found.others > {"calib/grad_norm_before"}
    for name in GLOBAL_NAMES[:12]:
        wanted = rows.values(f"calib/{name}") or [ABSENT] * 3
        assert found.total(name) == pytest.approx(wanted, rel=1e-6), name
    assert found.total("loss_scale") == [ABSENT] * 3
    low, middle, high = (found.total(f"norm_p{p}")[-1] for p in (10, 50, 90))
    assert 0 < low < middle < high <= max(found.total("grad_norm_max"))


def test_a_named_clippers_threshold_is_the_threshold():
    found = run(Tiny(), [GradientClip(0.25, name="mine"), GradientMonitor()])
    assert found.total("clip_threshold") == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_is_absent_and_its_overflow_is_seen(fused):
    module = Tiny(partial(AdamW, lr=1e-2, fused=fused), gains={0: 1e9, 4: 1e9})
    found = run(module, [GradientMonitor(1)], 8, plugins=scaled(2.0**9))
    skipped = [0, 4]
    for step in range(8):
        gone = step in skipped
        for name in ("after", "weight", "update"):
            assert bool((found.column(name)[step] == ABSENT).all()) == gone, (name, step)
        for name in ("before", "peak"):
            assert bool(found.column(name)[step].isfinite().all()) != gone, (name, step)
    assert [event["step"] for event in found.events("skip")] == [0]  # the next is too soon after it
    assert "GradScaler" in found.events("skip")[0]["text"]
    assert found.events("nonfinite") == []
    assert found.total("loss_scale")[0] == 2.0**9


@pytest.mark.parametrize("guard_first", [True, False])
def test_what_the_guard_drops_is_seen_before_it_is_dropped(guard_first):
    ours = [NonFiniteGuard("skip"), GradientMonitor(4)]
    found = run(Tiny(gains={5: math.nan, 7: math.inf}), ours if guard_first else ours[::-1], 12)
    second = {name: found.column(name)[1] for name in ("before", "after", "peak", "update")}
    assert not second["before"].isfinite().any()
    assert bool(second["peak"].isnan().all())
    assert second["after"].unique().tolist() == second["update"].unique().tolist() == [ABSENT]
    assert bool(found.column("after")[2].gt(0).all())
    first = found.events("nonfinite")[0]
    assert (first["step"], first["layer"]) == (5, "net.4.bias")
    assert first["text"].startswith("step 5 (epoch 0, batch 5)")
    assert found.events("skip")[0]["value"] == 2


def test_without_a_guard_the_event_names_the_span():
    class Cleans(Tiny):
        def on_before_optimizer_step(self, optimizer):
            for p in self.parameters():
                p.grad.nan_to_num_(0, 0, 0)

    found = run(Cleans(gains={5: math.nan}), [GradientMonitor(4)])
    (event,) = found.events("nonfinite")
    assert (event["step"], event["layer"]) == (7, "net.4.bias")
    assert "between steps 3 and 7" in event["text"]
    assert "NonFiniteGuard" in event["text"]


def test_several_optimizers_have_tags_of_their_own():
    module = TwoNets(partial(SGD, lr=0.1), partial(AdamW, lr=1e-2))
    grads = Grads()
    found = run(module, [grads, GradientMonitor(1)], 8)
    for index, kind in enumerate(("SGD", "AdamW")):
        assert all(tag.endswith(f"/{index}") for one in found.of("layers", index) for tag in [one.tag])
        assert {found.about[one.tag]["optimizer_name"] for one in found.of("globals", index)} == {kind}
        close(found.column("before", index), [[g.double().norm() for g in step] for step in grads.seen[index::2]])
    assert len(found.tags("layers")) == 2
    assert {"calib/grad_norm_before/0", "calib/grad_norm_before/1"} <= found.others


def test_an_optimizer_that_rests_has_no_step_but_a_peak():
    class Alternates(TwoNets):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            self.manual_backward(self.loss(self.net if batch_idx % 2 == 0 else self.other, batch_idx))
            optimizer.step()

    found = run(Alternates(partial(SGD, lr=0.1), partial(SGD, lr=0.1)), [GradientMonitor(4)], 7)
    resting = found.of("layers", 0)[0].value  # step 3 is the second one's
    assert resting[:, [0, 1, 3, 4]].unique().tolist() == [ABSENT]
    assert bool((resting[:, 2] > 0).all())
    assert bool((found.of("layers", 1)[0].value > 0).all())


def test_where_the_optimizer_overwrites_its_gradients_the_norms_are_computed():
    optimizer = partial(SGD, lr=0.05, momentum=0.9, nesterov=True, foreach=True)
    before, gains = Grads(), dict.fromkeys(range(20), 100.0)
    found = run(Tiny(optimizer, gains), [before, GradientMonitor(1, histograms=True)], gradient_clip_val=0.25)
    norms = each_norm(before)
    close(found.column("after"), norms * (0.25 / (norms.double().norm(dim=1, keepdim=True) + 1e-6)))
    first = found.of("hist")[0].value
    assert first[1].unique().tolist() == [ABSENT]
    assert bool((first[0, :, 3:].sum(1) > 0).all())


def test_where_it_cannot_be_known_after_is_absent():
    class ByHand(Tiny):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.25)

    optimizer = partial(SGD, lr=0.05, momentum=0.9, nesterov=True, foreach=True)
    found = run(ByHand(optimizer), [GradientMonitor(1)], 3)
    assert found.column("after").unique().tolist() == [ABSENT]
    assert bool((found.column("update") > 0).all())


def test_large_tensors_are_marked_as_estimated():
    def wide():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(4, 40_000), nn.Tanh(), nn.Linear(40_000, 1))

    watch = Weights()
    found = run(Tiny(partial(SGD, lr=0.01), net=wide), [watch, GradientMonitor(1)], 1)
    (about,) = [found.about[tag] for tag in found.tags("layers")]
    assert about["estimated"] == [True, False, False, False]
    for name, wanted in (("weight", watch.sizes), ("update", watch.moves)):
        close(found.column(name)[0, 1:], wanted[0][1:])
        assert float(found.column(name)[0, 0]) == pytest.approx(wanted[0][0], rel=0.02)  # 2^16 of 160,000 elements


class Mixed(nn.Module):
    """Parts that get no gradient, one of which is frozen, and a parameter without elements."""

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.frozen = nn.Linear(4, 1), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
        self.empty = nn.Parameter(torch.zeros(0))

    def forward(self, x):
        return self.used(x) + self.empty.sum()


def test_missing_gradients_are_absent_and_told_once():
    found = run(Tiny(net=Mixed), [GradientMonitor(1, histograms=True)], 30)
    rows = found.about[found.tags("layers")[0]]["rows"]
    present = torch.tensor([name.startswith("net.used") for name in rows])
    for name in ("before", "peak", "after", "update"):
        assert bool((found.column(name)[:, ~present] == ABSENT).all()), name
        assert bool((found.column(name)[:, present] > 0).all()), name
    held = torch.tensor([name != "net.empty" for name in rows])
    assert bool(((found.column("weight") > 0) == held).all())
    (event,) = found.events("dead")
    assert event["layer"] == "net.idle.weight"
    assert "net.idle.bias" in event["text"]
    assert "frozen" not in event["text"]
    about, counts = found.about[found.tags("hist")[0]], found.of("hist")[0].value
    for path, row in zip(about["rows"], counts[0], strict=True):
        assert bool((row == ABSENT).all()) == (path != "net.used"), path


@pytest.mark.parametrize("precision", [{}, {"precision": "bf16-true"}, {"plugins": None}], ids=["32", "bf16", "fused"])
def test_histograms_count_what_is_there(precision):
    fused = "plugins" in precision
    kwargs = {"plugins": scaled(1024.0)} if fused else precision
    before, after = Grads(), Grads()
    ours = [GradientMonitor(1, histograms=True), *([] if fused else [GradientClip(0.05)])]
    found = run(Tiny(partial(AdamW, lr=1e-2, fused=fused)), [before, *ours, after], 22, **kwargs)
    assert [one.step for one in found.of("hist")] == [0, 10, 20]
    about = found.about[found.tags("hist")[0]]
    assert about["rows"] == ["net.0", "net.2", "net.4"]
    for one in found.of("hist"):
        for side, grads in enumerate((before, after)):
            for module in range(3):
                pair = grads.seen[one.step][2 * module : 2 * module + 2]
                flat = [x / (1024.0 if fused else 1.0) for g in pair for x in g.flatten().tolist()]
                assert one.value[side, module].tolist() == count_magnitudes(flat)
    if not fused:
        assert not torch.equal(found.of("hist")[0].value[0], found.of("hist")[0].value[1])


def test_a_gradient_of_zeros_has_no_largest_exponent():
    found = run(Tiny(gains={0: 0.0}), [GradientMonitor(1, histograms=True)], 1)
    first = found.of("hist")[0].value
    assert first[0, :, 0].tolist() == [40, 54, 7]
    assert first[0, :, 2].tolist() == [ABSENT_EXPONENT] * 3
    assert found.column("before").unique().tolist() == [0.0]


def test_a_parameter_group_added_on_the_way_starts_a_new_tag_and_loses_no_spike():
    class Grows(Tiny):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.trainer.optimizers[0].add_param_group({"params": list(self.late.parameters())})

        def configure_optimizers(self):
            self.late = self.net[4].requires_grad_(True)
            return self.optimizer([*self.net[0].parameters(), *self.net[2].parameters()])

    before = Grads()
    found = run(Grows(gains={5: 100.0}), [before, GradientMonitor(4)], 12)
    first, second = found.tags("layers")
    assert [one.step for one in found.of("layers") if one.tag == first] == [3]
    assert [one.step for one in found.of("layers") if one.tag == second] == [7, 11]
    assert found.about[second]["rows"] == NAMES
    peak = found.of("layers")[1].value[:, 2]
    close(peak[:4], [g.double().norm() for g in before.seen[5]])  # the step was seen under the old rows
    assert [one.step for one in found.of("globals")] == [3, 7, 11]


def test_two_tensorboard_loggers_get_the_same():
    loggers = [TensorBoardLogger("logs", name=name) for name in "ab"]
    fit(Tiny(), [GradientMonitor()], logger=loggers)
    first, second = (Recorded(logger.log_dir) for logger in loggers)
    assert [(one.tag, one.step) for one in first.found] == [(one.tag, one.step) for one in second.found]
    assert first.about == second.about != {}


NOTHING = {
    "layers off": (GradientMonitor(1, layers=False, histograms=True), {"logger": TensorBoardLogger}),
    "another logger": (GradientMonitor(1), {"logger": CSVLogger}),
    "fast_dev_run": (GradientMonitor(1), {"logger": TensorBoardLogger, "fast_dev_run": 3, "max_steps": -1}),
}


@pytest.mark.parametrize(("monitor", "kwargs"), NOTHING.values(), ids=NOTHING)
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_written_where_nothing_is_wanted(monitor, kwargs):
    logger = kwargs["logger"]("logs")
    make_trainer([monitor], **{"max_steps": 4, **kwargs, "logger": logger}).fit(Tiny())
    found = Recorded(logger.log_dir)
    assert found.about == {}
    assert not [tag for tag in found.others if "how to read" in tag or "custom_scalars" in tag]
    assert "dashboard" not in monitor.state_dict()


def test_scalars_stay_what_they_were():
    rows = []
    for layers in (True, False):
        rows.append(Rows())
        fit(Tiny(), [ZClip(warmup_steps=2), GradientMonitor(layers=layers)], logger=[rows[-1], TensorBoardLogger("x")])
    assert rows[0].rows == rows[1].rows


def test_summaries_are_events_with_the_words_of_the_log(said):
    found = run(Tiny(), [GradientMonitor()], 30)
    events = found.events("summary")
    assert [event["step"] for event in events] == [6, 13, 27, 29]
    after_one = next(line for line in said() if "after 1 epoch:" in line)
    assert after_one.endswith(events[0]["text"])
    assert "In 30 optimizer steps" in events[-1]["text"]


def test_no_two_records_of_a_tag_share_a_step():
    found = run(Tiny(gains={9: 50.0}), [GradientMonitor(1)], 21)
    places = [(one.tag, one.step) for one in found.found]
    assert len(set(places)) == len(places)


def test_one_line_says_how_to_see_it(said):
    run(Tiny(), [GradientMonitor()], 4)
    (line,) = [line for line in said() if "tensorboard --logdir" in line]
    assert "tensorboard --logdir logs/lightning_logs" in line
    assert "http://localhost:6006/#lightning_calib&p.lightning_calib.run=version_0" in line


def test_weights_are_where_they_would_be_anyway():
    alone, watched = Tiny(), Tiny()
    fit(alone, max_steps=25)
    run(watched, [GradientMonitor(1, histograms=True)], 25)
    for one, other in zip(weights(watched), weights(alone), strict=True):
        assert torch.equal(one, other)
    assert network()  # the same start for both
