"""CIFAR-10's batches: both forms are read, and no pickle gets anything called."""

import os
import pickle

import numpy as np
import pytest
from helpers.run_example import example
from helpers.write_images import cifar, of_python_2, refuses, write_cifar


@pytest.fixture(scope="module")
def loaders():
    return example("vision_data")


@pytest.mark.parametrize("binary", [False, True])
def test_cifar_batches_are_read_byte_for_byte(loaders, tmp_path, binary):
    written = write_cifar(tmp_path, binary)
    train, test, classes = loaders.load(tmp_path)
    assert classes == 10
    for (images, labels), half in ((train, "train"), (test, "test")):
        np.testing.assert_array_equal(images.numpy(), written[half][0])
        assert labels.tolist() == written[half][1]


def test_a_batch_that_python_2_pickled_is_read(loaders, tmp_path):
    images, labels = cifar(300)
    (tmp_path / "test_batch").write_bytes(of_python_2(images, labels))
    found, names = loaders.read_cifar_half(tmp_path, "test")
    np.testing.assert_array_equal(found.numpy(), images)
    assert names == labels


class Harmful:
    """What a hostile pickle does: names a function, and an argument to call it with."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def pickle_that_calls_a_function(root):
    write_cifar(root, extra=Harmful())
    return (
        root / "data_batch_1",
        f"it asks for {os.mkdir.__module__}.mkdir, which has no place among images; nothing of it was called",
    )


def pickle_of_a_builtin(root):
    write_cifar(root)
    (root / "test_batch").write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    return root / "test_batch", "it asks for builtins.eval, which has no place among images; nothing of it was called"


def truncated_pickle(root):
    write_cifar(root)
    path = root / "data_batch_3"
    path.write_bytes(path.read_bytes()[:5000])
    return path, "expected a pickled batch of CIFAR-10; "


def empty_pickle(root):
    write_cifar(root)
    (root / "test_batch").write_bytes(b"")
    return root / "test_batch", "expected a pickled batch of CIFAR-10; Ran out of input"


def pickle_of_a_list(root):
    write_cifar(root)
    (root / "test_batch").write_bytes(pickle.dumps([1, 2, 3]))
    return root / "test_batch", "expected `labels` and as many rows of 3072 bytes as `data`, got NoneType"


def pickle_of_fewer_labels(root):
    write_cifar(root)
    images, _ = cifar(10)
    (root / "test_batch").write_bytes(pickle.dumps({"data": images.reshape(10, -1), "labels": [1, 2]}, protocol=3))
    return (
        root / "test_batch",
        "as many rows of 3072 bytes as `data`, got uint8 of shape (10, 3072)",
    )


def pickle_of_floats(root):
    write_cifar(root)
    batch = {b"data": np.zeros((10, 3072)), b"labels": list(range(10))}
    (root / "test_batch").write_bytes(pickle.dumps(batch, protocol=3))
    return root / "test_batch", "as many rows of 3072 bytes as `data`, got float64 of shape (10, 3072)"


def pickle_of_unknown_labels(root):
    write_cifar(root)
    batch = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}
    (root / "test_batch").write_bytes(pickle.dumps(batch, protocol=3))
    return root / "test_batch", "expected labels from 0 to 9, got 10"


def missing_cifar_batch(root):
    write_cifar(root)
    (root / "data_batch_4").unlink()
    return root / "data_batch_4", "no such file, nor with .bin; expected the four IDX files"


def truncated_records(root):
    write_cifar(root, binary=True)
    path = root / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-7])
    return path, "expected records of 3073 bytes, got 30723 bytes; is the file complete?"


def no_records(root):
    write_cifar(root, binary=True)
    (root / "test_batch.bin").write_bytes(b"")
    return root / "test_batch.bin", "expected records of 3073 bytes, got 0 bytes"


def records_of_unknown_labels(root):
    write_cifar(root, binary=True)
    path = root / "data_batch_5.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    return path, "expected labels from 0 to 9, got 255"


REFUSED = [
    pickle_that_calls_a_function,
    pickle_of_a_builtin,
    truncated_pickle,
    empty_pickle,
    pickle_of_a_list,
    pickle_of_fewer_labels,
    pickle_of_floats,
    pickle_of_unknown_labels,
    missing_cifar_batch,
    truncated_records,
    no_records,
    records_of_unknown_labels,
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(tmp_path, capsys, monkeypatch, case):
    refuses(case, tmp_path, capsys, monkeypatch)
    assert not (tmp_path / "harmed").exists()
