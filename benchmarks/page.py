"""docs/performance.md, every number of it, from the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Results
from benchmarks.variants import THREE, TRAINERS_CLIP

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
HEAD = """# What it costs

Made by `make bench` from `benchmarks/results/performance.json`; a test holds this page to that file. The ratios are
what counts: absolute times are of one machine. No figure of a GPU exists yet.

- **Extra** is the process time of a step of a whole `Trainer.fit` beyond that of the same fit without a callback, all
  threads, on a CPU: what Lightning's hooks and our bookkeeping take is in it. A ratio is the extra over that of
  `Trainer(gradient_clip_val=1.0)` on the same model, in the same process, fits in turn; medians over rounds.
- The gradients are given (one write per tensor and no forward pass), the optimizer is `SGD`.
- **Quiet** acts on no step and **firing** on every one, which is checked by comparing the gradients; a warm-up is two
  steps long. The Trainer's clip multiplies on every step, whether it fires or not.
- Small tensors are 32 x 32 and 32 in turn.
"""
PEERS = """`wandb.watch-like hooks` is a stand-in written for this page: a hook on each parameter that counts, and on a
logged step brings a histogram of the gradient to the host; nothing of wandb runs, and nothing is written or sent.
`smartclip` is called in a hook, as its callback does, which does not import without `transformers`; of `timm` only the
file of the function is loaded. optax cannot run in a torch fit; it is among the functions.
"""
BESIDE = """## Beside the clip

A logged step reads the gradients once more, after the optimizer, and with `GradientMonitor` copies up to 2^16 elements
of each weight before it (64 MB at most). A step that is not logged does neither. `NonFiniteGuard` brings the norm and
the loss to the host on every step. How many operations a step takes is counted in `tests/cost.json`. Figures for
learning-rate rules and `PreciseBatchNorm`, which has nothing to do in a step, are in their [cards](methods/index.md).
"""
FUNCTIONS = """For training loops of your own; a callback does more in a step (above). Time of a call as a ratio to
`torch.nn.utils.clip_grad_norm_`: quiet, firing.
"""


def render(results: Results) -> str:
    """The page; a part that was not measured is not on it."""
    parts = [HEAD, _made(results)]
    for name, section in SECTIONS.items():
        if name in results:
            parts.append(section(results[name]["data"]))
    return "\n".join([*parts, BESIDE])


def _made(results: Results) -> str:
    lines = []
    if any(part["made"]["quick"] for part in results.values()):
        quick = [name for name, part in results.items() if part["made"]["quick"]]
        lines += [
            f"> **A smoke run: these figures mean nothing** (parts: {', '.join(quick)}). `make bench` measures.\n"
        ]
    runs: dict[str, list[str]] = {}
    for name, part in results.items():
        made = part["made"]
        versions = ", ".join(f"{key} {value}" for key, value in made["versions"].items())
        there = ", ".join(f"{key} {value}" for key, value in made["peers"].items() if value) or "none"
        absent = ", ".join(key for key, value in made["peers"].items() if not value) or "none"
        said = f"{made['date']}, {made['machine']}, {made['threads']} thread; {versions}. Packages beside: {there}."
        runs.setdefault(f"{said} Not installed, and so not measured: {absent}.", []).append(name)
    whole = len(runs) == 1
    return "\n".join(
        [*lines, *(said if whole else f"- {', '.join(names)}: {said}" for said, names in runs.items()), ""]
    )


def _fits(data: list[dict[str, Any]]) -> str:
    steps = "; ".join(f"{one['rounds']} of {one['steps']} steps ({one['title']})" for one in data)
    plain = "; ".join(f"{one['plain_us']:,.0f} ({one['title']})" for one in data)
    parts = [
        "## A whole fit, steps that are not logged\n",
        "\n".join(_in_short(data)) + "\n",
        "### Extra, as a ratio to the Trainer's clip\n",
        _beside(data, lambda table, row: f"{row['ratio']:.2f}"),
        "### The same in microseconds, and in brackets the middle half of the rounds\n",
        _beside(data, lambda table, row: f"{row['extra_us']:,.0f} ({row['low_us']:,.0f} to {row['high_us']:,.0f})"),
        f"A plain step takes, in microseconds, {plain}. Rounds: {steps}.\n",
        _odd(data),
        PEERS,
    ]
    return "\n".join(one for one in parts if one)


def _in_short(data: list[dict[str, Any]]) -> Iterable[str]:
    wanted = (("GradientClip(max_norm)", "quiet"), ("GradientClip(max_norm)", "firing"), ("ZClip()", "quiet"))
    for name, side in (*wanted, ("AGC()", "firing"), (THREE, "quiet"), ("zclip package", "quiet")):
        found = [
            (one["title"], row) for one in data for row in one["rows"] if (row["name"], row["side"]) == (name, side)
        ]
        if found:
            yield f"- **{_name(name)}, {side}**: " + ", ".join(f"{row['ratio']:.2f} ({title})" for title, row in found)


def _odd(data: list[dict[str, Any]]) -> str:
    wrong = {
        f"{row['name']}, {row['side']}, acted on {row['fired']:.0%} of the steps"
        for one in data
        for row in one["rows"]
        if row["fired"] not in (None, 0.0 if row["side"] == "quiet" else 1.0)
    }
    return f"Not what their name says: {'; '.join(sorted(wrong))}.\n" if wrong else ""


def _logged(data: list[dict[str, Any]]) -> str:
    return "\n".join(
        [
            "## A whole fit, every step logged, with a TensorBoardLogger\n",
            "A whole step over a plain one, and in brackets the extra in microseconds:\n",
            _beside(data, lambda table, row: f"{row['of_plain']:.2f} ({row['extra_us']:,.0f})"),
        ]
    )


def _writing(data: list[dict[str, Any]]) -> str:
    parts = ["## Writing a logged row\n"]
    for one in data:
        rows = [(row["name"], f"{row['ms']:.2f}", f"{row['ratio']:.2f}") for row in one["rows"]]
        parts += [f"{one['title']}:\n", _table(("", "ms", "ratio"), rows)]
    return "\n".join(parts)


def _functions(data: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(row["name"] for one in data for row in one["rows"]))
    rows = []
    for name in names:
        cells = [next((row for row in one["rows"] if row["name"] == name), None) for one in data]
        rows.append((_name(name), *(f"{c['quiet_ratio']:.2f}, {c['firing_ratio']:.2f}" if c else "-" for c in cells)))
    torch_us = "; ".join(
        f"{row['firing_us']:,.0f} ({one['title']})" for one in data for row in one["rows"] if "torch " in row["name"]
    )
    return "\n".join(
        [
            "## The functions alone\n",
            FUNCTIONS,
            _table(("", *(one["title"] for one in data)), rows),
            f"torch's takes {torch_us} microseconds, firing. optax returns new arrays and leaves its input alone.\n",
        ]
    )


def _curve(title: str, x: str, words: str) -> Any:
    def section(data: list[dict[str, Any]]) -> str:
        columns = list(dict.fromkeys(key for point in data for key in point if key != "x"))
        if len(columns) > len(data) + 3:  # many lines at few points: the points side by side
            head = [x, *(_number(point["x"]) for point in data)]
            rows = [(_name(one), *(_number(point.get(one, "-")) for point in data)) for one in columns]
        else:
            head = [x, *map(_name, columns)]
            rows = [(_number(point["x"]), *(_number(point.get(one, "-")) for one in columns)) for point in data]
        return "\n".join([f"## {title}\n", f"{words}\n", _table(head, rows)])

    return section


def _beside(data: list[dict[str, Any]], cell: Any) -> str:
    """Rows by variant, columns by model."""
    keys = list(dict.fromkeys((row["whose"], row["name"], row["side"]) for one in data for row in one["rows"]))
    keys.sort(key=lambda key: (key[1] != TRAINERS_CLIP, key[0] == "peer"))
    rows = []
    for key in keys:
        found = [next((r for r in one["rows"] if (r["whose"], r["name"], r["side"]) == key), None) for one in data]
        label = _name(f"{key[1]}, {key[2]}" if key[2] else key[1])
        cells = [cell(one, row) if row else "-" for one, row in zip(data, found, strict=True)]
        rows.append((label, *cells))
    return _table(("", *(one["title"] for one in data)), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _name(name: str) -> str:
    """Code as code; a side stays outside."""
    code, comma, side = name.rpartition(", ") if name.endswith((", quiet", ", firing")) else (name, "", "")
    is_code = code.endswith(")") and " " not in code.split("(")[0]
    return f"`{code}`{comma}{side}" if is_code else name


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_US = "Extra microseconds per step of a whole fit, not logged; a plain step beside."
_HEAP = """ The last row tells more
of the memory allocator than of callbacks: between two steps glibc gives the gradients' memory back to the system, or
does not, by what else lies in the heap. It did with `GradientClip` (4,762 page faults a step), and not with `AGC()`
(none). Where `MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` forbid it, neither has any, and the clip costs half
of what `AGC()` does, which costs less than the Trainer's."""
SECTIONS = {
    "fits": _fits,
    "logged": _logged,
    "writing": _writing,
    "functions": _functions,
    "tensors": _curve("Growth with the number of tensors", "small tensors", _US + _HEAP),
    "elements": _curve("Growth with the number of elements", "elements in 100 tensors", _US),
    "segments": _curve(
        "Growth with the number of segments", "segments", "Microseconds of one judgement, without reading or writing."
    ),
    "history": _curve(
        "Growth with the length of the history",
        "norms observed",
        "Microseconds of one judgement of `Percentile`; `-` was not reached in the time given to it.",
    ),
    "event_file": _curve("Size of the event file", "rows", "Bytes, of `GradientMonitor()` alone; every step is a row."),
    "checkpoint": _curve("Size in a checkpoint", "bytes at so many tensors", "What a callback saves after 30 steps."),
    "tab": _curve("The Gradients tab", "", "Of a run that is on disk: until TensorBoard has read it, and each answer."),
}
