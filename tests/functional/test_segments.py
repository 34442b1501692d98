"""The plan and the five scopes: which elements make a segment."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from helpers import gradient_families
from helpers.properties import BOUNDED
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_calib.functional.norms import measure
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segments import Segments

SCOPES = ["global", "group", "layer", "parameter", "unit"]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("scope", SCOPES)
def test_folded_norms_equal_a_loop_over_labelled_elements(scope: str, norm_type: float) -> None:
    net = gradient_families.Net(dtype=torch.float64)
    optimizer = gradient_families.two_groups(net)
    parameters, labels, count = oracles.label_elements(net, scope, optimizer)
    gradient_families.assign(parameters, gradient_families.typical(parameters, 0, torch.Generator().manual_seed(0)))
    plan = Plan.of_optimizer(optimizer, net) if scope == "group" else Plan.of(net)
    segments = Segments.of(plan, scope)
    reading = measure(plan, plan.gradients(), norm_type, units=scope == "unit")
    expected = oracles.segment_norms([oracles.to_numpy(p.grad) for p in parameters], labels, count, norm_type)
    assert len(segments) == count
    # Sums of at most 200 terms in double precision, in another order.
    torch.testing.assert_close(
        segments.fold(reading), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0.0
    )


SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6)
P = st.sampled_from([1.0, 2.0, 3.0, float("inf")])


@BOUNDED
@given(shapes=SHAPES, seed=st.integers(0, 99), missing=st.sets(st.integers(0, 5)), p=P)
def test_segments_of_tensors_of_any_shape_are_the_norms_of_their_parts(shapes, seed, missing, p) -> None:
    """Scalars, empty tensors, and some without a gradient. A unit is a row of a matrix, or a whole tensor."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        parameter.grad = None if i in missing else gradient
        gradients[i] = gradient * (i not in missing)
    plan = Plan.of(parameters)
    reading = measure(plan, plan.gradients(), p, units=True)
    rows = [row.flatten() for g in gradients for row in (g if g.ndim > 1 and g.numel() else [g])]
    parts = {"global": [torch.cat([g.flatten() for g in gradients])], "parameter": gradients, "unit": rows}
    for scope, expected in parts.items():
        found = Segments.of(plan, scope).fold(reading)
        labels = [np.full(tuple(part.shape), k) for k, part in enumerate(expected)]
        wanted = oracles.segment_norms([part.numpy() for part in expected], labels, len(expected), p)
        torch.testing.assert_close(
            found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-13, atol=0.0
        )  # another order of summation


@pytest.mark.parametrize("scope", ["global", "group", "layer", "parameter"])
def test_a_reading_with_units_folds_to_the_same_coarser_norms(scope: str) -> None:
    net = gradient_families.Net(dtype=torch.float64)
    optimizer = gradient_families.two_groups(net)
    gradient_families.assign(
        list(net.parameters()), gradient_families.typical(list(net.parameters()), 0, torch.Generator())
    )
    plan = Plan.of_optimizer(optimizer, net)
    segments = Segments.of(plan, scope)
    fine = segments.fold(measure(plan, plan.gradients(), units=True))
    coarse = segments.fold(measure(plan, plan.gradients()))
    torch.testing.assert_close(fine, coarse, rtol=1e-13, atol=0.0)  # another order of summation


TRANSPOSED = {
    "1d": lambda: nn.ConvTranspose1d(4, 6, 3),
    "1d groups": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "2d depthwise": lambda: nn.ConvTranspose2d(4, 4, 2, groups=4),
    "3d groups": lambda: nn.ConvTranspose3d(6, 9, 2, groups=3),
}


@pytest.mark.parametrize("make", TRANSPOSED.values(), ids=TRANSPOSED.keys())
def test_units_of_a_transposed_convolution_are_its_output_channels(make) -> None:
    """An output that only one channel's kernel reaches: the norm of the weight elements it depends on."""
    layer = make().double()
    plan = Plan.of(layer)
    units = measure(plan, [layer.weight, layer.bias], units=True).units
    spatial = (3,) * (layer.weight.ndim - 2)
    reached = []
    for channel in range(layer.out_channels):
        layer.zero_grad()
        layer(torch.ones(1, layer.in_channels, *spatial, dtype=torch.float64))[0, channel].sum().backward()
        reached.append(layer.weight[layer.weight.grad != 0].norm())
    torch.testing.assert_close(units[:-1], torch.stack(reached).detach(), rtol=1e-13, atol=0.0)
    assert len(units) == layer.out_channels + 1


def test_tied_tensors_count_once_and_take_the_first_name() -> None:
    plan = Plan.of(gradient_families.Net())
    assert plan.names == (
        "scale",
        "embedding.weight",
        "conv.weight",
        "conv.bias",
        "up.weight",
        "up.bias",
        "norm.weight",
        "norm.bias",
        "hidden.weight",
        "hidden.bias",
        "head.bias",
    )
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    again = Plan.of([weight, weight])
    norm = Segments.of(again, "global").fold(measure(again, again.gradients()))
    torch.testing.assert_close(norm, torch.tensor([2.0]).sqrt())  # float32 default tolerance: one rounding


def test_segments_are_named_after_what_they_hold() -> None:
    net = gradient_families.Net()
    plan = Plan.of_optimizer(gradient_families.two_groups(net), net)
    assert Segments.of(plan, "global").names == ("global",)
    assert Segments.of(plan, "parameter").names == plan.names
    layers = Segments.of(Plan.of(net), "layer").names
    assert layers[1:] == ("embedding", "conv", "up", "norm", "hidden", "head")
    assert len(Segments.of(plan, "group").names) == 2
    assert len(set(Segments.of(plan, "group").names)) == 2


def test_names_do_not_change_when_the_module_is_compiled() -> None:
    net = gradient_families.Net()
    assert Plan.of(torch.compile(net, backend="eager")).names == Plan.of(net).names
    assert Plan.of(nn.Sequential(torch.compile(net, backend="eager"))).names == Plan.of(nn.Sequential(net)).names


@pytest.mark.parametrize("scope", SCOPES)
def test_members_leave_the_others_out(scope: str) -> None:
    net = gradient_families.Net(dtype=torch.float64)
    optimizer = gradient_families.two_groups(net)
    plan = Plan.of_optimizer(optimizer, net)
    gradients = gradient_families.typical(plan.tensors, 0, torch.Generator().manual_seed(0))
    gradient_families.assign(plan.tensors, gradients)
    members = [i for i, name in enumerate(plan.names) if name in ("conv.weight", "hidden.weight", "hidden.bias")]
    segments = Segments.of(plan, scope, members)
    folded = segments.fold(measure(plan, plan.gradients(), units=scope == "unit"))
    total = torch.stack([gradients[i].norm() for i in members]).norm()
    torch.testing.assert_close(folded.norm(), total, rtol=1e-13, atol=0.0)  # another order of summation
    assert len(segments) == {"global": 1, "group": 2, "layer": 2, "parameter": 3, "unit": 4 + 5 + 1}[scope]


def test_digest_tells_names_shapes_and_scope_apart() -> None:
    net = gradient_families.Net()
    digest = Segments.of(Plan.of(net), "parameter").digest
    assert digest == Segments.of(Plan.of(gradient_families.Net(seed=1)), "parameter").digest
    assert digest != Segments.of(Plan.of(net), "unit").digest
    assert digest != Segments.of(Plan.of(net), "parameter", [0, 1]).digest
    wider = gradient_families.Net()
    wider.hidden = nn.Linear(4, 6)
    assert digest != Segments.of(Plan.of(wider), "parameter").digest
    renamed = gradient_families.Net()
    renamed.other = renamed.hidden
    del renamed.hidden
    assert digest != Segments.of(Plan.of(renamed), "parameter").digest


def test_groups_of_an_optimizer_are_known_without_a_module() -> None:
    optimizer = gradient_families.two_groups(gradient_families.Net())
    plan = Plan.of(optimizer)
    assert plan.groups == tuple(i for i, g in enumerate(optimizer.param_groups) for _ in g["params"])
    assert len(Segments.of(plan, "group")) == 2


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32, torch.float32], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float16, torch.float64], torch.float64),
        ([torch.complex64], torch.float32),
        ([torch.complex128, torch.float32], torch.float64),
    ],
)
def test_norms_are_float32_and_float64_only_where_a_tensor_is(dtypes: list, expected: torch.dtype) -> None:
    plan = Plan.of([nn.Parameter(torch.ones(2, 2, dtype=d)) for d in dtypes])
    assert plan.dtype == expected
    for units in (False, True):
        reading = measure(plan, list(plan.tensors), units=units)
        assert reading.tensors.dtype == expected
        assert not units or reading.units.dtype == expected
