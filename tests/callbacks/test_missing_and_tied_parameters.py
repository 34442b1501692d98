"""Unused, frozen and tied parameters: what has no gradient stays as it is, and what is shared counts once."""

from __future__ import annotations

from functools import partial

import pytest
from helpers.tiny_modules import (
    Grads,
    Rows,
    Tiny,
    fit,
    norm,
    same_bits,
)
from torch import nn

from lightning_calib import (
    AGC,
    AdaGC,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    Percentile,
    ZClip,
)

SCOPES = ["global", "group", "layer", "parameter", "unit"]
CALLBACKS = {
    **{f"clip {scope}": partial(GradientClip, 0.2, scope=scope) for scope in SCOPES},
    **{f"percentile {s}": partial(GradientClip, Percentile(50, 4, 1), scope=s) for s in SCOPES},
    "normalize": partial(GradientNormalize, 0.2, scope="layer"),
    "value": partial(GradientValueClip, 0.05),
    "centralize": GradientCentralize,
    "zclip": partial(ZClip, 1.0, warmup_steps=2),
    "agc": partial(AGC, 0.05),
    "adagc": partial(AdaGC, warmup_steps=2),
}


class Partly(Tiny):
    """One layer that never gets a gradient, one that gets it on even steps only, one frozen."""

    def __init__(self):
        super().__init__(gains={5: 20.0})
        self.unused, self.sometimes, self.frozen = nn.Linear(4, 3), nn.Linear(4, 1), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        loss = self.loss(self.net, step)
        return loss + (self.loss(self.sometimes, step) if step % 2 == 0 else 0)


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_missing_gradients(make):
    module, rows, before, after = Partly(), Rows(), Grads(), Grads()
    still = [p.detach().clone() for p in (*module.unused.parameters(), *module.frozen.parameters())]
    fit(module, [before, make(), after, GradientMonitor(1)], logger=rows)
    same_bits([p.detach() for p in (*module.unused.parameters(), *module.frozen.parameters())], still)
    assert rows.values("calib/grad_norm_before") == pytest.approx(before.norms, rel=1e-6)
    assert rows.values("calib/grad_norm_after") == pytest.approx(after.norms, rel=1e-5)
    assert {sum(g is None for g in grads) for grads in before.seen} == {4, 6}
    assert [[g is None for g in grads] for grads in after.seen] == [[g is None for g in grads] for grads in before.seen]


class Tied(Tiny):
    def __init__(self):
        super().__init__(net=lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1)))
        self.net[2].weight = self.net[0].weight


@pytest.mark.parametrize("scope", SCOPES)
def test_tied_weights_are_counted_and_scaled_once(scope):
    rows, before, after = Rows(), Grads(), Grads()
    fit(Tied(), [before, GradientClip(0.05, scope=scope), after, GradientMonitor(1)], logger=rows)
    assert rows.values("calib/grad_norm_before") == pytest.approx(before.norms, rel=1e-6)
    assert rows.values("calib/grad_norm_after") == pytest.approx(after.norms, rel=1e-6)
    if scope == "global":
        assert after.norms == pytest.approx([0.05] * 12, rel=1e-6)
    if scope == "parameter":
        assert all(norm([b]) == pytest.approx(min(0.05, norm([a])), rel=1e-6) for a, b in _pairs(before, after))


def _pairs(before, after):
    return [pair for old, new in zip(before.seen, after.seen, strict=True) for pair in zip(old, new, strict=True)]
