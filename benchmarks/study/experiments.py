"""The table of experiments, as it was written down before the first run."""

from __future__ import annotations

import math

from benchmarks.study.plan import Arm, Cell, Experiment

SHAKESPEARE, CLINC, TWEETS, SPOKEN = (
    "tinyshakespeare/input.txt",
    "clinc_oos/data_imbalanced.json",
    "movietweetings/ratings.dat",
    "fsdd/fsdd.zip",
)


def rates(first: float, number: int) -> tuple[float, ...]:
    """So many rates, half a decade apart, from one that begins with 1 or 3: 1, 3, 10, ..."""
    decade = math.floor(math.log10(first) + 1e-9)
    three = round(first / 10**decade) == 3
    return tuple(float(f"{(1, 3)[(i + three) % 2]}e{decade + (i + three) // 2}") for i in range(number))


def each(values: tuple[float, ...], threshold: float | None = None) -> tuple[Cell, ...]:
    return tuple(Cell(one, threshold) for one in values)


def grid(values: tuple[float, ...], thresholds: tuple[float, ...]) -> tuple[Cell, ...]:
    return tuple(Cell(rate, one) for rate in values for one in thresholds)


def ours(way: str, values: tuple[float, ...]) -> tuple[Arm, Arm]:
    """One of our methods at its defaults, and the control: none, with the rate lowered by its mean cut."""
    return Arm(way, way, each(values)), Arm(f"none-lowered-as-{way}", lowered=way)


def wide(name: str, task: str, first: float, adamw: float, steps: int, **rest: object) -> Experiment:
    """For the width of the range of rates and the share of lost runs: eight rates for every arm, the clip at 1.0."""
    values = rates(first, 8)
    more = tuple(rest.pop("more", ()))  # type: ignore[arg-type]
    arms = (
        Arm("none", cells=each(values)),
        Arm("clip-1.0", "clip", each(values, 1.0)),
        *ours("ZClip", values),
        *ours("AGC", values),
        *(arm for way in more for arm in ours(way, values)),
        Arm("AdamW", cells=each(rates(adamw, 8)), optimizer="adamw"),
    )
    settings: dict[str, object] = {"questions": "ab", "measure": "accuracy", "optimizer": "sgd", "batch": 64}
    return Experiment(name, task, steps=steps, arms=arms, **{**settings, **rest})  # type: ignore[arg-type]


IMAGE_RATES, IMAGE_CLIPS = rates(0.01, 6), grid(rates(0.03, 3), (0.1, 1.0))
TEXT_RATES, TEXT_CLIPS = rates(1, 6), grid(rates(10, 3), (0.1, 0.5))
TASTE_RATES, TASTE_CLIPS = rates(3, 6), grid(rates(30, 3), (0.03, 0.1))
CHARACTER_RATES, CHARACTER_CLIPS = rates(0.1, 6), grid((0.3, 1.0, 3.0), (0.25, 1.0))
ADAGRAD = rates(0.01, 6)
NONE_IMAGES, CLIP_IMAGES = Arm("none", cells=each(IMAGE_RATES)), Arm("clip", "clip", IMAGE_CLIPS)
NONE_TEXT, CLIP_TEXT = Arm("none", cells=each(TEXT_RATES)), Arm("clip", "clip", TEXT_CLIPS)
ADAMW_ARM = Arm("AdamW", cells=each(rates(0.0003, 6)), optimizer="adamw")
WHY_AGC = (
    "AGC clips each unit by its own weights: if rare or wrong examples pull on single rows, it is the one to help."
)
WHY_ALL = " AGC-all is AGC(exclude=()), as the example has it, because the default leaves the output layer alone."


def characters(name: str, real: str = "") -> Experiment:
    return Experiment(
        name, "language", "f", "bits", "plain-sgd", 300, 16,
        (
            Arm("none", cells=each(CHARACTER_RATES)),
            Arm("clip", "clip", CHARACTER_CLIPS),
            *ours("ZClip", CHARACTER_RATES),
            Arm("head-rule", "head", grid((0.3, 1.0, 3.0), (0.1, 0.3))),
            Arm("none-lowered-as-head-rule", lowered="head-rule"),
            Arm("AdamW", cells=each(rates(0.0003, 6)), optimizer="adamw"),
        ),
        real, warmup=30,
        why="SGD without momentum against AdamW; head-rule clips the output layer by itself and spikes of the rest "
        "(GradientClip(ZScore(), rules={'net.head.*': threshold})), as arXiv 2605.17787 proposes.",
    )  # fmt: skip


def texts(name: str, questions: str, measure: str, real: str = "", **options: float) -> Experiment:
    weighted = (Arm("weighted", cells=each(TEXT_RATES), weighted=True),) if questions == "c" else ()
    arms = (
        NONE_TEXT, CLIP_TEXT, *ours("AGC", TEXT_RATES), *ours("AGC-all", TEXT_RATES), *weighted,
        Arm("Adagrad", cells=each(ADAGRAD), optimizer="adagrad"),
    )  # fmt: skip
    settings = tuple(options.items())
    return Experiment(
        name, "text", questions, measure, "plain-sgd", 600, 64, arms, real, settings, why=WHY_AGC + WHY_ALL
    )


def tastes(name: str, real: str = "") -> Experiment:
    arms = (
        Arm("none", cells=each(TASTE_RATES)),
        Arm("clip", "clip", TASTE_CLIPS),
        *ours("AGC", TASTE_RATES),
        Arm("Adagrad", cells=each(ADAGRAD), optimizer="adagrad"),
    )
    return Experiment(
        name, "recommendation", "a", "recall", "plain-sgd", 300 if real else 600, 256, arms, real, why=WHY_AGC
    )


TABLE: tuple[Experiment, ...] = (
    wide("images", "images", 0.003, 0.0001, 200, why="ZClip and AGC, the two that are most used."),
    wide("images-norm-free", "images-norm-free", 0.001, 0.0001, 200, why="AGC was made for such nets."),
    characters("language-sgd"),
    Experiment(
        "images-long-tail", "images", "c", "macro_f1", "sgd", 200, 32,
        (
            NONE_IMAGES, CLIP_IMAGES, *ours("AGC", IMAGE_RATES),
            Arm("weighted", cells=each(IMAGE_RATES), weighted=True), ADAMW_ARM,
        ),
        options=(("imbalance", 100.0),), why=WHY_AGC,
    ),
    texts("text-long-tail", "c", "macro_f1"),
    Experiment(
        "images-wrong-labels", "images", "d", "accuracy", "sgd", 200, 64,
        (NONE_IMAGES, CLIP_IMAGES, *ours("ZClip", IMAGE_RATES), *ours("AGC", IMAGE_RATES), ADAMW_ARM),
        options=(("noise", 0.4),), why=WHY_AGC,
    ),
    texts("text-wrong-labels", "d", "accuracy", noise=0.3),
    Experiment(
        "overfitting", "perceptron", "e", "accuracy", "sgd", 1000, 32,
        (
            Arm("none", cells=each(rates(0.001, 6))), Arm("clip", "clip", grid(rates(0.003, 3), (0.1, 1.0))),
            *ours("ZClip", rates(0.001, 6)), *ours("AGC", rates(0.001, 6)),
            Arm("AdamW", cells=each(rates(0.0001, 6)), optimizer="adamw"),
        ),
        options=(("few", 200.0), ("noise", 0.2)),
        why="200 digits, a fifth with wrong labels, 160 epochs: a run that does overfit.",
    ),
    wide(
        "bad-batches", "perceptron", 0.001, 0.0001, 300, questions="b", more=("percentile",),
        options=(("bad", 0.05),),
        why="One batch in twenty has inputs that are 30 times as large, or one label; for methods that watch spikes.",
    ),
    tastes("recommendation"),
    Experiment(
        "language-adamw", "language", "a", "bits", "adamw", 300, 16,
        (
            Arm("none", cells=each(rates(0.0003, 6))),
            Arm("clip", "clip", grid(rates(0.003, 3), (0.25, 1.0))),
            *ours("ZClip", rates(0.0003, 6)),
        ),
        warmup=30, why="What most people train: a transformer, AdamW, a warm-up.",
    ),
    characters("language-sgd-shakespeare", SHAKESPEARE),
    texts("text-long-tail-clinc", "c", "macro_f1", CLINC),
    texts("text-wrong-labels-clinc", "d", "accuracy", CLINC, noise=0.3),
    tastes("recommendation-movietweetings", TWEETS),
    wide("speech", "speech", 0.003, 0.0001, 200, questions="b", batch=32, real=SPOKEN, why="As for images."),
)  # fmt: skip
