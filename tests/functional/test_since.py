"""What an older torch cannot do right is refused by its name and version; what it can is not."""

import pytest
import torch
from helpers.newer import newer

from lightning_calib.functional import dtensor, fsdp1
from lightning_calib.functional.since import FLAT, SPREAD, Since

distribute_tensor, Shard = (
    newer("torch.distributed.tensor", name, "torch 2.5") for name in ("distribute_tensor", "Shard")
)


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def before(row: Since) -> str:
    major, minor = row.release
    return f"{major}.{minor - 1}.1+cu128"


def at(row: Since) -> str:
    return ".".join(map(str, row.release)) + ".0a0+git1234567"


@pytest.mark.parametrize("row", [SPREAD, FLAT])
def test_the_sentence_names_both_versions_and_a_way_out(monkeypatch, row):
    monkeypatch.setattr(torch, "__version__", before(row))
    assert row.why_not().startswith(f"{row.mode} with torch {before(row)}: ")
    needed = ".".join(map(str, row.release))
    assert row.why_not().endswith(f"Use torch {needed} or newer, or {row.remedy}.")
    monkeypatch.setattr(torch, "__version__", at(row))
    assert row.why_not() is None


def test_shared_parameters(monkeypatch, mesh):
    monkeypatch.setattr(torch, "__version__", at(SPREAD))
    cut = distribute_tensor(torch.ones(3), mesh, [Shard(0)])
    assert dtensor.why_not([torch.ones(3), cut]) is None
    monkeypatch.setattr(torch, "__version__", before(SPREAD))
    assert dtensor.why_not([torch.ones(3)]) is None
    assert dtensor.why_not([torch.ones(3), cut]) == SPREAD.why_not()


def test_flat_parameters(monkeypatch):
    flat = torch.nn.Parameter(torch.ones(3))
    monkeypatch.setattr(fsdp1, "is_flat", lambda tensor: tensor is flat)
    monkeypatch.setattr(torch, "__version__", before(FLAT))
    assert fsdp1.why_not([flat], None) == FLAT.why_not()
    assert fsdp1.why_not([torch.ones(3)], None) is None
