"""The words of the page's claims and of its guide; the figures come from the table."""

from __future__ import annotations

CLAIMS: tuple[tuple[str, str, str], ...] = (
    (
        "less sensitive to the learning rate",
        "**Not shown.** Where nothing normalises, fewer runs are lost at rates that are too high with a "
        "clip at 1.0 or AGC, but not with every seed; the range in which rates work well is no wider. "
        "AGC's defaults narrow it on a net with BatchNorm.",
        "lost runs: clip at 1.0 {images-norm-free/clip-1.0/share=not shown}, AGC "
        "{images-norm-free/AGC/share=not shown}; decades of rates: clip "
        "{images-norm-free/clip-1.0/decades=not shown}, AGC {images/AGC/decades=worse}",
    ),
    (
        "survives bad batches",
        "**Yes.** A plain clip at 1.0 does it best, then ZClip and AGC; for ZClip it is more than a lower "
        "rate. `GradientClip(Percentile())` is not shown to.",
        "accuracy: clip at 1.0 {bad-batches/clip-1.0/test=better}, ZClip {bad-batches/ZClip/test=better}, "
        "AGC {bad-batches/AGC/test=better}; ZClip beside the clip {bad-batches/ZClip/test/clip-1.0=worse}, "
        "to none at its lowered rate {bad-batches/ZClip/test/none-lowered-as-ZClip=better}; percentile "
        "{bad-batches/percentile/test=not shown}",
    ),
    (
        "helps the rare classes",
        "**Depends on what is clipped.** On digits the Trainer's clip, tuned; on texts with SGD "
        "`AGC(exclude=())`, and there Adagrad does about as much. AGC's defaults nowhere. Class weights "
        "help the rare recall as much.",
        "macro-F1: clip {images-long-tail/clip/test=better}, class weights "
        "{images-long-tail/weighted/test=better}, AGC {images-long-tail/AGC/test macro=not shown}; texts: "
        "AGC(exclude=()) {text-long-tail/AGC-all/test macro=better}, {text-long-tail-clinc/AGC-all/test "
        "macro=better}, Adagrad {text-long-tail-clinc/Adagrad/test macro=better}; rare recall: class "
        "weights {text-long-tail-clinc/weighted/test recall of=better}, AGC(exclude=()) "
        "{text-long-tail-clinc/AGC-all/test recall of=better}",
    ),
    (
        "helps against wrong labels",
        "**Depends.** `AGC(exclude=())` on texts with SGD, as Adagrad does; the Trainer's clip, tuned, a "
        "little on digits; AGC's defaults lose there. Short runs: the [example](../examples/README.md), "
        "with twice the steps at one rate, saw no gain on texts.",
        "texts: AGC(exclude=()) {text-wrong-labels/AGC-all/test=better}, "
        "{text-wrong-labels-clinc/AGC-all/test=better}, Adagrad "
        "{text-wrong-labels-clinc/Adagrad/test=better}; digits: clip "
        "{images-wrong-labels/clip/test=better}, AGC {images-wrong-labels/AGC/test=worse}",
    ),
    (
        "less overfitting",
        "**Not shown.** On a run that does overfit no method of ours is better on the test set, or loses "
        "less after its best value. Nor is the Trainer's clip.",
        "test: ZClip {overfitting/ZClip/test=not shown}, AGC {overfitting/AGC/test=not shown}; best less "
        "last: ZClip {overfitting/ZClip/best=not shown}, AGC {overfitting/AGC/best=not shown}; clip: gap "
        "{overfitting/clip/train=not shown}, test {overfitting/clip/test=not shown}",
    ),
    (
        "converges faster",
        "**With plain SGD on a language model, yes**, by the Trainer's clip, tuned; by a rule for the "
        "output layer less; ZClip's defaults hardly. It closes a part of the gap to AdamW, not all.",
        "bits: clip {language-sgd/clip/test=better}, {language-sgd-shakespeare/clip/test=better}, steps "
        "earlier where none ends {language-sgd-shakespeare/clip/steps=better}; head-rule "
        "{language-sgd/head-rule/test=not shown}, beside the clip "
        "{language-sgd/head-rule/test/clip=worse}, AdamW {language-sgd/AdamW/test=better}; of the gap to "
        "AdamW the clip closes {gap/language-sgd/clip} and {gap/language-sgd-shakespeare/clip}, the rule "
        "{gap/language-sgd/head-rule} and {gap/language-sgd-shakespeare/head-rule}",
    ),
    (
        "generalises better",
        "**Not shown** where nothing of the above is wrong: no gain on digits; AGC's defaults lose on speech.",
        "ZClip {images/ZClip/test=not shown}, {speech/ZClip/test=not shown}; AGC {images/AGC/test=not "
        "shown}, {speech/AGC/test=worse}",
    ),
    (
        "helps recommendation",
        "**Not shown**, on planted and on real ratings.",
        "AGC {recommendation/AGC/test=not shown}, {recommendation-movietweetings/AGC/test=not shown}; clip "
        "{recommendation/clip/test=not shown}, {recommendation-movietweetings/clip/test=not shown}",
    ),
    (
        "it is only a lower rate",
        "**No**, where a method of ours is better than none by more than what counts: none at the lowered rate is not.",
        "AGC(exclude=()) {text-long-tail/AGC-all/test macro/none-lowered-as-AGC-all=better}, "
        "{text-wrong-labels-clinc/AGC-all/test/none-lowered-as-AGC-all=better}; ZClip "
        "{bad-batches/ZClip/test/none-lowered-as-ZClip=better}",
    ),
    (
        "the gradient warns before the loss",
        "**Seldom by more than a step.** After a jump of the rate the step of the weights is ahead of the "
        "loss; while the rate grows slowly the gradient norm is, in half of the runs. Where labels or a "
        "weight are the cause the loss rises as soon as anything. See the [table](#early-warning).",
        "",
    ),
    (
        "better statistics of BatchNorm",
        "not a part of these runs",
        "[its card](methods/precise-batch-norm.md)",
    ),
    (
        "follows a change of level",
        "not a part of these runs",
        "[training spikes](training-spikes.md)",
    ),
)
GUIDE: tuple[tuple[str, str, str, str], ...] = (
    (
        "images, BatchNorm, clean data",
        "no clip; `GradientMonitor()` to watch",
        "nothing from a clip: ZClip {images/ZClip/test=not shown}",
        "AGC's defaults to be harmless: fewer rates work, {images/AGC/decades=worse}",
    ),
    (
        "images without normalisation, SGD",
        "`gradient_clip_val=1.0` or `GradientClip(1.0)`; `AGC()`",
        "perhaps fewer lost runs at rates that are too high, not with every seed: "
        "{images-norm-free/clip-1.0/share=not shown}, {images-norm-free/AGC/share=not shown}",
        "a better best: {images-norm-free/clip-1.0/test=not shown}",
    ),
    (
        "anything in which some batches are bad",
        "`GradientClip(1.0)` or the value that `clip_find` names; [`SpikeGuard()`](training-spikes.md) drops them",
        "a better model: {bad-batches/clip-1.0/test=better}",
        "`ZClip()` to be better than a fixed clip: {bad-batches/ZClip/test/clip-1.0=worse}",
    ),
    (
        "images, a long tail, SGD",
        "class weights, and a tuned `GradientClip(1.0)`",
        "{images-long-tail/clip/test=better}, {images-long-tail/weighted/test=better}",
        "`AGC()` to help: {images-long-tail/AGC/test macro=not shown}",
    ),
    (
        "texts with an embedding table, SGD; rare classes or wrong labels",
        "Adagrad, or `AGC(exclude=())` at three times the rate",
        "{text-long-tail-clinc/AGC-all/test macro=better}, {text-wrong-labels-clinc/AGC-all/test=better}",
        "`AGC()` to help, which leaves the output layer alone: {text-long-tail-clinc/AGC/test macro=not shown}",
    ),
    (
        "wrong labels, images",
        "a lower rate, or a small `GradientClip(0.1)`",
        "little: {images-wrong-labels/clip/test=better}",
        "`AGC()` or `ZClip()` to help: {images-wrong-labels/AGC/test=worse}, "
        "{images-wrong-labels/ZClip/test=not shown}",
    ),
    (
        "a transformer with AdamW",
        "what you have; a tuned `gradient_clip_val`",
        "perhaps a little, not with every seed: ZClip {language-adamw/ZClip/test=not shown}, clip "
        "{language-adamw/clip/test=not shown}",
        "a wider range of rates: ZClip {language-adamw/ZClip/decades=not shown}",
    ),
    (
        "a transformer with SGD",
        "AdamW; if it must be SGD, a small clip at ten times the rate",
        "{language-sgd/clip/test=better}; of the gap to AdamW {gap/language-sgd/clip}",
        "`ZClip()` to do it: beside the clip {language-sgd/ZClip/test/clip=worse}",
    ),
    (
        "a run that overfits",
        "what you would do without us",
        "nothing from a clip: {overfitting/ZClip/test=not shown}, {overfitting/AGC/test=not shown}",
        "a smaller gap",
    ),
    (
        "speech, a GRU, SGD",
        "no clip, or `gradient_clip_val=1.0`",
        "no better best: {speech/clip-1.0/test=not shown}",
        "`AGC()` to be harmless: {speech/AGC/test=worse}",
    ),
)
