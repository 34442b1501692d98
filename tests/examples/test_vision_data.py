"""The loaders of the vision example take the formats that they name: digits, IDX files, image folders."""

import numpy as np
import pytest
import torch
from helpers.run_example import example
from helpers.write_images import idx, write_cifar, write_images, write_mnist
from PIL import Image


@pytest.fixture(scope="module")
def loaders():
    return example("vision_data")


def test_digits_are_split_alike_in_every_class_and_always_the_same_way(loaders):
    train, test, classes = loaders.load(None)
    assert (len(train[0]), len(test[0]), classes) == (1438, 359, 10)
    assert train[0].dtype == torch.uint8
    assert train[0].shape[1:] == (1, 8, 8)
    shares = test[1].bincount() / (test[1].bincount() + train[1].bincount())
    torch.testing.assert_close(shares, torch.full((10,), 0.2), atol=0.005, rtol=0)  # whole images: 1 of about 180
    torch.testing.assert_close(loaders.load(None)[1], test, atol=0, rtol=0)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_files_are_read_byte_for_byte(loaders, tmp_path, mark, zipped):
    data = write_mnist(tmp_path, mark=mark, zipped=zipped)
    train, test, classes = loaders.load(tmp_path)
    assert classes == 3
    for dataset, (images, labels) in ((train, data["train"]), (test, data["t10k"])):
        np.testing.assert_array_equal(dataset[0].squeeze(1).numpy(), images)
        np.testing.assert_array_equal(dataset[1].numpy(), labels)


def test_an_idx_file_that_lost_its_compression_but_not_its_name_is_read(loaders, tmp_path):
    data = write_mnist(tmp_path, zipped=True)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(data["train"][1]))
    (tmp_path / "train-images-idx3-ubyte").mkdir()  # as some archives unpack
    np.testing.assert_array_equal(loaders.load(tmp_path)[0][1].numpy(), data["train"][1])


def test_an_image_folder_with_train_and_test_keeps_them_apart(loaders, tmp_path):
    write_images(tmp_path / "train", {"cat": 3, "dog": 2, "emu": 1})
    write_images(tmp_path / "test", {"cat": 1, "dog": 4})
    train, test, classes = loaders.load(tmp_path)
    assert classes == 3
    assert train[1].tolist() == [0, 0, 0, 1, 1, 2]
    assert test[1].tolist() == [0, 1, 1, 1, 1]
    assert train[0].shape == (6, 3, loaders.IMAGE_SIZE, loaders.IMAGE_SIZE)


def test_one_level_of_class_folders_is_split_and_every_class_is_in_both_halves(loaders, tmp_path):
    write_images(tmp_path, {"a": 10, "b": 2, "train": 5})  # "train" may be a class, too
    train, test, classes = loaders.load(tmp_path)
    assert (len(train[0]) + len(test[0]), classes) == (17, 3)
    assert set(train[1].tolist()) == {0, 1, 2}
    assert set(test[1].tolist()) == {0, 1, 2}
    torch.testing.assert_close(loaders.load(tmp_path)[0], train, atol=0, rtol=0)


def test_images_of_any_size_and_mode_become_one_square_with_the_colours_in_place(loaders, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for i, (mode, colour) in enumerate([("RGB", (250, 120, 3)), ("RGBA", (250, 120, 3, 255)), ("L", 9), ("1", 1)]):
        Image.new(mode, (5 + i, 40 - i), colour).save(tmp_path / "one" / f"{i}.PNG")
        Image.new("RGB", (8, 8)).save(tmp_path / "two" / f"{i}.bmp")
    (tmp_path / "one" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    images, names = loaders.read_classes(tmp_path)
    assert names == ["one"] * 4 + ["two"] * 4
    wanted = torch.tensor([[250, 120, 3], [250, 120, 3], [9, 9, 9], [255, 255, 255]], dtype=torch.uint8)
    torch.testing.assert_close(images[:4], wanted[:, :, None, None].expand_as(images[:4]))


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_one_of_the_idx_files_may_stand_in_place_of_its_folder(loaders, tmp_path, name):
    write_mnist(tmp_path, zipped=True)
    torch.testing.assert_close(loaders.load(tmp_path / name), loaders.load(tmp_path), atol=0, rtol=0)


@pytest.mark.parametrize("binary", [False, True])
def test_one_of_the_cifar_batches_may_stand_in_place_of_its_folder(loaders, tmp_path, binary):
    write_cifar(tmp_path, binary)
    path = tmp_path / ("test_batch.bin" if binary else "data_batch_2")
    torch.testing.assert_close(loaders.load(path), loaders.load(tmp_path), atol=0, rtol=0)
