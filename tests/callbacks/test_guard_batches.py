"""What becomes of a batch in a file: builtins and tensors only, whatever it was."""

from __future__ import annotations

import enum
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.tiny_modules import same_bits
from torch import nn

from lightning_calib.incidents.batch_files import plain


def load(path):
    return torch.load(path, weights_only=True)


Point = namedtuple("Point", "x y")


@dataclass
class Record:
    x: torch.Tensor
    label: str


class Colour(enum.IntEnum):
    RED = 3


class Tagged(torch.Tensor):
    pass


class Opaque:
    def __repr__(self):
        return "Opaque()"


ONE = torch.tensor([1.0, 2.0])
SHAPES = {
    "tensor": (ONE, ONE),
    "parameter": (nn.Parameter(ONE), ONE),
    "subclass": (ONE.as_subclass(Tagged), ONE),
    "half": (ONE.half(), ONE.half()),
    "tuple": ((ONE, 3), [ONE, 3]),
    "dict": ({"a": {"b": [ONE, None, True]}, 7: 1.5}, {"a": {"b": [ONE, None, True]}, 7: 1.5}),
    "other keys": ({(1, 2): ONE}, {"(1, 2)": ONE}),
    "ordered": (OrderedDict(a=ONE), {"a": ONE}),
    "mapping": (UserDict(a=ONE), {"a": ONE}),
    "named tuple": (Point(ONE, Point(1, "p")), {"x": ONE, "y": {"x": 1, "y": "p"}}),
    "dataclass": (Record(ONE, "r"), {"x": ONE, "label": "r"}),
    "array": (np.array([1.0, 2.0], dtype=np.float32), ONE),
    "array of texts": (np.array(["a", "b"]), ["a", "b"]),
    "array of objects": (np.array([None, "b"], dtype=object), [None, "b"]),
    "scalar": (np.float64(1.5), torch.tensor(1.5, dtype=torch.float64)),
    "enum": (Colour.RED, 3),
    "bytes": (b"raw", b"raw"),
    "object": ([Opaque(), ONE], ["Opaque()", ONE]),
    "class": (Record, repr(Record)),
}


@pytest.mark.parametrize(("batch", "wanted"), SHAPES.values(), ids=SHAPES)
def test_any_batch_loads_with_weights_only(batch, wanted, tmp_path):
    torch.save(plain(batch), tmp_path / "batch.pt")
    same_bits(load(tmp_path / "batch.pt"), wanted)


def test_sparse_batches_stay_sparse(tmp_path):
    batch = torch.eye(3).to_sparse()
    torch.save(plain(batch), tmp_path / "batch.pt")
    loaded = load(tmp_path / "batch.pt")
    assert loaded.is_sparse
    same_bits(loaded.to_dense(), torch.eye(3))


def test_a_saved_batch_is_a_copy():
    batch = torch.zeros(3)
    kept = plain([batch])
    batch += 1
    same_bits(kept, [torch.zeros(3)])
