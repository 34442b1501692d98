"""The report of a run: a verdict, findings, what to change, and the numbers behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_calib.report.codes import link
from lightning_calib.report.diagnose import diagnose
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, measure_all
from lightning_calib.report.numbers import bad_steps, clippers, layers, optimizers, plain
from lightning_calib.report.page import PageRun, framed, page
from lightning_calib.report.panel_numbers import pictured
from lightning_calib.report.run import Run
from lightning_calib.report.shadow import LIMITS, ShadowResult, sentence, shadow_results
from lightning_calib.report.shadow import table as shadow_table
from lightning_calib.report.suggestion import Suggestion, suggest
from lightning_calib.report.verdict import rest, verdict
from lightning_calib.report.wording import quoted

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Report:
    """What a run's numbers say: `GradientMonitor.report()` makes one, and the command line from event files.

    Args:
        runs: The numbers, one `Run` for each optimizer.
        shadow: What policies would have done that were judged and not applied; from the runs, where none are given.

    Attributes:
        shadow: Tuple of `ShadowResult`: of each optimizer those that were given to ``GradientMonitor(shadow=...)``, in
            that order. Neither verdict nor summary speaks of them.
        findings: Tuple of `Finding`, most important first; causes stand before what they cause, notes last.
        verdict: The first finding's sentence; where no finding is above a note, a sentence that begins "Nothing is
            wrong".
        suggestion: Tuple of `Suggestion`, one for each optimizer: which clip value, with its reason.
        next: What to change next: the first finding's advice; empty where nothing has to be done.

    Raises:
        TypeError: If ``runs`` is not a sequence of `Run`.

    Example:
        >>> report = Report([])
        >>> report.verdict
        'No optimizer step has been seen yet.'
        >>> report.as_dict()["schema"]
        1
    """

    runs: Sequence[Run] = field(repr=False)
    shadow: tuple[ShadowResult, ...] = field(default=(), repr=False)
    findings: tuple[Finding, ...] = field(init=False)
    verdict: str = field(init=False)
    suggestion: tuple[Suggestion, ...] = field(init=False, repr=False)
    next: str = field(init=False)
    _more: tuple[str, ...] = field(init=False, repr=False)
    _measured: tuple[Measured, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.runs, Run) or not _all_are(self.runs, Run):
            raise TypeError(f"`runs` must be a sequence of Run, got {quoted(self.runs)}. Write Report([run]).")
        if not _all_are(self.shadow, ShadowResult):
            raise TypeError(f"`shadow` must be a sequence of ShadowResult, got {quoted(self.shadow)}. Use () for none.")
        measured = measure_all(self.runs)
        each = [shadow_results(run.shadows, run.facts.position) for run in self.runs if run.shadows is not None]
        shadow = tuple(self.shadow) or tuple(one for results in each for one in results)
        findings = diagnose(measured)
        first = findings[0] if findings and findings[0].severity != "note" else None
        for name, value in {
            "runs": tuple(self.runs),
            "shadow": shadow,
            "findings": findings,
            "verdict": verdict(measured, findings),
            "suggestion": suggest(measured, findings, shadow),
            "next": first.advice if first else "",
            "_more": tuple(rest(measured, findings)),
            "_measured": measured,
        }.items():
            object.__setattr__(self, name, value)

    def summary(self) -> str:
        """The verdict and at most two more sentences."""
        return " ".join((self.verdict, *self._more))

    def as_dict(self) -> dict[str, Any]:
        """Everything, of builtins that JSON knows: a number that is not known, or was inf or nan, is None.

        Returns:
            ``schema`` (1; a key that is removed or changes its meaning counts it up), ``verdict``, ``next``,
            ``suggestion`` (the fields of `Suggestion`), ``findings`` (the fields of `Finding`, and ``link``),
            ``optimizers``, ``clippers`` (``name``, ``clip_rate``, ``kind``, ``optimizer``, ``max_norm``), ``layers``
            (one entry for each tensor), ``bad_steps``, ``shadow`` (the fields of `ShadowResult`).
        """
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "next": self.next,
            "suggestion": [plain(one._asdict()) for one in self.suggestion],
            "findings": [plain(one._asdict() | {"link": link(one.code)}) for one in self.findings],
            "optimizers": [optimizers(one) for one in self._measured],
            "clippers": [row for one in self._measured for row in clippers(one)],
            "layers": [row for one in self._measured for row in layers(one)],
            "bad_steps": [row for one in self._measured for row in bad_steps(one)],
            "shadow": [plain(one._asdict() | {"course": one.course and one.course._asdict()}) for one in self.shadow],
        }

    def to_markdown(self) -> str:
        """The verdict, the findings with their advice, and tables of optimizers, clippers and shadows."""
        lines = [f"**{self.verdict}**", ""]
        for one in self.findings:
            lines.append(f"- **{one.severity}** [`{one.code}`]({link(one.code)}): {one.sentence}" + _spaced(one.advice))
        if self.findings:
            lines.append("")
        for title, rows in (
            ("Optimizers", [optimizers(one) for one in self._measured]),
            ("Clippers", [row for one in self._measured for row in clippers(one)]),
            ("Shadows", shadow_table(self.shadow)),
        ):
            lines += _table(title, rows)
        lines += [LIMITS] if self.shadow else []
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one file with the verdict, the findings and the panels of the "Gradients" tab; it needs no server.

        Args:
            path: The file; its name without the ending is the title. It is overwritten.

        Raises:
            FileNotFoundError: If its folder does not exist.

        Example:
            >>> Report([]).to_html("run.html")
        """
        file = Path(path)
        if not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"`path` must be a file in a folder that exists, got {file}. Make the folder.")
        file.write_text(self._page(file.stem), encoding="utf-8")

    def _repr_html_(self) -> str:
        """In a notebook: the panels of `to_html` as a figure in a frame of its own, and below it the words.

        The frame may run its scripts and hand out files, and reaches nothing of the notebook around it. A notebook that
        is saved holds as much as the file of `to_html` would, from 250 kB to 1 MB, for each report that is the
        value of a cell; ``print(report)`` holds the words alone.
        """
        items = "".join(
            f"<li><b>{one.severity}</b> <code>{one.code}</code>: {_escape(one.sentence + _spaced(one.advice))}</li>"
            for one in self.findings
        )
        words = f"<p><b>{_escape(self.verdict)}</b></p>" + (f"<ul>{items}</ul>" if items else "")
        if not self.runs:
            return words
        return f"{framed(self._page('Gradients'))}<details><summary>In words</summary>{words}</details>"

    def _page(self, name: str) -> str:
        return page(name, [PageRun(name, self, [pictured(one) for one in self.runs])])

    def __str__(self) -> str:
        lines = [self.verdict, *self._more]
        for one in self.findings:
            lines.append(f"[{one.severity}] {one.code}: {one.sentence}" + _spaced(one.advice) + f" ({link(one.code)})")
        if self.shadow:
            several = len({one.optimizer for one in self.shadow}) > 1
            lines += [f"Judged and never applied. {LIMITS}", *(sentence(one, several=several) for one in self.shadow)]
        return "\n".join(lines)


def _all_are(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(one, kind) for one in values)


def _spaced(advice: str) -> str:
    return f" {advice}" if advice else ""


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    keys = [key for key in rows[0] if any(row[key] not in (None, "", []) for row in rows)]
    lines = [
        f"### {title}",
        "",
        "| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "|---" * len(keys) + "|",
    ]
    lines += ["| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows]
    return [*lines, ""]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|")
