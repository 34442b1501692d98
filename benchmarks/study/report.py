"""docs/evidence.md and its plots, every number of the study's part of it from the two CSVs (`make study-report`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.study import table, warning
from benchmarks.study.data import REAL
from benchmarks.study.experiments import TABLE
from benchmarks.study.findings import Finding, findings
from benchmarks.study.guide import guide, judged
from benchmarks.study.plan import QUESTIONS, SETS, Arm, Experiment
from benchmarks.study.plots import PLOTTED, plot
from benchmarks.study.quantities import tested
from benchmarks.study.run import expected
from benchmarks.study.statistics import BETTER, NONE, SMALL, UNKNOWN, WORSE, Effect
from benchmarks.study.table import Row

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "evidence.md"
BEGIN, END = "<!-- study -->\n", "<!-- end of study -->\n"
BOTH = ("A", "B")
MARK = {BETTER: "**better**", WORSE: "**worse**", SMALL: SMALL, NONE: NONE, UNKNOWN: UNKNOWN}
HEAD = """## Where clipping helps, and where it does not

Made by `make study` and `make study-report` from `benchmarks/results/study.csv`; a test holds this part of the page to
that file. What was tried was written down before the first run (`benchmarks/study/experiments.py`): the task, the arms,
the rates and thresholds of each arm (as many for each), seeds, steps, what is measured and what difference counts.

"""
HOW = """### How to read it

- *none* is the optimizer without a callback of ours; *clip* the Trainer's `gradient_clip_val`, with the threshold
  chosen among as many cells as the others have, *clip-1.0* the same at 1.0; *ZClip*, *AGC* and *percentile*
  (`GradientClip(Percentile())`) have their default arguments, *AGC-all* is `AGC(exclude=())`; *weighted* weighs the
  loss of the classes by one over their number. *none-lowered-as-X* is the control: none, at the rate chosen for X times
  the mean cut that the report of those runs states (`mean_factor`). If X is no better than that, it was a lower rate.
- The rate (and the threshold) of each arm is the cell with the best mean validation after the last step. Only these
  runs, and the controls, were measured on the test set, once. The rate falls linearly to zero; seeds are paired: the
  same weights at the start and the same batches for every arm. A rate with * is the lowest or the highest that was
  tried: a wider grid might have found a better one.
- The command at the end of a row runs its tested runs again, beside what the table has; `--seeds B` for those of set B.
- A difference is the mean over five seeds, and in brackets its 95 % interval by bootstrap over the seeds; **above 0 is
  better**, whatever is measured. It is *better* or *worse* only if the interval leaves 0 out, every seed agrees, and
  it is no less than what was said to count beforehand ({margins}); else *not shown* or *too small to count*. Five
  seeds agree by chance in 1 of 16 comparisons; hence two sets of seeds, which agree by chance in 1 of 512. Set B chose
  and tested by itself, on the same data.
- A run is *lost* if it is not finite, or if its training loss ends above 95 % of that before the first step or, with
  ten classes of equal size, of that of guessing (added when the first rows were there: networks that begin far above
  guessing and end at it were not called lost).
  A rate *works* if validation is within 5 % of the best mean of none, and the run is not lost.
- Short runs of small networks on a CPU. What a large model does in weeks, this does not say.

"""


def render(rows: Sequence[Row], warnings: Sequence[warning.Run], experiments: Sequence[Experiment] = TABLE) -> str:
    """The study's part of the page."""
    rows = sorted(rows, key=lambda row: tuple(map(str, row.key)))
    mine = {one.name: rows_of(rows, one) for one in experiments}
    known = [one for one in experiments if mine[one.name]]
    found = {one.name: findings(mine[one.name], one) for one in known}
    everything = [one for some in found.values() for one in some]
    margins = sorted({f"{one.quantity.margin:g} of {one.quantity.name}" for one in everything})
    parts = [HEAD, state(rows, experiments), judged(found), guide(found), in_short(everything), changed(everything)]
    parts.append(HOW.replace("{margins}", ", ".join(margins)))
    for letter, question in QUESTIONS.items():
        parts.append(f"### ({letter}) {question}\n\n")
        for experiment in known:
            if experiment.questions[0] == letter:
                parts.append(section(mine[experiment.name], experiment, found[experiment.name]))
            elif letter in experiment.questions:
                parts.append(f"Also [{experiment.name}](#{experiment.name}).\n\n")
    if warnings:
        parts.append(early(warnings))
    return "".join(parts)


def rows_of(rows: Sequence[Row], experiment: Experiment) -> list[Row]:
    return [row for row in rows if (row.experiment, row.digest) == (experiment.name, experiment.digest)]


def state(rows: Sequence[Row], experiments: Sequence[Experiment]) -> str:
    """How many of the planned runs there are."""
    digests = {(one.name, one.digest) for one in experiments}
    lines = []
    for which in BOTH:
        mine = [row for row in rows if row.set == which and (row.experiment, row.digest) in digests]
        hours = sum(row.seconds for row in mine) / 3600
        planned = sum(expected(one, which) for one in experiments)
        whole = "all" if len(mine) == planned else f"**only {len(mine):,}**"
        lines.append(
            f"set {which} (seeds {', '.join(map(str, SETS[which]))}): {whole} of {planned:,} runs, "
            f"{hours:.1f} h of a CPU"
        )
    real = "; ".join(f"`{name}`, SHA-256 `{sum_[:12]}...`" for name, sum_ in REAL.items())
    return (
        f"{'; '.join(lines)}. Real sets, where a table names one: {real}. All other data ship with scikit-learn and "
        "Python or are made.\n\n"
    ).replace("set A", "Set A", 1)


def in_short(found: Sequence[Finding]) -> str:
    """One row per way and what is measured: where it is better and worse, in all sets that ran."""
    tables = (
        (
            "Against none, each arm at its own best rate:",
            [f for f in found if f.against.name == "none" and not f.arm.lowered],
        ),
        (
            "Against the Trainer's clip (tuned, or at 1.0 where the table says so):",
            [f for f in found if f.against.way == "clip"],
        ),
        (
            "Against none at the rate lowered by the mean cut: is it more than a lower rate?",
            [f for f in found if f.against.lowered],
        ),
    )
    lines = ["### In short\n", "Listed are the tasks with the same verdict in every set of seeds that ran.\n"]
    for title, some in tables:
        lines += [f"{title}\n", "| what | of | better | worse | not shown, or too small to count |", "|---" * 5 + "|"]
        for name, arm in dict.fromkeys(
            (f.quantity.name, f.arm.name) for f in sorted(some, key=lambda f: f.quantity.name)
        ):
            mine = [f for f in some if (f.quantity.name, f.arm.name) == (name, arm)]
            cells = (arm, name, listed(mine, BETTER), listed(mine, WORSE), listed(mine, SMALL, NONE))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def listed(found: Iterable[Finding], *verdicts: str) -> str:
    names = [f"[{one.experiment.name}](#{one.experiment.name})" for one in found if one.verdict in verdicts]
    return ", ".join(dict.fromkeys(names)) or "-"


def changed(found: Sequence[Finding]) -> str:
    """What the second set of seeds said differently."""
    twice = [one for one in found if UNKNOWN not in {effect.verdict for effect in one.effects.values()}]
    if not twice:
        return "### The second set of seeds\n\nNot run yet: every verdict is of set A alone.\n\n"
    differ = [one for one in twice if len({effect.verdict for effect in one.effects.values()}) > 1]
    turned = [one for one in differ if {effect.verdict for effect in one.effects.values()} == {BETTER, WORSE}]
    lines = [
        "### The second set of seeds\n",
        f"{len(twice)} comparisons were made twice. {len(twice) - len(differ)} have the same verdict, {len(differ)} "
        f"another, {len(turned)} of them the opposite. Those that changed count as not shown above:\n",
        "| task | what | against | of | set A | set B |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.experiment.name} | {one.arm.name} | {one.against.name} | {one.quantity.name} | "
        + " | ".join(f"{MARK[one.effects[which].verdict]}, {number(one.effects[which].mean, True)}" for which in BOTH)
        + " |"
        for one in differ
    ]
    return "\n".join(lines) + "\n\n"


def section(rows: Sequence[Row], experiment: Experiment, found: Sequence[Finding]) -> str:
    """One experiment: what was chosen, what was measured, and the picture."""
    one = experiment
    settings = ", ".join(f"{name} {value:g}" for name, value in one.options)
    where = f"`{one.real}`, " if one.real else ""
    lines = [
        f"#### {one.name}\n",
        f"{where}{one.task}{f' ({settings})' if settings else ''}, {one.optimizer}, {one.steps} steps of {one.batch}, "
        f"chosen by {one.measure}. {one.why}\n",
    ]
    if one.name in PLOTTED and plot(rows, one):
        lines.append(f"![{one.measure} on validation against the rate, {one.name}](evidence-{one.name}.svg)\n")
    lines += [
        "| arm | cells | chosen in A, B | cut in A, B | test, A | test, B | seeds of A | again |",
        "|---" * 8 + "|",
    ]
    lines += [arm_row(rows, one, arm) for arm in one.arms]
    lines += ["", "| arm | against | of | set A | set B | verdict |", "|---" * 6 + "|"]
    lines += [
        f"| {f.arm.name} | {f.against.name} | {f.quantity.name} | {effect(f, 'A')} | {effect(f, 'B')} | "
        f"{MARK[f.verdict]} |"
        for f in found
    ]
    return "\n".join(lines) + "\n\n"


def arm_row(rows: Sequence[Row], experiment: Experiment, arm: Arm) -> str:
    chosen_cells, cuts, means, seeds = [], [], [], "-"
    for which in BOTH:
        runs = tested([row for row in rows if row.set == which], experiment, arm)
        if not runs:
            chosen_cells.append("-")
            cuts.append("-")
            means.append("-")
            continue
        threshold = "" if math.isnan(runs[0].threshold) else f" at {runs[0].threshold:g}"
        ends = {cell.rate for cell in arm.cells if cell.rate in (min(arm.cells).rate, max(arm.cells).rate)}
        edge = "*" if any(math.isclose(runs[0].rate, one) for one in ends) else ""
        chosen_cells.append(f"{runs[0].rate:.3g}{edge}{threshold}")
        cuts.append(f"{fmean(run.mean_factor for run in runs):.2f}")
        means.append(number(fmean(run.test for run in runs)))
        if which == "A":
            seeds = " ".join(number(run.test) for run in runs)
    folder = " --data-dir DIR" if experiment.real else ""
    again = f"`python -m benchmarks.study --again {experiment.name}/{arm.name}{folder}`"
    cells = [arm.name, len(arm.cells) or "-", ", ".join(chosen_cells), ", ".join(cuts), *means, seeds, again]
    return f"| {' | '.join(map(str, cells))} |"


def effect(finding: Finding, which: str) -> str:
    one: Effect = finding.effects[which]
    if one.verdict == UNKNOWN:
        return "-"
    mine, theirs = finding.means[which]
    return (
        f"{number(mine)} and {number(theirs)}: {number(one.mean, True)} "
        f"[{number(one.low, True)}, {number(one.high, True)}]"
    )


def number(value: float, signed: bool = False) -> str:
    if math.isnan(value):
        return "nan"
    digits = 0 if abs(value) >= 20 else 3
    return f"{value:{'+' if signed else ''}.{digits}f}"


def early(runs: Sequence[warning.Run]) -> str:
    words = "; ".join(f"*{name}*: {said}" for name, said in list(warning.SIGNALS.items())[1:])
    return (
        "### Early warning\n\n"
        f"Planted at step {warning.AT} of {warning.STEPS}, {len(warning.NETS)} networks and optimizers, "
        f"{len(warning.SEEDS)} seeds each (`python -m benchmarks.study.warning`). One rule for every signal, "
        f"`SpikeGuard`'s: above {warning.DEVIATIONS:g} deviations of the logarithms of the last {warning.WINDOW} "
        f"steps, and {warning.RATIO:g} times their median. The figures are steps from the signal's first alarm to "
        "the loss's: the median over the runs in which both rose, the least and the most; below 0 the loss was first; "
        f"0 is the same step. {words}.\n\n" + warning.table(runs) + "\n\n"
    )


def write(page: Path = PAGE) -> None:
    """Writes the part between the marks, and the plots."""
    rows, whole = table.read(), page.read_text()
    before, _, rest = whole.partition(BEGIN)
    page.write_text(before + BEGIN + "\n" + render(rows, warning.read()) + END + rest.partition(END)[2])
    for experiment in TABLE:
        mine = rows_of(rows, experiment)
        if experiment.name in PLOTTED and (picture := plot(mine, experiment)):
            (page.parent / f"evidence-{experiment.name}.svg").write_text(picture)


if __name__ == "__main__":
    write()
