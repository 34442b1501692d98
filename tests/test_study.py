"""The study of the benchmarks: it finds what is planted, finds nothing in nothing, and cannot be bent unseen."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.planted_study import ARMS, CELLS, PLANNED, Planted

from benchmarks.study import report, table, warning
from benchmarks.study.__main__ import main
from benchmarks.study.choose import chosen, lowered
from benchmarks.study.experiments import TABLE, rates
from benchmarks.study.findings import Finding, findings
from benchmarks.study.fit import fit
from benchmarks.study.guide import judged, with_figures
from benchmarks.study.plan import SETS, Arm, Cell, quick
from benchmarks.study.run import Job, expected, one_run, run
from benchmarks.study.sentences import CLAIMS, GUIDE
from benchmarks.study.statistics import BETTER, NONE, SMALL, UNKNOWN, WORSE, interval, judge
from benchmarks.study.table import Row


def made(folder: Path, gain: float, sets: str = "AB", **rest: float) -> list[Row]:
    path = folder / "study.csv"
    for which in sets:
        run([PLANNED], which, None, path, 1, Planted(gain, **rest))
    return table.read(path)


def the(found: list[Finding], arm: str = "ZClip", against: str = "none", of: str = "test accuracy") -> Finding:
    return next(one for one in found if (one.arm.name, one.against.name, one.quantity.name) == (arm, against, of))


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, BETTER), (-0.05, WORSE), (0.0, NONE)])
def test_a_planted_effect_is_found_and_a_null_effect_is_not(gain: float, verdict: str, tmp_path: Path) -> None:
    found = the(findings(made(tmp_path, gain), PLANNED))
    assert found.verdict == verdict
    if verdict != NONE:
        assert found.effects["A"].mean == pytest.approx(gain, abs=0.01)
        assert found.effects["A"].low <= found.effects["A"].mean <= found.effects["A"].high


def test_an_effect_that_a_lower_rate_has_too_is_not_more_than_a_lower_rate(tmp_path: Path) -> None:
    found = findings(made(tmp_path, 0.05, control=0.05 + 0.1 * math.log10(2)), PLANNED)
    assert the(found).verdict == BETTER
    assert the(found, against="none-lowered-as-ZClip").verdict == NONE


def test_a_verdict_that_one_set_of_seeds_does_not_share_is_not_shown(tmp_path: Path) -> None:
    rows = made(tmp_path, 0.05, "A") + [row for row in made(tmp_path / "other", 0.0, "B") if row.set == "B"]
    found = the(findings(rows, PLANNED))
    assert (found.effects["A"].verdict, found.effects["B"].verdict, found.verdict) == (BETTER, NONE, NONE)
    page = report.render(rows, [], [PLANNED])
    assert "| made-up | ZClip | none | test accuracy | **better**" in page


def test_a_grid_that_has_not_run_to_its_end_gives_no_width(tmp_path: Path) -> None:
    rows = made(tmp_path, 0.0, "A")
    assert the(findings(rows, PLANNED), of="decades of rates that work").effects["A"].verdict == NONE
    part = [row for row in rows if row[5:9] != ("ZClip", 30.0, row.threshold, 4)]
    assert len(part) == len(rows) - 1
    assert not [
        one for one in findings(part, PLANNED) if one.quantity.name.startswith("decades") and one.arm.way == "ZClip"
    ]


def test_an_interval_alone_or_agreement_alone_or_a_small_mean_makes_no_verdict() -> None:
    assert judge([0.1, 0.1, 0.1, 0.1, -0.001], 0.01).verdict == NONE
    assert judge([0.003] * 5, 0.01).verdict == SMALL
    assert judge([0.02, 0.03, 0.02, 0.04, 0.03], 0.01).verdict == BETTER
    assert judge([math.nan, 0.1, 0.1, 0.1, 0.1], 0.01).verdict == NONE
    assert judge([], 0.01).verdict == UNKNOWN


def test_the_interval_is_that_of_all_resamples_and_of_many_beyond_five() -> None:
    low, high = interval([0.0, 1.0])  # means 0, 1/2, 1/2, 1
    assert (low, high) == (0.0, 1.0)
    low, high = interval([float(one) for one in range(40)])
    assert low == pytest.approx(19.5 - 1.96 * 11.5 / 40**0.5, abs=0.5)
    assert high == pytest.approx(19.5 + 1.96 * 11.5 / 40**0.5, abs=0.5)


def test_an_arm_with_more_cells_is_refused() -> None:
    more = Arm("ZClip", "ZClip", (*CELLS, Cell(100.0)))
    with pytest.raises(ValueError, match="made-up: every arm must have the same number of cells, got none 6, ZClip 7"):
        replace(PLANNED, arms=(ARMS[0], more))
    with pytest.raises(ValueError, match="a control has no cells and names another arm"):
        replace(PLANNED, arms=(ARMS[0], Arm("control", lowered="AGC")))
    with pytest.raises(ValueError, match="unknown question or measure"):
        replace(PLANNED, questions="z")


def test_every_planned_control_belongs_to_one_of_ours_and_every_rate_grid_is_half_a_decade_apart() -> None:
    assert rates(0.003, 4) == (0.003, 0.01, 0.03, 0.1)
    assert rates(1, 3) == (1.0, 3.0, 10.0)
    assert len({one.name for one in TABLE}) == len(TABLE)
    for one in TABLE:
        assert one.arms[0].name == "none"
        for arm in one.arms:
            assert not arm.lowered or one.arm(arm.lowered).way not in ("none", "clip")


def test_resuming_runs_nothing_twice_and_what_broke_off_is_finished(tmp_path: Path) -> None:
    path, runner = tmp_path / "study.csv", Planted(0.0)
    assert run([PLANNED], "A", None, path, 1, runner) == expected(PLANNED, "A") == 75
    whole = path.read_text()
    assert run([PLANNED], "A", None, path, 1, runner) == 0
    assert path.read_text() == whole
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:20]))
    assert run([PLANNED], "A", None, path, 1, runner) == 75 - 19
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())


def test_two_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    for processes in (1, 2):
        assert run([PLANNED], "A", None, tmp_path / f"{processes}.csv", processes, Planted(0.05)) == 75
    one, two = (sorted((tmp_path / f"{processes}.csv").read_text().splitlines()) for processes in (1, 2))
    assert one == two


def test_rows_of_another_plan_or_of_other_data_are_not_mixed(tmp_path: Path) -> None:
    path, runner = tmp_path / "study.csv", Planted(0.0)
    run([PLANNED], "A", None, path, 1, runner)
    longer = replace(PLANNED, steps=21)
    assert longer.digest != PLANNED.digest
    assert replace(PLANNED, why="other words").digest == PLANNED.digest
    assert run([longer], "A", None, path, 1, runner) == 75
    path.write_text(path.read_text().replace(",data,A,", ",others,A,"))
    with pytest.raises(ValueError, match="made-up: all rows must be of the same data, got data beside"):
        run([PLANNED], "B", None, path, 1, runner)


def test_the_choice_is_by_validation_and_the_test_set_is_seen_for_chosen_cells_only(tmp_path: Path) -> None:
    rows = made(tmp_path, 0.05, "A")
    assert {row.phase for row in rows if not math.isnan(row.test)} == {"test", "control"}
    for arm in ARMS[:2]:
        assert chosen(rows, PLANNED, arm) == Cell(1.0)
        assert {row.rate for row in rows if row.arm == arm.name and row.phase == "test"} == {1.0}
    assert lowered(rows, PLANNED, ARMS[2]) == Cell(0.5)
    hidden = [row._replace(test=1 - row.test) for row in rows]
    assert chosen(hidden, PLANNED, ARMS[1]) == Cell(1.0)
    broken = [row._replace(validation=math.nan) if row.rate == 1.0 else row for row in rows]
    assert chosen(broken, PLANNED, ARMS[1]) in (Cell(0.3), Cell(3.0))


def test_a_run_that_only_chooses_does_not_measure_the_test_set_and_one_with_a_monitor_has_the_same_weights() -> None:
    one = quick(next(one for one in TABLE if one.name == "bad-batches"))
    job = Job(one, one.arm("ZClip"), Cell(0.03), "quick", 0, "choose", None)
    first, second = one_run(job), one_run(job._replace(phase="test"))
    assert math.isnan(first.test)
    assert math.isnan(first.mean_factor)
    assert 0 < second.mean_factor <= 1
    assert second.test > 0
    assert (first.validation, first.train_loss) == (second.validation, second.train_loss)


def test_a_run_at_a_mad_rate_is_lost_and_stops() -> None:
    one = quick(next(one for one in TABLE if one.name == "language-sgd"))
    found = fit(one, one.arms[0], Cell(1e6), 0, None, test=False)
    assert found.lost
    assert not fit(replace(one, steps=60), one.arms[0], Cell(0.3), 0, None, test=False).lost


def test_another_file_of_a_real_set_is_refused(tmp_path: Path) -> None:
    from benchmarks.study.data import file_of

    with pytest.raises(FileNotFoundError, match=r"expected tinyshakespeare/input\.txt below --data-dir"):
        file_of(tmp_path, "tinyshakespeare/input.txt")
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_text("To be")
    with pytest.raises(ValueError, match="must have the SHA-256"):
        file_of(tmp_path, "tinyshakespeare/input.txt")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "nothing"], "--only: must name experiments, got ['nothing']. Take some of images, "),
        (
            ["--again", "nothing"],
            "--again: must name an experiment and an arm of it, got 'nothing'. Experiments: images, ",
        ),
        (["--again", "images/nobody"], "got 'images/nobody'. images has none, clip-1.0, ZClip, "),
    ],
)
def test_the_command_line_refuses_what_it_does_not_know(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert told in capsys.readouterr().err


def test_a_row_can_be_run_again_by_the_command_that_the_page_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = report.PAGE.read_text()
    (command,) = re.findall(r"`python -m benchmarks\.study (--again bad-batches/percentile)`", page)
    main(command.split())
    lines = re.findall(r"seed \d, rate .*: (.*), in the table (.*)", capsys.readouterr().out)
    assert len(lines) == len(SETS["A"])


def test_the_page_is_what_the_results_say() -> None:
    page = report.PAGE.read_text().partition(report.BEGIN)[2].partition(report.END)[0]
    assert page == "\n" + report.render(table.read(), warning.read()), "run `make study-report`"


def test_no_sentence_says_other_than_its_figures() -> None:
    rows = table.read()
    found = {one.name: findings(report.rows_of(rows, one), one) for one in TABLE}
    named = [one for row in (*CLAIMS, *GUIDE) for cell in row for one in re.findall(r"\{(.+?)\}", cell)]
    wrong = [one for one in named if with_figures(f"{{{one}}}", found) is None]
    assert not wrong, f"write these sentences anew: {wrong}"


def test_a_sentence_whose_figure_has_another_verdict_or_is_missing_is_left_out(tmp_path: Path) -> None:
    found = {"made-up": findings(made(tmp_path, 0.05), PLANNED)}
    assert "+0.05" in str(with_figures("it helps: {made-up/ZClip/test=better}", found))
    assert with_figures("it hurts: {made-up/ZClip/test=worse}", found) is None
    assert with_figures("it helps: {elsewhere/ZClip/test=better}", found) is None
    assert judged(found, [("it helps", "yes", "{made-up/ZClip/test=worse}")]) == ""


def test_a_part_of_the_runs_is_called_a_part(tmp_path: Path) -> None:
    page = report.render(made(tmp_path, 0.0, "A"), [], [PLANNED])
    assert "Set A (seeds 0, 1, 2, 3, 4): all of 75 runs" in page
    assert "set B (seeds 100, 101, 102, 103, 104): **only 0** of 75 runs" in page
    assert "Not run yet" in page


def test_a_spike_gives_an_alarm_and_noise_gives_none() -> None:
    noise = random.Random(0)
    values = [noise.lognormvariate(0, 0.1) for _ in range(200)]
    assert warning.alarms(values) == []
    values[150] = 5.0
    values[170] = math.nan
    assert warning.alarms(values) == [150, 170]
    values[120] = 2.5  # far beyond the noise, not three times the level
    assert warning.alarms(values) == [150, 170]
    assert warning.lead([2.0, 1.0, math.nan]) == "1.5 (1 to 2); earlier in 2 of 3"
    assert SETS["A"] != SETS["B"]
