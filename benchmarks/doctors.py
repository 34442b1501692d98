"""Two packages that diagnose training runs, and our report, on the same planted runs.

    make bench-doctors            in an environment of its own; about 5 minutes

Every package gets what its README asks for, and all that it can read. torchmortem: the network and the optimizer, and
after each step the loss. training-doctor: after each step loss, learning rate and gradient norm, and the validation
loss if there is one. Both may name a fault by any word that would put a reader on its track (`SAYS`). An alarm is a
finding of theirs at "warning" or "critical", of ours above "note". A first sentence is the first finding's, the most
severe first; of torchmortem also the first one of its summary.

The runs are those of tests/report/planted with one optimizer that `make test` has. They are ours, our thresholds were
chosen with them in sight, and no package but ours has a word for clipping; the table has to be read so.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import logging
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from helpers.monitored import Monitored
from report.planted.fit import Case
from report.planted.table import FAULTS, HEALTHY, score

HIGH = r"too high|instab|diverg|explo|unstable|\bNaN\b|\bInf\b|spik|large update|update ratio.*(high|large)"
LOW = r"too low|plateau|stagnat|(small|low|tiny).*update|update ratio.*(low|small)|not learning|stall|frozen"
SAYS = {
    "rate-too-high": HIGH,
    "diverged": HIGH,
    "nonfinite": HIGH,
    "spike": HIGH,
    "level-shift": HIGH + r"|shift|jump",
    "loss-summed": HIGH + r"|sum",
    "exploding": r"explo|instab|vanish.*explo",
    "vanishing": r"vanish|starv|saturat",
    "rate-too-low": LOW,
    "rate-cut": LOW,
    "clip-below-eps": LOW + r"|clip|eps",
    "clip-cuts-rate": LOW + r"|clip",
    "clip-twice": r"clip",
    "dominated": r"clip|imbalanc|dominat",
    "dead-layer": r"dead|inactive|vanish|zero grad",
    "unused-parameter": r"unused|no grad|zero grad|stagnat|frozen",
    "skipped-steps": r"skip|overflow|loss scale|mixed precision",
    "batch-norm": r"batch ?norm|running|overfit|eval",
    "layer-rate": r"imbalanc|update ratio",
    "no-steps-seen": r"no step|no data|no grad",
}
LEFT_OUT = ("gan", "none")  # two optimizers, of which torchmortem takes one; a run without a step


class Told(NamedTuple):
    """What one package said of a run: each loud finding's text, the first of them, and whether one was loud."""

    everything: list[str]
    first: str
    alarm: bool


class Others(Callback):
    """Feeds both packages."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from torchmortem import Autopsy
        from training_doctor import Doctor

        self.doctor, self.autopsy = Doctor(), Autopsy(pl_module.net, optimizer=trainer.optimizers[0])
        self.autopsy.attach()
        self.norm = float("nan")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.norm = float(torch.stack(norms).norm()) if norms else float("nan")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.autopsy.step(loss=loss)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        held_out = trainer.callback_metrics.get("val_loss")
        more = {} if held_out is None else {"eval_loss": float(held_out)}
        self.doctor.log(step=trainer.global_step, loss=loss, lr=rate, grad_norm=self.norm, **more)

    def told(self) -> dict[str, Told]:
        self.autopsy.detach()
        report = self.autopsy.get_report()
        loud = [one for one in report.findings if one.severity.name in ("WARNING", "CRITICAL")]
        loud = sorted(loud, key=lambda one: -int(one.severity))
        texts = [f"{one.title}. {one.summary}" for one in (*loud, *report.insights)]
        summary = re.split(r"(?<=[.!?])\s", report.executive_summary)[0]
        first = f"{summary} {loud[0].title}. {loud[0].summary}" if loud else summary
        doctor = [one for one in self.doctor.diagnoses if one.severity.name in ("WARNING", "CRITICAL")]
        doctor = sorted(doctor, key=lambda one: one.severity.name)  # critical before warning
        said = list(dict.fromkeys(f"{one.problem}. {one.explanation}" for one in doctor))
        return {
            "torchmortem": Told(texts, first, bool(loud)),
            "training-doctor": Told(said, said[0] if said else "", bool(said)),
        }


class Feeding(Monitored):
    """The monitor, and the other two behind the case's own callbacks."""

    def around(self, callbacks: Sequence[Callback]) -> list[Callback]:
        self.others = Others()
        return [self.others, *super().around(callbacks)]  # norms as they come, before anybody reduces them


def names(told: str, codes: Sequence[str]) -> bool:
    return any(re.search(SAYS[code], told, re.IGNORECASE) for code in codes)


def bout(case: Case) -> dict[str, Told]:
    """One fit, and what each package says of it."""
    made: list[Feeding] = []

    def recorder(rows: int) -> Feeding:
        made.append(Feeding(rows))
        return made[0]

    with contextlib.redirect_stdout(io.StringIO()):
        runs = case.run(recorder_of=recorder)
    findings = made[0].report().findings
    ours = score(case, runs)
    loud = [one for one in findings if one.severity != "note"]
    right = ours.right and bool(case.codes)
    there = [" ".join(one.code for one in loud)]
    return {**made[0].others.told(), "lightning-calib": Told(there, case.codes[0] if right else "", bool(loud))}


def chosen(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.part and not set(case.name.split("-")) & set(LEFT_OUT)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names of the runs")
    only = parser.parse_args(argv).only
    logging.getLogger("torchmortem").setLevel(logging.CRITICAL)
    packages = ("torchmortem", "training-doctor", "lightning-calib")
    counts = {name: [0, 0, 0] for name in packages}
    faults = [one for one in chosen(FAULTS) if only in one.name]
    healthy = [one for one in chosen(HEALTHY) if only in one.name and "example" not in one.name]
    for case in (*faults, *healthy):
        told = bout(case)
        for name in packages:
            one, count = told[name], counts[name]
            if case.codes:
                ours = name == "lightning-calib"
                said = " ".join(one.everything)
                count[0] += any(code in said for code in case.codes) if ours else names(said, case.codes)
                count[1] += bool(one.first) if ours else names(one.first, case.codes)
            else:
                count[2] += one.alarm
        print(case.name, {name: told[name].first[:90] for name in packages}, file=sys.stderr, flush=True)
    print(f"\n{datetime.date.today():%Y-%m-%d}, torch {torch.__version__}\n")
    print("| package | faults named anywhere | in the first sentence | healthy runs with an alarm |\n|---|---|---|---|")
    for name in packages:
        anywhere, first, alarms = counts[name]
        print(
            f"| {name} {version(name)} | {anywhere} of {len(faults)} | {first} of {len(faults)} "
            f"| {alarms} of {len(healthy)} |"
        )


if __name__ == "__main__":
    main()
