"""What a reader is told: the start line, the summary, events."""

from __future__ import annotations

import logging
import math
import re
from functools import partial

import pytest
import torch
from helpers.tiny_modules import Cleans, Grads, Tiny, fit, scaled

from lightning_calib import AGC, GradientCentralize, GradientClip, GradientMonitor, ZClip
from lightning_calib.fit.messages import say

SGD, ADAMW = partial(torch.optim.SGD, lr=0.01), partial(torch.optim.AdamW, lr=1e-3)
LOUD = dict.fromkeys(range(100), 100.0)


def _sentences(text):
    """Full stops that end a sentence, not those inside numbers."""
    return [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9])", text.strip()) if part]


def _numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]


def test_one_start_line(said):
    fit(Tiny(ADAMW), [ZClip(), GradientMonitor()], accumulate_grad_batches=2)
    [line] = [line for line in said() if "accumul" in line]
    assert line == said()[0]
    assert line.startswith("[calib] ")
    assert "\n" not in line
    assert "ZClip" in line, "who clips"
    assert "2" in line
    assert "32" in line, "the precision"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"precision": "bf16-mixed"}, "bf16"),
        ({"precision": "64-true"}, "64"),
        ({"gradient_clip_val": 0.25}, "0.25"),
        ({"plugins": scaled}, "16-mixed"),
    ],
)
def test_start_line_says_the_mode(said, kwargs, words):
    fit(Tiny(ADAMW), [GradientMonitor()], **{k: v() if callable(v) else v for k, v in kwargs.items()})
    assert words in said()[0]


def test_start_line_says_the_interval_of_the_scheduler(said):
    class Scheduled(Tiny):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    fit(Scheduled(), [GradientMonitor()])
    assert "StepLR" in said()[0]
    assert "epoch" in said()[0]


def test_start_line_says_what_agc_left_out(said):
    fit(Tiny(), [AGC(), GradientMonitor()])
    assert any("net.4" in line for line in said()[:2])


def test_start_line_says_why_the_gradients_are_read_twice(said):
    """Foreign code between two of ours, element-wise methods, a second norm type."""
    foreign = Grads()
    fit(Tiny(), [GradientClip(1.0), foreign, GradientMonitor()])
    assert "GradientMonitor reads the gradients again" in said()[0]


@pytest.mark.parametrize(
    ("callbacks", "word"),
    [
        (lambda: [GradientCentralize(), GradientClip(1.0)], "GradientCentralize"),
        (lambda: [GradientClip(1.0, name="a"), GradientClip(1.0, norm_type=math.inf, name="b")], "norm_type"),
    ],
)
def test_start_line_names_further_reads(said, callbacks, word):
    fit(Tiny(), callbacks())
    assert any(word in line for line in said()[:2])


def test_a_plain_set_up_is_read_once_and_says_nothing_of_it(said):
    fit(Tiny(), [ZClip(), GradientClip(1.0), GradientMonitor()])
    assert not any("again" in line for line in said())


def test_health_is_quiet(said):
    fit(Tiny(ADAMW), [ZClip(), GradientMonitor()], 35)  # five epochs
    assert len(said()) <= 1 + 5 + 1
    assert all(line.startswith("[calib] ") and "\n" not in line for line in said())


def test_never_print(capsys):
    fit(Tiny(ADAMW), [ZClip(), GradientMonitor()])
    assert "calib" not in capsys.readouterr().out


def test_a_handler_of_the_users_own_is_enough(capsys):
    logger, handler = logging.getLogger("lightning_calib"), logging.StreamHandler()
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    logger.addHandler(handler)
    try:
        say("once")
    finally:
        logger.removeHandler(handler)
        root.handlers = kept
    assert capsys.readouterr().err.count("once") == 1


def test_lines_go_out_on_rank_zero_only(said, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    fit(Tiny(), [ZClip(), GradientMonitor()])
    assert said() == []


# ---------------------------------------------------------------- summary


def _summary(module, *callbacks, steps=40, **kwargs):
    text, grads, _ = _reported(module, *callbacks, steps=steps, **kwargs)
    return text, grads


def _reported(module, *callbacks, steps=40, **kwargs):
    monitor, grads = GradientMonitor(), Grads()
    fit(module, [grads, *callbacks, monitor], steps, **kwargs)
    text = monitor.summary()
    assert isinstance(text, str)
    assert 1 <= len(_sentences(text)) <= 3, text
    return text, grads, monitor.report().runs[0]


def test_summary_tells_the_range_of_norms():
    text, grads = _summary(Tiny(SGD), steps=30, log_every_n_steps=1)
    numbers = _numbers(text)
    for wanted in (min(grads.norms), max(grads.norms)):
        assert any(n == pytest.approx(wanted, rel=0.02) for n in numbers), text


def test_summary_tells_how_often_and_by_whom():
    _, grads, run = _reported(Tiny(SGD), GradientClip(1.0), log_every_n_steps=1)
    share = sum(n > 1 for n in grads.norms) / 40
    assert 0.05 < share < 0.95
    assert [(one.name, one.clip_rate) for one in run.clippers] == [("GradientClip", share)]


def test_summary_names_the_trainer_when_it_clips():
    _, _, run = _reported(Tiny(SGD, LOUD), gradient_clip_val=0.25)
    assert [(one.name, one.clip_rate) for one in run.clippers] == [("Trainer(gradient_clip_val=0.25)", 1.0)]


def test_summary_counts_non_finite_and_skipped_steps():
    text, _, run = _reported(Cleans(SGD, {3: math.nan, 7: math.inf, 9: math.nan}), steps=12)
    assert (run.counts.nonfinite, run.counts.skipped) == (3, 0)
    assert re.search(r"\b3 (of 12 )?steps had", text), text
    text, _, run = _reported(Tiny(ADAMW, {3: 1e9, 7: 1e9}), steps=12, plugins=scaled(2.0**10))
    assert (run.counts.nonfinite, run.counts.skipped) == (0, 2)
    assert re.search(r"\b2 steps were skipped", text), text


def test_summary_says_that_a_threshold_that_always_fires_does_not_matter_to_adam():
    text, _ = _summary(Tiny(ADAMW, LOUD), gradient_clip_val=0.25)
    assert "AdamW" in text
    assert re.search(r"does not matter|changes nothing|no difference|hardly matters", text), text


@pytest.mark.parametrize("who", ["trainer", "ours"])
def test_summary_says_by_how_much_sgd_is_slowed(who):
    ours = [GradientClip(0.25)] if who == "ours" else []
    kwargs = {"gradient_clip_val": 0.25} if who == "trainer" else {}
    text, grads = _summary(Tiny(partial(torch.optim.SGD, lr=1e-3), LOUD), *ours, log_every_n_steps=1, **kwargs)
    factor = sum(0.25 / n for n in grads.norms) / len(grads.norms)
    assert re.search(r"learning[ -]rate", text), text
    near = [n for n in _numbers(text) if n and (abs(n - factor) < 0.1 * factor or abs(1 / n - factor) < 0.1 * factor)]
    assert near, (text, factor)


def test_summary_of_sgd_holds_between_the_logged_steps_too():
    """The mean is over all steps, whatever the logging interval."""
    gains = {step: 100.0 if step % 4 == 3 else 2000.0 for step in range(40)}
    text, grads = _summary(Tiny(partial(torch.optim.SGD, lr=1e-4), gains), GradientClip(0.25))
    factor = sum(0.25 / n for n in grads.norms) / len(grads.norms)
    near = [n for n in _numbers(text) if n and (abs(n - factor) < 0.1 * factor or abs(1 / n - factor) < 0.1 * factor)]
    assert near, (text, factor)


def test_summary_says_when_a_threshold_never_fired():
    text, _ = _summary(Tiny(SGD), GradientClip(1e6))
    assert re.search(r"never", text), text


def test_summary_says_nothing_of_clipping_when_nobody_clips():
    text, _ = _summary(Tiny(SGD))
    assert "learning" not in text
    assert "AdamW" not in text


def test_summary_before_a_fit_says_so():
    assert re.search(r"no |not |nothing", GradientMonitor().summary().lower())


def test_summary_after_an_exception_tells_what_was_seen():
    class Breaks(Tiny):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 6:
                raise RuntimeError("broken data")
            return super().training_step(batch, batch_idx)

    monitor = GradientMonitor()
    with pytest.raises(RuntimeError, match="broken data"):
        fit(Breaks(), [ZClip(), monitor])
    assert "6 optimizer steps" in monitor.summary()


def test_summary_with_several_sick_things_is_still_three_sentences():
    module = Cleans(ADAMW, {**LOUD, 3: math.nan, 4: math.inf})
    text, _, run = _reported(module, GradientClip(0.5, name="mine"), GradientClip(0.1, name="more"))
    assert [one.name for one in run.clippers] == ["GradientClip(mine)", "GradientClip(more)"]
    assert "inf or nan" in text


def test_summary_survives_a_resume(said):
    gains = {2: math.nan}
    first = fit(Cleans(SGD, gains), [GradientMonitor()], 7)
    first.save_checkpoint("stopped.ckpt")
    monitor = GradientMonitor()
    fit(Cleans(SGD, gains), [monitor], 14, ckpt_path="stopped.ckpt")
    counts = monitor.report().runs[0].counts
    assert (counts.steps, counts.nonfinite) == (14, 1)
