"""`GradientNormalize` takes rules, a norm and a dry run as `GradientClip` does; the arithmetic is done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, fit, same_bits, weights
from torch import Tensor

from lightning_calib import GradientMonitor, GradientNormalize, MaxNorm, ZScore


class Sees(Tiny):
    """Keeps the gradients that the optimizer gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append({name: p.grad.clone() for name, p in self.named_parameters()})


def run(*callbacks: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
    module = Sees()
    fit(module, list(callbacks), 3, **kwargs)
    return module.seen


def norm(tensors: list[Tensor], p: float = 2.0) -> float:
    return float(torch.linalg.vector_norm(torch.cat([one.double().flatten() for one in tensors]), p))


def test_each_rule_gets_its_norm_and_none_is_left_alone():
    plain = run()[0]
    found = run(GradientNormalize(2.0, rules={"net.0.*": 0.5, "*.bias": None, "net.2.*": MaxNorm(3.0)}))[0]
    assert norm([found["net.0.weight"], found["net.0.bias"]]) == pytest.approx(0.5, rel=1e-5)
    assert norm([found["net.2.weight"]]) == pytest.approx(3.0, rel=1e-5)
    assert norm([found["net.4.weight"]]) == pytest.approx(2.0, rel=1e-5)
    for name in ("net.2.bias", "net.4.bias"):
        torch.testing.assert_close(found[name], plain[name], rtol=0, atol=0)


@pytest.mark.parametrize("p", [1.0, 3.0, float("inf")])
def test_the_norm_is_the_one_that_was_asked_for(p):
    for found in run(GradientNormalize(2.0, norm_type=p)):
        assert norm(list(found.values()), p) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("p", [1.0, float("inf")])
def test_a_norm_too_small_to_be_scaled_leaves_the_gradient_alone(p):
    """1 / 1e-42 is inf in float32, and inf times a zero of the same gradient is nan."""

    class Tiniest(Sees):
        def on_after_backward(self):
            for one in self.parameters():
                one.grad.zero_()
                one.grad.view(-1)[0] = 1e-42

    module = Tiniest()
    fit(module, [GradientNormalize(1.0, scope="parameter", norm_type=p)], 1)
    for gradient in module.seen[0].values():
        wanted = torch.zeros_like(gradient)
        wanted.view(-1)[0] = 1e-42
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=0)


def test_a_dry_run_changes_no_bit_and_logs_what_would_be():
    rows, dry, bare = Rows(), Tiny(), Tiny()
    fit(dry, [GradientNormalize(1e-3, dry_run=True), monitor := GradientMonitor(1)], 3, logger=rows)
    fit(bare, [], 3)
    same_bits(weights(dry), weights(bare))
    assert rows.values("calib/would_clip_fraction") == [1.0] * 3
    assert rows.values("calib/would_clip_threshold") == pytest.approx([1e-3] * 3)
    assert "calib/clip_threshold" not in rows.tags
    assert "GradientNormalize, a dry run, would have reduced 100 % of the steps" in monitor.summary()


def test_a_warm_up_of_a_rule_is_told_in_the_words_of_a_rescale(caplog):
    with caplog.at_level("INFO", "lightning_calib"):
        fit(Tiny(), [GradientNormalize(1.0, rules={"net.0.*": ZScore()})], 1)
    assert "GradientNormalize rescales nothing in the first 25 steps of 'net.0.*'" in caplog.text


def test_a_rule_whose_glob_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="`rules` must name parameters of the model, got 'nett"):
        fit(Tiny(), [GradientNormalize(rules={"nett.*": 1.0})], 1)
