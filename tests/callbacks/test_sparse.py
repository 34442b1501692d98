"""Sparse embeddings, uncoalesced gradients included, train under clipping at every scope."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, fit, norm, same_bits, weights
from torch import nn

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    ZClip,
)

SCOPES = ["global", "group", "layer", "parameter", "unit"]
SGD = partial(torch.optim.SGD, lr=0.5)


def _embedding(sparse):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Embedding(20, 4, sparse=sparse)


class Lookup(Tiny):
    """Rows drawn with repeats: an uncoalesced gradient."""

    def __init__(self, optimizer, sparse=True, gains=None):
        super().__init__(optimizer, gains, partial(_embedding, sparse))

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        rows = torch.randint(0, 20, (30,), generator=torch.Generator().manual_seed(step))
        return (self.net(rows) - 1).square().sum() * self.gains.get(step, 0.1)


class Beside(Lookup):
    """SparseAdam for the embedding, AdamW for the rest."""

    def __init__(self):
        super().__init__(partial(torch.optim.SparseAdam, lr=0.05))
        self.head, self.automatic_optimization = nn.Linear(4, 1), False

    def training_step(self, batch, batch_idx):
        rows = torch.tensor([1, 5, 5, 7])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward((self.head(self.net(rows)) - 3).square().sum() * 10)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return self.optimizer(self.net.parameters()), torch.optim.AdamW(self.head.parameters(), lr=0.05)


@pytest.mark.parametrize("scope", SCOPES)
def test_sparse_adam_trains(scope):
    module, rows = Lookup(partial(torch.optim.SparseAdam, lr=0.05), gains={3: 5.0}), Rows()
    start = weights(module)
    fit(module, [GradientClip(1.0, scope=scope), GradientMonitor(1)], logger=rows)
    assert norm([b - a for a, b in zip(start, weights(module), strict=True)]) > 0.1
    assert max(rows.values("calib/clip_fraction")) == 1.0
    limit = 1.0 if scope != "unit" else 20**0.5
    assert max(rows.values("calib/grad_norm_after")) <= limit * (1 + 1e-6)
    assert max(rows.values("calib/grad_norm_before")) > limit


@pytest.mark.parametrize("scope", SCOPES)
def test_sparse_adam_beside_adamw(scope):
    module, rows = Beside(), Rows()
    start = weights(module)
    fit(module, [GradientClip(1.0, scope=scope), GradientMonitor(1)], 24, logger=rows)
    assert all(norm([b - a]) > 0 for a, b in zip(start, weights(module), strict=True))
    for index in (0, 1):
        assert max(rows.values(f"calib/clip_fraction/{index}")) == 1.0


CALLBACKS = {
    **{f"clip {scope}": partial(GradientClip, 0.6, scope=scope) for scope in SCOPES},
    **{f"normalize {scope}": partial(GradientNormalize, 0.3, scope=scope) for scope in SCOPES},
    "inf norm": partial(GradientClip, 0.1, norm_type=float("inf")),
    "1 norm by row": partial(GradientClip, 0.1, norm_type=1.0, scope="unit"),
    "autoclip": AutoClip,
    "zclip": partial(ZClip, 1.0, warmup_steps=3),
    "agc": partial(AGC, 0.05),
    "adagc": partial(AdaGC, warmup_steps=3),
    "value": partial(GradientValueClip, 0.05),
}


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_sparse_equals_dense(make):
    found = {}
    for sparse in (True, False):
        module, rows = Lookup(SGD, sparse, {3: 2.0}), Rows()
        fit(module, [make(), GradientMonitor(2)], logger=rows)
        found[sparse] = weights(module), rows.rows
    # Summing repeated rows in another order: float32 rounding, compounded over 12 steps
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.SparseAdam, lr=0.05)], ids=["sgd", "sparse adam"])
def test_monitor_keeps_the_bits(optimizer):
    alone, watched = Lookup(optimizer), Lookup(optimizer)
    fit(alone, max_steps=50)
    fit(watched, [GradientMonitor(3)], max_steps=50, logger=Rows())
    same_bits(weights(watched), weights(alone))


def test_norm_of_repeated_rows_is_of_their_sum():
    rows, dense = Rows(), Rows()
    for sparse, log in ((True, rows), (False, dense)):
        fit(Lookup(SGD, sparse), [GradientMonitor(1)], 1, logger=log)
    torch.testing.assert_close(rows.rows, dense.rows, rtol=1e-6, atol=0)
