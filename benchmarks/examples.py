"""Results of the examples: with none of the callbacks and with all of them, three seeds, against a trivial baseline.

    python benchmarks/examples.py --data DIR --write    # DIR: see FOLDERS for what is looked for in it

Every run is a process of its own with one thread. What has been run is kept in a file of JSON lines and not run again,
so that the script can be stopped; remove the file to measure anew. Without --data only the embedded data are used.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "examples" / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
MODES = ("none", "full")
RUN = """
import json, sys, importlib.util
spec = importlib.util.spec_from_file_location("example", sys.argv[1])
sys.path.insert(0, sys.argv[1].rsplit("/", 1)[0])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("RESULT " + json.dumps(module.main(sys.argv[2:])))
"""


class Case(NamedTuple):
    """One line of the table: the result `metric` of an example, against the result `baseline`; a folder of --data."""

    example: str
    data: str
    folder: str
    arguments: tuple[str, ...]
    metric: str
    baseline: str
    trivial: str


BAYES = "naive Bayes"
POLARITY = ("--encoding", "latin-1")
CASES = [
    Case("vision", "digits", "", (), "accuracy", "baseline", "nearest class mean"),
    Case("vision", "digits", "", ("--model", "nfnet"), "accuracy", "baseline", "nearest class mean"),
    Case(
        "vision", "digits", "", ("--imbalance", "100"), "balanced_accuracy", "balanced_baseline", "nearest class mean"
    ),
    Case(
        "vision",
        "digits",
        "",
        ("--label-noise", "0.4", "--weight-decay", "0.02"),
        "accuracy",
        "baseline",
        "nearest class mean",
    ),
    Case("vision_gan", "digits", "", (), "frechet", "baseline", "noise per pixel"),
    Case("language_model", "standard library", "", (), "bits_per_character", "bigram", "bigrams"),
    Case("language_model", "tinyshakespeare", "tinyshakespeare", (), "bits_per_character", "bigram", "bigrams"),
    Case("text_classification", "standard library", "", (), "macro_f1", "bayes_macro_f1", BAYES),
    Case("text_classification", "clinc_oos", "clinc_oos", (), "macro_f1", "bayes_macro_f1", BAYES),
    Case(
        "text_classification", "sentence_polarity", "sentence_polarity", POLARITY, "macro_f1", "bayes_macro_f1", BAYES
    ),
    Case("speech", "synthetic", "", (), "wer", "baseline", "constant answer"),
    Case("speech", "fsdd", "fsdd", (), "wer", "baseline", "constant answer"),
    Case("speech", "fsdd", "fsdd", ("--cut", "0"), "wer", "baseline", "constant answer"),
    Case("recommendation", "planted", "", (), "recall", "baseline", "popularity"),
    Case("recommendation", "movietweetings", "movietweetings", (), "recall", "baseline", "popularity"),
    Case("recommendation", "movietweetings", "movietweetings", ("--lr", "50"), "recall", "baseline", "popularity"),
]


def measure(
    case: Case, data: Path | None, mode: str, seed: int, known: dict[str, Any], store: Path
) -> dict[str, float]:
    """The example's own dictionary, and the minutes that it took."""
    key = json.dumps([case.example, case.data, case.arguments, mode, seed])
    if key not in known:
        arguments = [*case.arguments, "--calibrate", mode, "--seed", str(seed), "--log-dir", str(store.with_suffix(""))]
        if data is not None and case.folder:
            arguments += ["--data-dir", str(data / case.folder)]
        path = str(ROOT / "examples" / f"{case.example}.py")
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN, path, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{path} {' '.join(arguments)}: {done.stderr[-2000:]}")
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        known[key] = json.loads(line.removeprefix("RESULT ")) | {"minutes": (time.perf_counter() - begun) / 60}
        with store.open("a") as lines:
            lines.write(json.dumps([key, known[key]]) + "\n")
        print(key, known[key], flush=True)
    return known[key]


def row(case: Case, found: dict[str, list[dict[str, float]]]) -> str:
    """A line of the table: means, and from the lowest to the highest seed."""
    cells = []
    for mode in MODES:
        values = [one[case.metric] for one in found[mode]]
        cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    baseline = mean(one[case.baseline] for one in found["none"])
    minutes = " / ".join(f"{mean(one['minutes'] for one in found[mode]):.1f}" for mode in MODES)
    flags = " `" + " ".join(case.arguments) + "`" if case.arguments else ""
    cells = [f"{case.example}{flags}", case.data, case.metric, f"{case.trivial} {baseline:.3f}", *cells, minutes]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what has not been run, print the table, and put it into the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="with the folders " + ", ".join(FOLDERS))
    parser.add_argument("--only", default="", metavar="TEXT", help="lines of the table that begin so")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--store", type=Path, default=Path("examples-results.jsonl"))
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    lines = options.store.read_text().splitlines() if options.store.exists() else []
    known = dict(json.loads(line) for line in lines)
    table = ["| example | data | metric | trivial baseline | none | full | minutes |", "|---|---|---|---|---|---|---|"]
    for case in CASES:
        if (case.folder and options.data is None) or not case.example.startswith(options.only):
            continue
        runs = {
            mode: [measure(case, options.data, mode, seed, known, options.store) for seed in options.seeds]
            for mode in MODES
        }
        table.append(row(case, runs))
    text = "\n".join(table) + "\n"
    print(text)
    if options.write:
        page = PAGE.read_text()
        head, _, rest = page.partition(BEGIN)
        PAGE.write_text(head + BEGIN + text + END + rest.partition(END)[2])


FOLDERS = sorted({case.folder for case in CASES if case.folder})

if __name__ == "__main__":
    main()
