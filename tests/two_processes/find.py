"""A case for `launch.py`: `clip_find` under DDP."""

from __future__ import annotations

from typing import Any

from helpers.tiny_modules import make_trainer, same_bits, weights
from two_processes.launch import WORLD, case, everywhere
from two_processes.run import Shared, strategy

from lightning_calib import ClipSuggestion, clip_find


def _fit(*, find: bool) -> tuple[list[Any], ClipSuggestion | None]:
    module, found = Shared(), None
    module.way = "ddp"
    options = {"strategy": strategy("ddp", {}), "devices": WORLD, "use_distributed_sampler": False}
    trainer = make_trainer(max_steps=30, **options)
    if find:
        found = clip_find(trainer, module, num_steps=25)
        assert trainer.global_step == 0
    trainer.fit(module)
    return weights(module), found


@case
def clip_find_answers_alike_on_all_processes_and_leaves_no_trace() -> None:
    found, suggestion = _fit(find=True)
    same_bits(found, _fit(find=False)[0])
    assert suggestion is not None
    assert suggestion.report.runs[0].counts.steps == 25
    told = everywhere((str(suggestion), repr(suggestion), repr(suggestion.table)))
    assert told[0] == told[1]
