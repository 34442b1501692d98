"""The sentence on the norms: of all steps where they are known, of the rows where only files are."""

from helpers.made_runs import clipped, healthy

from lightning_calib.report import Report
from lightning_calib.report.run import Clipper, Norms

ALL = Norms(lowest=0.25, median=1.5, high=2.5, highest=40.0)


def last_sentence(run):
    return Report([run]).summary().split(". ")[-1]


def test_norms_of_all_steps_are_told_in_place_of_those_of_the_rows():
    found = last_sentence(healthy()._replace(norms=ALL))
    assert "optimizer steps the gradient norm ran from 0.25 to 40 (half of them up to 1.5, 95 % up to 2.5)" in found


def test_norms_of_rows_are_told_as_such():
    run = healthy()
    run.scalars.grad_norm_max[3] = 77.0
    found = last_sentence(run)
    assert f"optimizer steps ({len(run.scalars.step)} logged rows) the gradient norm ran from " in found
    assert " to 77 (half" in found


def test_one_norm_has_no_range():
    found = last_sentence(healthy()._replace(norms=Norms(2.0, 2.0, 2.0, 2.0)))
    assert "optimizer steps the gradient norm was 2, and nothing clipped it." in found


def test_who_clipped_is_told_where_no_finding_tells_it():
    run = healthy()._replace(norms=ALL, clippers=(Clipper("ZClip", "adaptive", 0.203),))
    assert "; ZClip reduced 20.3 % of the steps." in last_sentence(run)
    never = clipped(healthy(), 1e9)._replace(norms=ALL)
    never = never._replace(clippers=(never.clippers[0]._replace(clip_rate=0.0),))
    assert Report([never]).findings[0].code == "clip-never"
    assert "reduced" not in last_sentence(never)


def test_nothing_usable():
    run = healthy()
    run.scalars.grad_norm_before[:] = float("inf")
    assert "no gradient was finite and above zero" in Report([run]).summary()
