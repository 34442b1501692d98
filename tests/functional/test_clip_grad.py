"""The door without Lightning: against torch, in a five-line loop, and what it must not touch."""

from __future__ import annotations

import gc
import math
import weakref

import oracles
import pytest
import torch
from helpers import gradient_families
from torch import nn

from lightning_calib import EMARelative, MaxNorm, Percentile, WeightRelative, ZScore
from lightning_calib.functional import clip_grad_

SCOPES = ["global", "group", "layer", "parameter", "unit"]
# torch divides by n + 1e-6 and we by n: at norms of 1 and more their results differ by a factor of up to 1e-6.
TORCH = {"rtol": 1e-6, "atol": 0.0}


def source(net: nn.Module, optimizer: torch.optim.Optimizer, scope: str) -> nn.Module | torch.optim.Optimizer:
    return optimizer if scope == "group" else net


def filled(dtype: torch.dtype = torch.float32, *, seed: int = 0, step: int = 3) -> gradient_families.Net:
    net = gradient_families.Net(dtype=dtype)
    parameters = list(net.parameters())
    gradient_families.assign(
        parameters, gradient_families.spikes(parameters, step, torch.Generator().manual_seed(seed))
    )
    return net


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 5.0, 1e6])
def test_equals_clip_grad_norm_of_torch(max_norm: float, norm_type: float) -> None:
    ours, theirs = filled(torch.float64), filled(torch.float64)
    report, _ = clip_grad_(ours, MaxNorm(max_norm), norm_type=norm_type)
    total = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm, norm_type=norm_type)
    torch.testing.assert_close(report.norms[0], total, rtol=1e-13, atol=0.0)  # another order of summation
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **TORCH)
    assert report.clipped.tolist() == [max_norm < 1e6]


def test_equals_clip_grad_norm_of_torch_on_each_group() -> None:
    ours, theirs = filled(torch.float64), filled(torch.float64)
    report, _ = clip_grad_(gradient_families.two_groups(ours), MaxNorm(600.0), scope="group")
    for group in gradient_families.two_groups(theirs).param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 600.0)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **TORCH)
    assert report.clipped.any()
    assert not report.clipped.all()


@pytest.mark.parametrize("kind", ["module", "optimizer", "list", "generator", "one tensor"])
def test_takes_a_module_an_optimizer_or_tensors(kind: str) -> None:
    net = filled()
    norm = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    given = {
        "module": net,
        "optimizer": gradient_families.two_groups(net),
        "list": list(net.parameters()),
        "generator": net.parameters(),
        "one tensor": net.hidden.weight,
    }[kind]
    expected = net.hidden.weight.grad.norm() if kind == "one tensor" else norm
    report, _ = clip_grad_(given, MaxNorm(2.0))
    torch.testing.assert_close(report.norms, expected.view(1))  # float32: default tolerance
    after = (
        net.hidden.weight.grad.norm()
        if kind == "one tensor"
        else torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    )
    torch.testing.assert_close(after, torch.tensor(2.0))
    assert report.clipped.all()


@pytest.mark.parametrize("kind", ["module", "optimizer", "list"])
def test_five_line_loop_trains(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(64, 3)
    wanted = inputs.sum(dim=1, keepdim=True).sin()
    given = {"module": model, "optimizer": optimizer, "list": list(model.parameters())}[kind]
    policy, state, losses, clipped = Percentile(50, window=20, warmup_steps=5), None, [], []
    for _ in range(60):
        loss = nn.functional.mse_loss(model(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        report, state = clip_grad_(given, policy, state)
        optimizer.step()
        losses.append(loss.item())
        clipped.append(report.clipped)
    visited = torch.stack(clipped)
    assert losses[-1] < 0.5 * losses[0]
    assert visited.any()
    assert not visited.all()
    assert not visited[:5].any()


@pytest.mark.parametrize(
    ("scope", "kind"),
    [("layer", "optimizer"), ("layer", "list"), ("group", "module"), ("group", "list"), ("rows", "module")],
)
def test_a_scope_that_the_source_cannot_tell_is_refused(scope: str, kind: str) -> None:
    net = filled()
    given = {"module": net, "optimizer": gradient_families.two_groups(net), "list": list(net.parameters())}[kind]
    before = [p.grad.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r"`scope` must be ") as refusal:
        clip_grad_(given, MaxNorm(1.0), scope=scope)
    remedy = {"layer": "a module", "group": "an optimizer", "rows": '"global"'}[scope]
    assert f"got {scope!r}." in str(refusal.value)
    assert remedy in str(refusal.value).split("got")[1]
    for p, old in zip(net.parameters(), before, strict=True):
        gradient_families.same_bits(p.grad, old)


def nothing(scope: str, case: str) -> tuple[gradient_families.Net, object]:
    """A net and a policy that leaves all of it alone, for four reasons."""
    net = filled()
    if case == "nan":
        for p in net.parameters():
            p.grad.view(-1)[:: max(1, p.shape[-1] if p.ndim else 1)] = math.nan
        if scope == "unit":
            for p in net.parameters():
                p.grad.fill_(math.nan)
    if case == "zero":
        for p in net.parameters():
            p.grad.zero_()
    policy = {
        "below": MaxNorm(1e6),
        "open": MaxNorm(math.inf),
        "warm-up": ZScore(),
        "nan": MaxNorm(1e-3),
        "zero": MaxNorm(1e-3),
    }
    return net, policy[case]


@pytest.mark.parametrize("case", ["below", "open", "warm-up", "nan", "zero"])
@pytest.mark.parametrize("scope", SCOPES)
def test_nothing_is_written_when_nothing_fires(scope: str, case: str) -> None:
    net, policy = nothing(scope, case)
    before = [(p.grad, p.grad.clone(), p.grad._version) for p in net.parameters()]
    report, _ = clip_grad_(source(net, gradient_families.two_groups(net), scope), policy, scope=scope)
    assert not report.clipped.any()
    for p, (grad, bits, version) in zip(net.parameters(), before, strict=True):
        assert p.grad is grad
        assert grad._version == version
        gradient_families.same_bits(grad, bits)


@pytest.mark.parametrize("scope", ["group", "layer", "parameter", "unit"])
def test_only_tensors_with_a_segment_that_fires_are_written(scope: str) -> None:
    net = filled()
    optimizer = gradient_families.two_groups(net)
    limit = {"group": 600.0, "layer": 50.0, "parameter": 20.0, "unit": 20.0}[scope]
    before = [(p, p.grad.clone(), p.grad._version) for p in net.parameters()]
    report, _ = clip_grad_(source(net, optimizer, scope), MaxNorm(limit), scope=scope)
    _, labels, _ = oracles.label_elements(net, scope, optimizer)
    written = []
    for (p, bits, version), label in zip(before, labels, strict=True):
        fired = report.clipped[torch.from_numpy(label)]
        written.append(bool(fired.any()))
        assert (p.grad._version > version) == written[-1]
        gradient_families.same_bits(p.grad[~fired], bits[~fired])
    assert any(written)
    assert not all(written)


def test_a_zero_initialised_weight_keeps_a_gradient_under_weight_relative() -> None:
    weight = nn.Parameter(torch.zeros(3, 4))
    weight.grad = torch.ones(3, 4)
    report, _ = clip_grad_([weight], WeightRelative(factor=0.01, min_weight_norm=1e-3), scope="unit")
    torch.testing.assert_close(weight.grad, torch.full((3, 4), 0.5 * 1e-5))  # float32: default tolerance
    assert report.clipped.all()


@pytest.mark.parametrize("scope", SCOPES)
def test_sparse_equals_dense(scope: str) -> None:
    """Norm, coefficients and result: duplicates in an uncoalesced gradient count once, added."""
    sparse, dense = gradient_families.Net(), gradient_families.Net()
    parameters = list(sparse.parameters())
    gradients = gradient_families.sparse(parameters, 0, torch.Generator().manual_seed(0))
    gradient_families.assign(parameters, gradients)
    gradient_families.assign(list(dense.parameters()), [gradient_families.dense(g) for g in gradients])
    limit = {"global": 5.0, "group": 5.0, "layer": 5.0, "parameter": 5.0, "unit": 1.5}[scope]
    ours, _ = clip_grad_(source(sparse, gradient_families.two_groups(sparse), scope), MaxNorm(limit), scope=scope)
    theirs, _ = clip_grad_(source(dense, gradient_families.two_groups(dense), scope), MaxNorm(limit), scope=scope)
    torch.testing.assert_close(ours, theirs)  # float32: default tolerance, sums in another order
    for a, b in zip(parameters, dense.parameters(), strict=True):
        torch.testing.assert_close(gradient_families.dense(a.grad), b.grad)
    assert sparse.embedding.weight.grad.is_sparse
    assert ours.clipped.any()


def test_sparse_rows_are_clipped_one_by_one() -> None:
    embedding = nn.Embedding(6, 3, sparse=True)
    embedding(torch.tensor([1, 4, 1, 1])).mul(torch.tensor([[1.0], [0.5], [1.0], [1.0]])).sum().backward()
    report, _ = clip_grad_(embedding, MaxNorm(1.0), scope="unit")
    assert report.observed.tolist() == [False, True, False, False, True, False]
    assert report.clipped.tolist() == [False, True, False, False, False, False]
    rows = embedding.weight.grad.to_dense()
    torch.testing.assert_close(rows[1], torch.full((3,), 3**-0.5))
    gradient_families.same_bits(rows[4], torch.full((3,), 0.5))


def test_half_precision_norms_beyond_the_half_range_are_clipped_right() -> None:
    weight = nn.Parameter(torch.zeros(8, 50, dtype=torch.float16))
    weight.grad = torch.full((8, 50), 60000.0, dtype=torch.float16)
    report, _ = clip_grad_([weight], MaxNorm(2000.0))
    torch.testing.assert_close(report.norms, torch.tensor([1.2e6]))
    # 2000 / 20 = 100 is a half number; the coefficient in float32 moves it by less than half a unit there.
    torch.testing.assert_close(weight.grad, torch.full((8, 50), 100.0, dtype=torch.float16), rtol=1e-3, atol=0.0)


def test_a_parameter_that_requires_no_gradient_is_no_obstacle() -> None:
    net = filled()
    net.conv.weight.requires_grad_(False)
    net.conv.weight.grad = None
    report, _ = clip_grad_(net, MaxNorm(1.0), scope="parameter")
    assert report.observed.tolist() == [i != 2 for i in range(11)]


def test_the_same_state_gives_the_same_answer_twice() -> None:
    """State is a value: a step that is taken again from it is the same step."""
    policy, state = EMARelative(factor=1.0, decay=0.5, warmup_steps=1), None
    for seed in range(3):
        _, state = clip_grad_(filled(seed=seed), policy, state, scope="layer")
    first, after_first = clip_grad_(filled(seed=3), policy, state, scope="layer")
    second, after_second = clip_grad_(filled(seed=3), policy, state, scope="layer")
    for a, b in zip((*first, *after_first), (*second, *after_second), strict=True):
        gradient_families.same_bits(a, b)
    assert first.clipped.any()
    assert not first.clipped.all()


def holding(gradient):
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient
    return weight


@pytest.mark.parametrize("scope", ["global", "parameter", "unit"])
def test_a_coefficient_below_the_half_types_range_does_not_erase_the_gradient(scope):
    weight = holding(torch.full((1000, 100), 6e4, dtype=torch.float16))
    clip_grad_([weight, holding(torch.ones(3))], MaxNorm(1.0), scope=scope)
    length = 1.0 if scope != "unit" else 1000**0.5
    assert float(weight.grad.double().norm()) == pytest.approx(length, rel=5e-4)  # fp16 keeps 11 bits


def test_a_bf16_gradient_is_rounded_once():
    torch.manual_seed(0)
    weight, scalar = holding(torch.randn(64, 64).bfloat16()), holding(torch.tensor(3.0, dtype=torch.bfloat16))
    wanted = weight.grad.float()
    report, _ = clip_grad_([weight, scalar], MaxNorm(0.3))
    torch.testing.assert_close(weight.grad, (wanted * report.coefficients).bfloat16(), rtol=0, atol=0)
    assert 0 < float(scalar.grad) < 3


def norms(model, scope):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return clip_grad_(model, MaxNorm(1e9), scope=scope)[0].norms


def test_the_plan_is_laid_once_and_again_when_the_parameters_change():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))

    assert norms(model, "layer").shape == norms(model, "layer").shape == (2,)
    model.append(nn.Linear(1, 4))
    torch.testing.assert_close(norms(model, "layer"), torch.tensor([8.0, 3.0, 8.0]).sqrt())
    model[0].weight = nn.Parameter(torch.zeros(2, 3))
    model[0].weight.requires_grad_(False)
    assert norms(model, "parameter").shape == (6,)
    gone = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("policy", [ZScore(), ZScore(robust=False), Percentile(50, window=4), EMARelative()])
def test_a_state_comes_back_from_a_mapping(policy, tmp_path):
    def run(state, norms):
        for norm in norms:
            report, state = clip_grad_([holding(torch.tensor([norm]))], policy, state)
        return report, state

    straight, _ = run(None, [1.0, 2.0, 3.0, 4.0, 5.0])
    _, state = run(None, [1.0, 2.0, 3.0])
    torch.save(state._asdict(), tmp_path / "state.pt")
    resumed, _ = run(torch.load(tmp_path / "state.pt", weights_only=True), [4.0, 5.0])
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [(ZScore(robust=False), ZScore()), (Percentile(window=10), Percentile(window=1000)), (MaxNorm(1.0), EMARelative())],
)
def test_a_state_of_another_policy_is_refused(one, other):
    _, state = clip_grad_([holding(torch.ones(2))], one)
    with pytest.raises(ValueError, match=r"`state` must be .*Pass None to start afresh"):
        clip_grad_([holding(torch.ones(2))], other, state)
