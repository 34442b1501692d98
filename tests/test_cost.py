"""What a step that is not logged costs, counted and pinned: no clock, no noise. `make cost` writes the table anew."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.cost_table import FILE, PLACES, Table, measured, pinned, release, variants, write
from helpers.dispatch_counts import Counts, step_counts
from lightning.pytorch import Callback

import lightning_calib
from benchmarks.models import Given, small
from benchmarks.variants import Variant, plain, unlogged
from lightning_calib import callbacks

TOLD = "if that is meant, run `make cost` and say so in the change"
STALE, FEW = 0.9, 4  # a count below this share of the pinned one, by more than so many


@pytest.fixture(autouse=True)
def _silent(caplog):
    caplog.set_level(logging.ERROR, logger="lightning_calib")


def risen(found: dict[str, Counts], limits: dict[str, Counts]) -> list[str]:
    return [
        f"{title}: {name} {was} -> {now}"
        for title, counts in found.items()
        for name, now, was in zip(Counts._fields, counts, limits[title], strict=True)
        if now > was
    ]


def fallen(found: dict[str, Counts], limits: dict[str, Counts]) -> list[str]:
    return [
        f"{title}: {name} {was} -> {now}"
        for title, counts in found.items()
        for name, now, was in zip(Counts._fields, counts, limits[title], strict=True)
        if now < was - FEW and now < STALE * was
    ]


@pytest.mark.filterwarnings("ignore")  # about meta tensors and a process group without others
@pytest.mark.parametrize("place", PLACES)
def test_no_callback_asks_for_more_than_is_pinned(place: str) -> None:
    version, table = pinned()
    if version != release():
        pytest.skip(f"counted with torch {version}; torch {release()} may dispatch otherwise")
    found, limits = measured(place), table[place]
    assert list(found) == list(limits), TOLD
    assert risen(found, limits) == [], f"{place} tensors: {TOLD}"
    assert fallen(found, limits) == [], f"{place} tensors: it is cheaper than pinned; run `make cost`"


def test_the_table_has_every_callback_that_acts_in_a_step() -> None:
    public = {one for one in lightning_calib.__all__ if one in vars(callbacks)} - {"PreciseBatchNorm"}
    counted = " ".join(one.name for place in PLACES for one in variants(place))
    assert [one for one in public if one not in counted] == []
    assert {title for rows in pinned()[1].values() for title in rows} >= {one.title for one in unlogged()}


class Wasteful(Callback):
    """One operation per tensor, a value on the host, and a megabyte."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for tensor in pl_module.flat:
            tensor.grad.neg_()
        bool(torch.ones(2**18)[0])
        factors = [torch.ones(()) for _ in pl_module.flat]
        torch._foreach_mul_([tensor.grad for tensor in pl_module.flat], factors)


def test_what_is_counted() -> None:
    wasteful = Variant("wasteful", "", lambda: [Wasteful()])
    found = step_counts(Given(small(10)), wasteful).minus(step_counts(Given(small(10)), plain()))
    # neg_ of each; ones, select, and its value; ones for each; one foreach call
    assert found == Counts(operations=10 + 3 + 10 + 1, apart=10, syncs=1, bytes=2**20 + 40)


def test_a_count_that_rises_and_one_that_falls_are_found() -> None:
    limits = {"a": Counts(100, 0, 1, 1000), "b": Counts(100, 0, 1, 1000)}
    assert risen({"a": Counts(101, 0, 1, 1000)}, limits) == ["a: operations 100 -> 101"]
    assert risen({"b": Counts(90, 0, 2, 999)}, limits) == ["b: syncs 1 -> 2"]
    assert risen(limits, limits) == fallen(limits, limits) == []
    assert fallen({"a": Counts(95, 0, 0, 990)}, limits) == []
    assert fallen({"a": Counts(80, 0, 1, 1000)}, limits) == ["a: operations 100 -> 80"]


def test_the_file_holds_what_was_written(monkeypatch, tmp_path) -> None:
    table: Table = pinned()[1]
    text = FILE.read_text()
    monkeypatch.setattr("helpers.cost_table.FILE", tmp_path / "cost.json")
    write(table)
    assert (tmp_path / "cost.json").read_text().split("\n")[2:] == text.split("\n")[2:]
