"""The command line ``lightning-calib``: what event files say, without torch, Lightning or TensorBoard's server."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_calib.commands.runs import Progress, Unreadable, reports_of
from lightning_calib.commands.suggest import suggest

FORMATS = ("text", "json", "markdown")
PAGES = (*FORMATS, "html")  # of a report
SCHEMA = 1  # of what `--format json` prints


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        The exit code: 0; of ``check`` 1 for a finding of severity act; of ``doctor`` 1 where the package cannot run; 2
        if something cannot be read or written.
    """
    asked = _parser().parse_args(arguments)
    try:
        text, code = asked.run(asked)
        _write(text, asked.output)
    except (Unreadable, OSError, ValueError) as trouble:
        if isinstance(trouble, BrokenPipeError):  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"lightning-calib: {trouble}", file=sys.stderr)
        return 2
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-calib", description="What the event files of runs with GradientMonitor say."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], tuple[str, int]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--output", type=Path, metavar="FILE", help="write there and not to the terminal")
        command.set_defaults(run=run)
        return command

    for name, run, text in (
        ("report", _report, "A verdict, findings and advice; several runs also side by side."),
        ("check", _check, "A paragraph and one next experiment. Exits 0, or 1 for a finding of severity act, or 2."),
        ("suggest", suggest, "Which clip value, with its reason, as a line to paste."),
    ):
        command = add(name, run, text)
        command.add_argument("logdir", type=Path, nargs="+", metavar="LOGDIR", help="a run, or a folder with runs")
        known = PAGES if name == "report" else FORMATS
        command.add_argument("--format", type=partial(_format, known), default="text", help=", ".join(known))
    refine = add("refine-schedule", _refine, "A learning-rate schedule from the gradient norms of a finished run.")
    refine.add_argument("logdir", type=Path, metavar="LOGDIR", help="one run")
    refine.add_argument("--optimizer", type=int, default=0, metavar="INDEX", help="of several optimizers, from 0")
    refine.add_argument("--kind", choices=("sgd", "adam"), help="its kind, where the files do not tell")
    refine.add_argument("--smoothing", type=float, default=0.1, help="window as a fraction of the run, in [0, 1]")
    refine.add_argument("--format", choices=("json", "csv"), default="json")
    doctor = add("doctor", _doctor, "Versions, the tab, the GPU, combinations that are known to be bad.")
    doctor.add_argument("--format", type=partial(_format, FORMATS), default="text", help=", ".join(FORMATS))
    return parser


def _format(known: Sequence[str], text: str) -> str:
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"`--format` must be one of {', '.join(known)}, got {text!r}. Use markdown for a page to read."
        )
    return text


def _write(text: str, output: Path | None) -> None:
    text = text if text.endswith("\n") else text + "\n"
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    elif not output.absolute().parent.is_dir():
        raise Unreadable(f"`--output` must be a file in a folder that exists, got {output}. Make the folder first.")
    else:
        output.write_text(text, encoding="utf-8")


def _report(asked: argparse.Namespace) -> tuple[str, int]:
    if asked.format == "html":
        from lightning_calib.commands.html import html

        return html(asked)
    from lightning_calib.report.side_by_side import as_markdown, as_text, side_by_side

    reports = reports_of(asked.logdir)
    if asked.format == "json":
        runs = [{"run": name, "problems": [*told], **one.as_dict()} for name, (one, told) in reports.items()]
        return _json({"schema": SCHEMA, "runs": runs}), 0
    markdown, several = asked.format == "markdown", len(reports) > 1
    parts = []
    if several:
        lines = side_by_side({name: one for name, (one, _) in reports.items()})
        parts.append(as_markdown(lines) if markdown else as_text(lines))
    for name, (one, _) in reports.items():
        heading = f"## {name}\n\n" if markdown else f"{name}\n"
        parts.append((heading if several else "") + (one.to_markdown().rstrip() if markdown else str(one)))
    return "\n\n".join(parts), 0


def _check(asked: argparse.Namespace) -> tuple[str, int]:
    reports = reports_of(asked.logdir)
    acts = any(finding.severity == "act" for one, _ in reports.values() for finding in one.findings)
    runs = []
    for name, (one, told) in reports.items():
        more = [finding.sentence for finding in one.findings if finding.severity != "note"][1:]
        codes = [{"code": finding.code, "severity": finding.severity} for finding in one.findings]
        paragraph = " ".join([one.verdict, *more])
        runs.append({"run": name, "paragraph": paragraph, "next": one.next, "findings": codes, "problems": [*told]})
    if asked.format == "json":
        return _json({"schema": SCHEMA, "exit_code": int(acts), "runs": runs}), int(acts)
    frame = (
        "**{run}**: {paragraph}\n\n**Next**: {next}"
        if asked.format == "markdown"
        else "{run}: {paragraph}\nNext: {next}"
    )
    told = [frame.format(**run | {"next": run["next"] or "nothing has to be changed."}) for run in runs]
    return "\n\n".join(told), int(acts)


def _refine(asked: argparse.Namespace) -> tuple[str, int]:
    from lightning_calib.tensorboard.event_runs import runs_of
    from lightning_calib.tensorboard.find_runs import one_run
    from lightning_calib.tensorboard.read_events import read_run

    files = one_run(asked.logdir)
    progress = Progress(files.size)
    rows = read_run(files, progress)
    progress.end()
    runs = {one.optimizer: run for one, run in zip(rows.optimizers, runs_of(rows), strict=True)}
    if asked.optimizer not in runs:
        raise Unreadable(f"`--optimizer` must be one of {[*runs]} in {asked.logdir}, got {asked.optimizer}.")
    run = runs[asked.optimizer]
    kind = asked.kind or _kind(run.facts)
    norms, steps = run.scalars.grad_norm_before, run.scalars.step.tolist()
    from lightning_calib.schedules import refine_schedule  # the only command that needs torch

    factors = refine_schedule(norms.tolist(), kind, smoothing=asked.smoothing).tolist()
    if asked.format == "csv":
        lines = [f"{step},{factor!r}" for step, factor in zip(steps, factors, strict=True)]
        return "\n".join(["step,factor", *lines]), 0
    named = {"run": files.name, "optimizer": asked.optimizer, "name": run.facts.optimizer, "kind": kind}
    return _json({"schema": SCHEMA, **named, "steps": steps, "factors": factors}), 0


def _kind(facts: Any) -> str:
    from lightning_calib.report.optimizer_kind import optimizer_kind

    kinds = {group.kind for group in facts.groups} or {optimizer_kind([facts.optimizer])}
    if kinds not in ({"sgd"}, {"adam"}):
        raise Unreadable(
            f"`--kind` must be given for {facts.optimizer or 'an optimizer without a name'}: the method is published "
            "for SGD and for Adam. Use `--kind adam` where each element has a scale of its own, else `--kind sgd`."
        )
    return str(kinds.pop())


def _doctor(asked: argparse.Namespace) -> tuple[str, int]:
    from lightning_calib.doctor import examine

    found = examine()
    if asked.format == "json":
        return _json({"schema": SCHEMA, **found.as_dict()}), found.exit_code
    return found.to_markdown() if asked.format == "markdown" else str(found), found.exit_code


_json = partial(json.dumps, indent=2, allow_nan=False)

if __name__ == "__main__":
    sys.exit(main())
