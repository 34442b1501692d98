"""What `clip_grad_` gives back: the tensors, the segments' names and a state; and what it warns of."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_calib import SegmentReport, ZScore
from lightning_calib.functional import clip_grad_
from lightning_calib.functional.plan import Plan
from lightning_calib.functional.segment_names import segment_names
from lightning_calib.functional.segments import Segments


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.up = nn.ConvTranspose1d(4, 2, 1, groups=2, bias=False)
        self.scale = nn.Parameter(torch.ones(()))


def filled() -> Net:
    net = Net()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    return net


NAMES = {
    "global": ["global"],
    "layer": ["(root)", "body", "up"],
    "parameter": ["scale", "body.weight", "body.bias", "up.weight"],
    "unit": ["scale"]
    + [f"body.weight[{i}]" for i in range(3)]
    + ["body.bias"]
    + [f"up.weight[{i}]" for i in range(2)],  # one output channel in each of 2 groups
}


@pytest.mark.parametrize("scope", NAMES)
def test_the_report_names_its_segments(scope):
    report, _ = clip_grad_(filled(), 1.0, scope=scope)
    assert list(report.names) == NAMES[scope]
    assert len(report.names) == len(report.norms)
    assert [report.names[i] for i in (0, -1)] == [NAMES[scope][0], NAMES[scope][-1]]
    assert list(report.names[1:]) == NAMES[scope][1:]


def test_groups_and_parameters_without_a_module_have_names_too():
    net = filled()
    optimizer = torch.optim.SGD([{"params": net.body.parameters()}, {"params": [net.scale]}], lr=0.1)
    assert list(clip_grad_(optimizer, 1.0, scope="group")[0].names) == ["group 0", "group 1"]
    assert list(clip_grad_([net.scale, net.body.bias], 1.0, scope="unit")[0].names) == [
        "(unnamed 0.0)",
        "(unnamed 0.1)",
    ]
    assert list(clip_grad_([], 1.0, scope="unit")[0].names) == []


def test_names_beyond_the_last_are_an_index_error():
    report, _ = clip_grad_(filled(), 1.0, scope="unit")
    with pytest.raises(IndexError):
        report.names[7]


def test_a_rule_names_its_own_members_only():
    plan = Plan.of(filled())
    assert list(segment_names(Segments.of(plan, "unit", [2, 3]))) == NAMES["unit"][4:]


def test_the_names_are_laid_with_the_plan():
    """Once for a module, not on each call; and a unit's name is made when it is asked for."""
    net = filled()
    first, _ = clip_grad_(net, 1.0, scope="unit")
    second, _ = clip_grad_(net, 1.0, scope="unit")
    assert first.names is second.names
    assert "7 units" in repr(first.names)


def test_a_report_is_a_tuple_of_tensors_and_survives_copying():
    report, _ = clip_grad_(filled(), 1.0, scope="layer")
    norms, observed, targets, coefficients = report
    assert norms is report.norms
    assert all(len(one) == 3 for one in (observed, targets, coefficients))
    for twin in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert isinstance(twin, SegmentReport)
        assert list(twin.names) == NAMES["layer"]
        torch.testing.assert_close(tuple(twin), tuple(report), rtol=0, atol=0)


def test_scope_and_norm_type_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        clip_grad_(filled(), 1.0, None, "layer")


def warned(function) -> list:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        function()
    return found


def test_an_exhausted_generator_warns_as_torch_does():
    parameters = filled().parameters()
    list(parameters)
    (ours,) = warned(lambda: clip_grad_(parameters, 1.0))
    (theirs,) = warned(lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    assert (str(ours.message), ours.category) == (str(theirs.message), theirs.category)
    assert ours.filename == __file__


@pytest.mark.parametrize("given", [list, lambda: filled().parameters(), lambda: iter([]), lambda: nn.Identity()])
def test_nothing_else_warns(given):
    """As torch: an empty list is no mistake that it can tell."""
    assert warned(lambda: clip_grad_(given(), 1.0)) == []


def test_the_state_has_its_fields():
    _, state = clip_grad_(filled(), ZScore())
    assert list(state._asdict()) == ["seen", "mean", "var"]
