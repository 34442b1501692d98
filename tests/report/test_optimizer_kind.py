"""What an optimizer makes of the scale of a gradient: asked by name, and checked on steps of torch's own."""

import inspect

import pytest
import torch

from lightning_calib.report.optimizer_kind import optimizer_kind

KINDS = {
    "adam": """Adam AdamW NAdam RAdam Adamax SparseAdam RMSprop Adagrad Adadelta Adafactor AdaFactor AdafactorBigVision
        Lamb LARS StableAdamW SOAP Shampoo CAME Adan AdanP AdamWLegacy FusedAdam DeepSpeedCPUAdam PagedAdamW AdamW8bit
        Prodigy ScheduleFreeAdamW AdamWScheduleFree NvNovoGrad Kron LaProp CautiousAdamW AdEMAMix AdamP Ranger21""",
    "sign": "Lion LionW DecoupledLionW PagedLion8bit SignSGD Signum Tiger Rprop CautiousLion",
    "muon": "Muon AdaMuon NorMuon MuonClip DistributedMuon SingleDeviceMuonWithAuxAdam Dion SCION",
    "sgd": "SGD SGDW SGDP ASGD SGDScheduleFree QHM AccSGD MyOwnSGD",
    "other": "LBFGS SophiaG SophiaH MADGRAD DAdaptSGD MyMethod",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names.split()])
def test_known_names(kind, name):
    assert optimizer_kind([name, "Optimizer", "object"]) == kind


def test_the_most_special_name_that_is_known_decides():
    assert optimizer_kind(["Mine", "Lion", "AdamW", "Optimizer"]) == "sign"
    assert optimizer_kind(["MyAdamish", "SGD"]) == "sgd"


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ({"use_muon": True}, "muon"),
        ({"use_muon": False}, "adam"),
        ({"use_fallback": True}, "adam"),
        ({"algorithm": "lion"}, "sign"),
        ({"algo": "adamw"}, "adam"),
        ({"algorithm": 3}, "muon"),
        ({}, "muon"),
        (None, "muon"),
    ],
)
def test_two_kinds_in_one_optimizer_are_told_by_the_group(group, kind):
    assert optimizer_kind(["Muon"], group) == kind


def test_a_flag_of_muon_says_nothing_about_others():
    assert optimizer_kind(["SGD"], {"use_muon": False}) == "sgd"


def step(cls, scale):
    """What the last of twelve steps with constant gradients adds; RAdam's first five are SGD's."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = cls([weight], lr=0.01)
    gradient = torch.randn(6, 4) * scale
    for _ in range(12):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach() - before


SAID = {
    name: kind
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and name not in ("Optimizer", "LBFGS", "SparseAdam")
    for kind in [optimizer_kind([one.__name__ for one in found.__mro__])]
}


@pytest.mark.parametrize("name", sorted(SAID))
def test_torchs_own_do_with_the_scale_what_their_kind_says(name):
    cls = getattr(torch.optim, name)
    small, large = step(cls, 10.0), step(cls, 1000.0)
    times = float(large.norm() / small.norm())
    assert times == pytest.approx(100.0 if SAID[name] == "sgd" else 1.0, rel=0.05)
