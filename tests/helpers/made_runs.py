"""Runs made of numbers, for the report: a healthy one, to be changed in place where a test wants a fault."""

from __future__ import annotations

import numpy as np

from lightning_calib.report.run import Clipper, Counts, Facts, Group, Kind, Layers, Run, Scalars

NAMES = ("embed.weight", "net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "head.weight", "head.bias")
DIMS = (2, 2, 1, 2, 1, 2, 1)
SIZES = (3200, 1024, 32, 1024, 32, 320, 10)
EPS = {"adam": 1e-8, "muon": 1e-7}
LR = {"adam": 1e-3, "muon": 2e-2, "sign": 1e-4, "sgd": 0.1}


def healthy(kind: Kind = "adam", rows: int = 60, every: int = 5, names: tuple[str, ...] = NAMES) -> Run:
    """The loss falls from 2.3 to 0.3, the norm is near 1, a step moves every tensor by a thousandth of its norm."""
    random = np.random.default_rng(0)
    steps, tensors = rows * every, len(names)
    nothing = np.full(rows, np.nan)
    time = np.arange(rows)
    loss = 2.0 * np.exp(-time / (rows / 4)) + 0.3 + 0.02 * random.standard_normal(rows)
    root = np.sqrt(np.array(SIZES[:tensors], float))
    before = root / np.sqrt(sum(SIZES[:tensors])) * random.lognormal(0, 0.2, (rows, 1)) * np.ones(tensors)
    before = before * random.lognormal(0, 0.05, (rows, tensors))
    weight = np.tile(root * 0.1, (rows, 1))
    norm = np.sqrt(np.square(before).sum(axis=1))
    eps = EPS.get(kind)
    return Run(
        facts=Facts(
            optimizer={"adam": "AdamW", "muon": "Muon", "sign": "Lion", "sgd": "SGD"}[kind],
            groups=(Group(kind, LR[kind], eps),),
            precision="32-true",
            steps_planned=steps,
            batch_size=32,
        ),
        counts=Counts(steps=steps, usable=steps, left=1.0, known=steps, epochs=3, stopped="finished"),
        scalars=Scalars(
            step=(time + 1) * every - 1,
            grad_norm_before=norm,
            grad_norm_max=norm * 1.3,
            grad_norm_after=norm.copy(),
            clip_fraction=np.zeros(rows),
            clip_threshold=nothing.copy(),
            lr=np.full(rows, LR[kind]),
            lr_effective=np.full(rows, LR[kind]),
            nonfinite_total=np.zeros(rows),
            skipped_total=np.zeros(rows),
            loss_scale=nothing.copy(),
            update_norm=np.full(rows, 1e-3) * np.sqrt(np.square(weight).sum(axis=1)),
            update_ratio=np.full(rows, 1e-3),
            loss=loss,
            loss_max=loss + 0.05,
            loss_first=np.full(rows, 2.4),
            val_loss=nothing.copy(),
            factor=np.ones(rows),
            norm_shift=nothing.copy(),
        ),
        layers=Layers(
            names=names,
            owners=tuple(name.rpartition(".")[0] for name in names),
            dims=DIMS[:tensors],
            sizes=SIZES[:tensors],
            group_of=(0,) * tensors,
            given=np.ones(tensors, bool),
            trainable=np.ones(tensors, bool),
            step=(time + 1) * every - 1,
            before=before,
            after=before.copy(),
            peak=before * 1.3,
            weight=weight,
            update=1e-3 * weight * random.lognormal(0, 0.1, (rows, tensors)),
        ),
    )


def clipped(run: Run, max_norm: float, name: str = "GradientClip") -> Run:
    """The same behind a clip of the whole gradient."""
    scalars, layers = run.scalars, run.layers
    assert layers is not None
    factor = np.minimum(1.0, max_norm / scalars.grad_norm_before)
    scalars.grad_norm_after[:] = scalars.grad_norm_before * factor
    scalars.factor[:] = factor
    scalars.clip_fraction[:] = factor < 1
    layers.after[:] = layers.before * factor[:, None]
    rate = float((factor < 1).mean())
    found = Clipper(name, "fixed", rate, max_norm)
    return run._replace(clippers=(*run.clippers, found), counts=run.counts._replace(left=float(factor.mean())))


def grads(run: Run, tensor: str, times: float | np.ndarray) -> None:
    """Multiply one tensor's gradient, and what follows of it."""
    layers = run.layers
    assert layers is not None
    i = layers.names.index(tensor)
    for table in (layers.before, layers.after, layers.peak):
        table[:, i] *= times
    norm = np.sqrt(np.nansum(np.square(layers.before), axis=1))
    run.scalars.grad_norm_before[:] = norm
    run.scalars.grad_norm_after[:] = norm
    run.scalars.grad_norm_max[:] = norm * 1.3


def column(run: Run, table: str, tensor: str) -> np.ndarray:
    """One tensor's column of a table of layers, to be written to."""
    assert run.layers is not None
    return getattr(run.layers, table)[:, run.layers.names.index(tensor)]
