"""SpikeGuard on whole runs with a planted blow-up; healthy ones: tests/report/test_healthy_with_spike_guard.py."""

from __future__ import annotations

import pytest
from helpers.guarded import Guarded
from report.planted.healthy import CASES

from benchmarks import spikes

FIRES = "likelihood-mlp-adamw"  # its norm grows tenfold within some steps while the loss falls: some steps are skipped


@pytest.mark.slow
def test_where_the_norm_grows_while_the_loss_falls_nothing_is_rewound():
    (case,) = (case for case in CASES if case.name == FIRES)
    recorder = Guarded(case.rows)
    case.run(recorder_of=lambda _: recorder)
    saved = recorder.guard.state_dict()
    assert saved["tally"]["0"]["rewound"] == 0
    assert sum(recorder.spikes()) > 0


def test_a_blow_up_is_worse_without_the_guard():
    case = spikes.CASES.index((spikes.BURST, "MLP", "SGD"))
    clean, nothing, guarded = (spikes.fit((case, way, 0)) for way in ("never saw it", "nothing", "SpikeGuard"))
    assert guarded[3] == pytest.approx(clean[3], rel=1e-6)
    assert guarded[4] == [4, 4, 0]
    assert not nothing[3] < 1.05 * clean[3]


def test_most_blow_ups_of_the_benchmark_end_as_a_run_that_never_saw_them():
    good, of, rows, *_ = spikes.table().splitlines()[-1].split()
    assert (of, rows) == ("of", f"{len(spikes.CASES)}")
    assert int(good) >= 16


def test_the_page_has_the_table_of_the_results():
    assert spikes.table() in spikes.PAGE.read_text()
