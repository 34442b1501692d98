"""The page of costs is what the results say, and the harness runs, leaves nobody out and measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_calib
from benchmarks import peers, results
from benchmarks.__main__ import PARTS
from benchmarks.interleave import FIRST, fired
from benchmarks.models import Given, small
from benchmarks.page import PAGE, SECTIONS, render
from benchmarks.variants import LARGE, LOW, Variant, few, logged, plain, trainers_clip, unlogged
from lightning_calib import GradientClip, callbacks

ROOT = Path(__file__).parent.parent
BOTH = [one for one in [*unlogged(), *peers.unlogged()] if one.side]


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == render(results.load()), "run `python -m benchmarks --page`"


def test_every_part_is_in_the_results_and_on_the_page() -> None:
    assert list(PARTS) == list(SECTIONS)
    assert set(results.load()) == set(PARTS)
    for part in results.load().values():
        assert set(part["made"]) == {"date", "command", "quick", "seconds", "machine", "threads", "versions", "peers"}
        assert set(part["made"]["peers"]) == set(peers.INSTALLED_FROM)


def test_a_package_that_is_not_installed_is_named() -> None:
    found = results.load()
    for part in found.values():
        part["made"]["peers"] = {"zclip": None, "timm": "1.0"}
    assert "Not installed, and so not measured: zclip." in render(found)
    assert "Packages beside: timm 1.0." in render(found)


def test_a_smoke_run_says_so_and_a_measured_one_does_not() -> None:
    found = results.load()
    for quick in (True, False):
        for part in found.values():
            part["made"]["quick"] = quick
        assert ("these figures mean nothing" in render(found)) == quick


def test_every_callback_is_measured_but_the_one_with_nothing_to_do_in_a_step() -> None:
    named = " ".join(one.name for one in unlogged())
    public = [one for one in lightning_calib.__all__ if one in vars(callbacks)]
    assert [one for one in public if one not in named] == ["PreciseBatchNorm"]
    titles = [one.title for one in [plain(), trainers_clip(), *unlogged(), *peers.unlogged()]]
    assert len(set(titles)) == len(titles)
    assert set(LARGE) <= {one.name for one in unlogged()}
    assert len(few()) == 5
    assert len(logged()) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", BOTH, ids=lambda one: one.title)
def test_quiet_acts_on_no_step_and_firing_on_every_one(variant: Variant) -> None:
    assert fired(Given(small(4)), variant, FIRST + 6) == (1.0 if variant.side == "firing" else 0.0)


@pytest.mark.filterwarnings("ignore")
def test_a_variant_that_is_not_what_it_says_is_found() -> None:
    wrong = Variant("wrong", "quiet", lambda: [GradientClip(LOW)])
    assert fired(Given(small(4)), wrong, FIRST + 2) == 1.0


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_smoke_run_measures_and_writes(tmp_path: Path) -> None:
    file = tmp_path / "smoke.json"
    file.write_text('{"tab": 1}')
    done = _run(tmp_path, "fits", "history", "--quick", "--tensors", "4", "--output", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert list(found) == ["tab", "fits", "history"]  # the others stay
    (table,) = found["fits"]["data"]
    assert [(row["name"], row["side"]) for row in table["rows"]] == [
        (one.name, one.side) for one in [trainers_clip(), *unlogged(), *peers.unlogged()]
    ]
    assert found["fits"]["made"]["quick"]
    assert done.stdout.startswith("# What it costs")


def test_an_unknown_part_and_a_narrowed_save_are_refused(tmp_path: Path) -> None:
    assert "parts must be of fits, logged" in _run(tmp_path, "fitz").stderr
    assert "--save takes whole parts" in _run(tmp_path, "fits", "--tensors", "10", "--save").stderr
