"""What an experiment is, written down before it runs; one whose arms have unequal numbers of cells is refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

QUESTIONS = {
    "a": "How wide is the range of rates that work?",
    "b": "How many runs are lost at rates that are too high, or when some batches are bad?",
    "c": "Long tails: what happens to the rare classes?",
    "d": "Wrong labels",
    "e": "Overfitting: the gap between training and test, and the last value beside the best",
    "f": "Steps to a target: does clipping close the gap between SGD and Adam on a small language model?",
}
SETS = {"A": (0, 1, 2, 3, 4), "B": (100, 101, 102, 103, 104), "quick": (0,)}
VERSION = 1  # goes up when data, networks or training change: older rows are then of another study
MEASURES = {  # the smallest difference that counts, and whether more is better
    "accuracy": (0.005, True),
    "macro_f1": (0.01, True),
    "recall": (0.005, True),
    "bits": (0.01, False),
}


@dataclass(frozen=True, order=True)
class Cell:
    """One way to set an arm: a learning rate and, where the arm has one, a threshold."""

    rate: float
    threshold: float | None = None


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Its name in tables.
        way: Which callbacks, a key of `arms.WAYS`.
        cells: What is tried; the best by validation is chosen.
        optimizer: "sgd", "adamw" or "adagrad"; empty for the experiment's.
        weighted: Whether the loss weighs the classes by one over their number.
        lowered: Of a control: the arm whose chosen rate, times the mean cut that its report states, is this arm's rate.
            Such an arm has no cells.
    """

    name: str
    way: str = "none"
    cells: tuple[Cell, ...] = ()
    optimizer: str = ""
    weighted: bool = False
    lowered: str = ""


@dataclass(frozen=True)
class Experiment:
    """One table of the page.

    Attributes:
        name: Its name on the command line.
        task: A key of `tasks.TASKS`.
        questions: Letters of `QUESTIONS`.
        measure: What is chosen by and tested, a key of `MEASURES`.
        optimizer: "sgd" (with momentum 0.9), "plain-sgd", "adamw" or "adagrad".
        steps: Optimizer steps of a run.
        batch: Examples in a batch.
        arms: The first one is what the others are compared with.
        real: The file below --data-dir, where it is needed.
        options: Of the task.
        warmup: Steps in which the rate rises.
        why: Why these arms.
    """

    name: str
    task: str
    questions: str
    measure: str
    optimizer: str
    steps: int
    batch: int
    arms: tuple[Arm, ...]
    real: str = ""
    options: tuple[tuple[str, float], ...] = ()
    warmup: int = 0
    why: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        numbers = {arm.name: len(arm.cells) for arm in self.arms if not arm.lowered}
        if len(set(numbers.values())) > 1 or 0 in numbers.values():
            got = ", ".join(f"{name} {number}" for name, number in numbers.items())
            raise ValueError(f"{self.name}: every arm must have the same number of cells, got {got}. Even them out.")
        if any(arm.lowered and (arm.cells or arm.lowered not in numbers) for arm in self.arms):
            raise ValueError(f"{self.name}: a control has no cells and names another arm. Name one of {list(numbers)}.")
        if unknown := set(self.questions) - set(QUESTIONS) or {self.measure} - set(MEASURES):
            raise ValueError(f"{self.name}: unknown question or measure, got {unknown}. Take one of the plan's.")

    @cached_property
    def digest(self) -> str:
        """Of everything that decides what its runs are; rows of another are not mixed with this one's."""
        return hashlib.sha256(f"{VERSION} {replace(self, why='', questions='a')!r}".encode()).hexdigest()[:10]

    def arm(self, name: str) -> Arm:
        return next(one for one in self.arms if one.name == name)

    @property
    def better(self) -> int:
        """1 if more of the measure is better, else -1."""
        return 1 if MEASURES[self.measure][1] else -1

    @property
    def margin(self) -> float:
        return MEASURES[self.measure][0]


def quick(one: Experiment) -> Experiment:
    """The same, much shorter: to see that everything runs; its figures mean nothing."""
    arms = tuple(replace(arm, cells=arm.cells[1::3]) for arm in one.arms)
    return replace(one, steps=max(20, one.steps // 10), arms=arms, warmup=min(one.warmup, 5))
