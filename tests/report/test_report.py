"""The report: verdict, order, JSON, Markdown, HTML, text; speed; what it must take."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.made_runs import clipped, column, grads, healthy

import lightning_calib
from lightning_calib import Finding, Report, ShadowResult
from lightning_calib.report.codes import CODES, EXPLAINS
from lightning_calib.report.evidence import EVIDENCE
from lightning_calib.report.run import Clipper, Counts, Facts, Run, Scalars

ROOT = Path(lightning_calib.__file__).parent.parent
KEYS = {
    "schema",
    "verdict",
    "next",
    "suggestion",
    "findings",
    "optimizers",
    "clippers",
    "layers",
    "bad_steps",
    "shadow",
}


def faulty():
    """Findings of all severities: a cut of the rate, a dead layer, frozen tensors."""
    run = clipped(healthy("sgd"), 0.01)
    for table in ("before", "after", "peak", "update"):
        column(run, table, "net.0.weight")[:] = 0.0
    run.layers.trainable[-1] = False
    return run


# ---------------------------------------------------------------- the verdict


def test_the_verdict_is_the_first_findings_sentence_word_for_word():
    report = Report([faulty()])
    assert [one.severity for one in report.findings] == ["act", "look", "note"]
    assert report.verdict == report.findings[0].sentence
    assert report.next == report.findings[0].advice


def test_in_health_it_says_so_with_two_numbers():
    report = Report([healthy()])
    assert report.verdict.startswith("Nothing is wrong: the loss fell from 2.4 to 0.3")
    assert "a step changes the weights by 0.0994 %" in report.verdict
    assert report.next == ""


def test_a_note_is_not_wrong_and_is_told_behind():
    report = Report([clipped(healthy(), 0.1)])
    assert report.verdict.startswith("Nothing is wrong: ")
    assert report.findings[0].sentence in report.summary()


def test_a_young_run_is_told_as_that():
    run = healthy(rows=1)
    assert "(5 optimizer steps: too few to say much)" in Report([run]).verdict


def test_few_rows_are_told_as_that_and_a_loss_that_rises_is_no_good_news():
    run = healthy(rows=1, every=50)
    assert Report([run]).verdict.startswith("Nothing is wrong: the loss fell from ")
    assert "too few" not in Report([run]).verdict
    run.scalars.loss[:] = 1e9
    run.scalars.loss_max[:] = 1e9
    assert Report([run]).verdict.startswith("Nothing is wrong that gradients show, but the loss has not fallen: ")
    assert Report([run]).verdict.endswith(" (1 logged row: too few to say much).")


@pytest.mark.parametrize("run", [healthy(), faulty(), clipped(healthy(), 0.1), healthy(rows=0)])
def test_the_summary_is_the_verdict_and_at_most_two_more_sentences(run):
    report = Report([run])
    rest = report.summary().removeprefix(report.verdict)
    assert report.summary().startswith(report.verdict)
    assert rest.count(". ") <= 1
    assert rest.rstrip().endswith(".")


def test_of_several_optimizers_each_sentence_says_which():
    other = faulty()._replace(facts=Facts("SGD", 1, faulty().facts.groups, optimizers=2))
    report = Report([healthy(), other])
    assert report.verdict.startswith("Optimizer 1 (SGD): GradientClip clips so often")
    assert {one.optimizer for one in report.findings} == {1}
    assert "optimizer 1 (SGD): in 300 optimizer steps" in report.summary()


# ---------------------------------------------------------------- the dictionary


def test_the_dictionary_survives_json_and_has_the_documented_keys():
    run = faulty()
    run.scalars.grad_norm_before[3] = np.inf
    run.scalars.lr[:] = np.nan
    found = Report([run]).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == KEYS
    assert found["schema"] == 1
    assert found["shadow"] == []
    assert found["clippers"] == [
        {"name": "GradientClip", "clip_rate": 1.0, "kind": "fixed", "optimizer": 0, "max_norm": 0.01}
    ]
    assert set(found["findings"][0]) == {*Finding._fields, "link"}
    assert found["findings"][0]["link"] == "docs/findings.md#clip-cuts-rate"
    assert len(found["layers"]) == 7
    assert sum(row["share"] for row in found["layers"]) == pytest.approx(1.0)
    assert found["optimizers"][0]["kinds"] == ["sgd"]


def test_what_is_shadowed_is_handed_on():
    shadow = ShadowResult("ZScore()", "ZScore(z_max=2.5)", 0.04)
    assert Report([healthy()], shadow=(shadow,)).as_dict()["shadow"][0]["clip_rate"] == 0.04


# ---------------------------------------------------------------- the other forms


def test_text_markdown_and_html_have_every_finding():
    report = Report([faulty()])
    for form in (str(report), report.to_markdown(), report._repr_html_()):
        assert all(one.code in form and one.severity in form for one in report.findings)
    assert str(report).startswith(report.verdict)
    assert "[`dead-layer`](docs/findings.md#dead-layer)" in report.to_markdown()
    assert "| optimizer | name |" in report.to_markdown()
    assert "| GradientClip | 1 | fixed | 0 | 0.01 |" in report.to_markdown()


def test_html_is_escaped():
    run = healthy("sgd")._replace(clippers=(Clipper("<b>&", "fixed", 0.0),))
    assert "&lt;b&gt;&amp; never fired" in Report([run])._repr_html_()


def test_its_representation_is_short():
    assert len(repr(Report([healthy()]))) < 300


def test_a_report_of_nothing_can_be_printed():
    report = Report([])
    assert str(report) == report.verdict == "No optimizer step has been seen yet."
    assert report.to_markdown() == f"**{report.verdict}**\n"


# ---------------------------------------------------------------- what it takes


@pytest.mark.parametrize("runs", [healthy(), [1]])
def test_it_takes_a_sequence_of_runs(runs):
    with pytest.raises(TypeError, match=r"`runs` must be a sequence of Run.*Write Report\(\[run\]\)"):
        Report(runs)


def test_only_the_scalars_are_enough():
    run = healthy()._replace(layers=None)
    assert Report([run]).verdict.startswith("Nothing is wrong")
    unknown = Scalars(run.scalars.step, *(np.full(60, np.nan) for _ in Scalars._fields[1:]))
    report = Report([Run(Facts("Mine"), Counts(steps=300), unknown)])
    assert report.verdict == "Nothing is wrong: no gradient was inf or nan."
    assert report.as_dict()["optimizers"][0]["norm_median"] is None


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 7])
def test_few_rows_are_taken_without_a_warning(rows):
    assert Report([healthy("sgd", rows=rows)]).summary()


def test_every_number_may_be_missing_or_infinite():
    for value in (np.nan, np.inf, 0.0):
        run = faulty()
        for table in (*run.scalars[1:], *run.layers[8:]):
            table[:] = value
        json.dumps(Report([run]).as_dict(), allow_nan=False)


def test_a_thousand_layers_and_a_thousand_rows_are_reported_in_a_fifth_of_a_second():
    random = np.random.default_rng(0)
    small = healthy("sgd", rows=1000)
    names = tuple(f"net.{i}.weight" for i in range(1000))
    layers = small.layers._replace(
        names=names,
        owners=names,
        dims=(2,) * 1000,
        sizes=(100,) * 1000,
        group_of=(0,) * 1000,
        given=np.ones(1000, bool),
        trainable=np.ones(1000, bool),
        **{key: random.lognormal(size=(1000, 1000)) for key in ("before", "after", "peak", "weight", "update")},
    )
    run = clipped(small, 0.1)._replace(layers=layers)
    took = []
    for _ in range(3):
        start = time.process_time()
        Report([run])
        took.append(time.process_time() - start)
    assert min(took) < 0.2


# ---------------------------------------------------------------- codes and their page


def test_the_codes_are_those_of_the_page_in_the_same_order():
    page = (ROOT / "docs" / "findings.md").read_text()
    sections = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert [one for one in sections if one in CODES] == list(CODES)
    for code, severities in CODES.items():
        text = page.split(f"## {code}\n")[1].split("\n## ")[0]
        assert f"Severity: {' or '.join(severities)}." in text, code
        for part in ("**What it means.**", "**How it is decided.**", "**What to do.**", "**When it is wrong.**"):
            assert part in text, f"{code}: {part}"


def test_the_page_lists_the_keys_of_evidence():
    page = (ROOT / "docs" / "findings.md").read_text()
    rows = [f"| `{key}` | {meaning} |" for key, meaning in EVIDENCE.items()]
    assert [row for row in rows if row not in page] == []


def test_what_a_code_explains_stands_behind_it():
    order = list(CODES)
    for cause, told in EXPLAINS.items():
        assert told <= set(order)
        assert all(order.index(cause) < order.index(one) for one in told), cause


def test_evidence_is_numbers_by_documented_keys():
    runs = [faulty(), clipped(healthy(), 0.1), clipped(healthy(), 1e-9), clipped(healthy(), 1e9)]
    hog = healthy("sgd")
    grads(hog, "embed.weight", 30.0)
    runs.append(clipped(hog, 1.0))
    for run in runs:
        for one in Report([run]).findings:
            assert set(one.evidence) <= set(EVIDENCE), one.code
            assert all(isinstance(value, float) for value in one.evidence.values()), one.code
            assert one.code in CODES
            assert one.severity in CODES[one.code]
