"""Where the clip value that a report suggests contradicts what the same report has found."""

from __future__ import annotations

from math import isfinite

from lightning_calib.report import Report
from lightning_calib.report.wording import decimal

BROKEN = ("diverged", "nonfinite", "rate-too-high")
ROUNDED = 1.05  # two digits


def contradictions(report: Report) -> list[str]:
    """Sentences; empty where there is none."""
    clippers = report.as_dict()["clippers"]
    found = []
    for one in report.suggestion:
        mine = [finding for finding in report.findings if finding.optimizer in (None, one.optimizer)]
        loud = {finding.code: finding for finding in mine if finding.severity != "note"}
        act = [code for code in BROKEN if code in loud and loud[code].severity == "act"]
        in_force = [each["max_norm"] for each in clippers if each["optimizer"] == one.optimizer]
        lines = [line for line in (one.callback, one.trainer) if line]
        if one.answer == "none" and any("Clip(" in finding.advice for finding in loud.values()):
            found.append(f"none, though {list(loud)} advise a clip")
        if one.answer == "keep" and one.value not in in_force:
            found.append(f"keep {one.value}, which is not among {in_force}")
        if act and lines and not any(one.callback in loud[code].advice for code in act):
            found.append(f"{lines}, though {act}")
        if "clip-twice" in loud and one.answer == "clip" and len(loud) == 1:
            found.append("another clip beside two")
        for finding in mine:
            low = finding.evidence.get("alike_low", float("nan"))
            wanted = finding.evidence.get("suggested_max_norm", float("nan"))
            if one.value is not None and isfinite(low) and one.value * ROUNDED < low:
                found.append(f"{one.value} is below {low}, where eps shows")
            told = finding.severity != "note" and finding.code not in ("dominated", "diverged") and isfinite(wanted)
            chosen = one.answer == "clip" and one.value is not None and not act and "dominated" not in loud
            if told and chosen and one.value != float(decimal(wanted)):
                found.append(f"{one.value}, where {finding.code} has {wanted}")
            if finding.code == "dominated" and not act and (not one.callback or one.callback not in finding.advice):
                found.append(f"{one.callback}, where `dominated` says {finding.advice}")
    return found
