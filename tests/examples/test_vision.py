"""The example runs, its charts are there, and its loader takes the formats that it names and refuses the rest."""

import gzip
import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).parents[2] / "examples" / "vision.py"
RANDOM = np.random.default_rng(0)
KINDS = {"images": 3, "labels": 1}


@pytest.fixture(scope="module")
def vision():
    spec = importlib.util.spec_from_file_location("vision_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def digits(count, size=28, classes=3):
    images = RANDOM.integers(0, 256, (count, size, size), dtype=np.uint8)
    return images, (np.arange(count) % classes).astype(np.uint8)


def write_idx(folder, half, images, labels, mark="-", zipped=False):
    for kind, array in (("images", images), ("labels", labels)):
        path = folder / f"{half}-{kind}{mark}idx{KINDS[kind]}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


def write_mnist(folder, **layout):
    data = {"train": digits(12), "t10k": digits(6)}
    for half, arrays in data.items():
        write_idx(folder, half, *arrays, **layout)
    return data


def write_images(folder, counts, size=(9, 7), suffix=".png"):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}{suffix}")


# ---- the run ----


def test_a_fast_run_trains_reports_and_writes_the_charts(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--fast"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    lines = result.stdout.splitlines()
    accuracy = next(line for line in lines if line.startswith("test accuracy: "))
    assert float(accuracy.split()[2].rstrip("%")) > 80
    assert accuracy.endswith(" of 359 images")
    summary = lines[lines.index(accuracy) + 1 : -1]
    assert "norm" in " ".join(summary)
    program, *arguments = lines[-1].removeprefix("to see the charts: ").split()
    assert arguments == ["--logdir", "runs"]
    assert Path(tmp_path, program).exists()

    (run,) = (tmp_path / "runs" / "vision").iterdir()
    events = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("calib/")]
    assert {"calib/grad_norm_before", "calib/grad_norm_after", "calib/clip_fraction", "calib/clip_threshold"} <= set(
        tags
    )
    assert len(tags) <= 12
    assert len(events.Scalars("calib/grad_norm_before")) == 6
    assert all(point.value > 0 for point in events.Scalars("calib/grad_norm_before"))


def test_the_model_takes_every_size_and_channel_count_that_the_loader_gives(vision):
    for shape in [(6, 1, 8, 8), (6, 1, 28, 28), (6, 3, 32, 32), (6, 1, 1, 1)]:
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert vision.Classifier(images, 4)(images).shape == (6, 4)


def test_a_constant_image_set_does_not_divide_by_zero(vision):
    images = torch.full((6, 1, 8, 8), 7, dtype=torch.uint8)
    assert torch.isfinite(vision.Classifier(images, 2)(images)).all()


# ---- the loader: what it takes ----


def test_digits_are_split_alike_in_every_class_and_always_the_same_way(vision):
    train, test, classes = vision.load(None)
    assert (len(train), len(test), classes) == (1438, 359, 10)
    assert train.tensors[0].dtype == torch.uint8
    assert train.tensors[0].shape[1:] == (1, 8, 8)
    shares = test.tensors[1].bincount() / (test.tensors[1].bincount() + train.tensors[1].bincount())
    torch.testing.assert_close(shares, torch.full((10,), 0.2), atol=0.005, rtol=0)  # whole images: 1 of about 180
    torch.testing.assert_close(vision.load(None)[1].tensors, test.tensors, atol=0, rtol=0)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_files_are_read_byte_for_byte(vision, tmp_path, mark, zipped):
    data = write_mnist(tmp_path, mark=mark, zipped=zipped)
    train, test, classes = vision.load(tmp_path)
    assert classes == 3
    for dataset, (images, labels) in ((train, data["train"]), (test, data["t10k"])):
        np.testing.assert_array_equal(dataset.tensors[0].squeeze(1).numpy(), images)
        np.testing.assert_array_equal(dataset.tensors[1].numpy(), labels)


def test_an_idx_file_that_lost_its_compression_but_not_its_name_is_read(vision, tmp_path):
    data = write_mnist(tmp_path, zipped=True)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(data["train"][1]))
    (tmp_path / "train-images-idx3-ubyte").mkdir()  # as some archives unpack
    np.testing.assert_array_equal(vision.load(tmp_path)[0].tensors[1].numpy(), data["train"][1])


def test_an_image_folder_with_train_and_test_keeps_them_apart(vision, tmp_path):
    write_images(tmp_path / "train", {"cat": 3, "dog": 2, "emu": 1})
    write_images(tmp_path / "test", {"cat": 1, "dog": 4})
    train, test, classes = vision.load(tmp_path)
    assert classes == 3
    assert train.tensors[1].tolist() == [0, 0, 0, 1, 1, 2]
    assert test.tensors[1].tolist() == [0, 1, 1, 1, 1]
    assert train.tensors[0].shape == (6, 3, vision.IMAGE_SIZE, vision.IMAGE_SIZE)


def test_one_level_of_class_folders_is_split_and_every_class_is_in_both_halves(vision, tmp_path):
    write_images(tmp_path, {"a": 10, "b": 2, "train": 5})  # "train" may be a class, too
    train, test, classes = vision.load(tmp_path)
    assert (len(train) + len(test), classes) == (17, 3)
    assert set(train.tensors[1].tolist()) == {0, 1, 2}
    assert set(test.tensors[1].tolist()) == {0, 1, 2}
    torch.testing.assert_close(vision.load(tmp_path)[0].tensors, train.tensors, atol=0, rtol=0)


def test_images_of_any_size_and_mode_become_one_square_with_the_colours_in_place(vision, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for i, (mode, colour) in enumerate([("RGB", (250, 120, 3)), ("RGBA", (250, 120, 3, 255)), ("L", 9), ("1", 1)]):
        Image.new(mode, (5 + i, 40 - i), colour).save(tmp_path / "one" / f"{i}.PNG")
        Image.new("RGB", (8, 8)).save(tmp_path / "two" / f"{i}.bmp")
    (tmp_path / "one" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    images, names = vision.read_classes(tmp_path)
    assert names == ["one"] * 4 + ["two"] * 4
    wanted = torch.tensor([[250, 120, 3], [250, 120, 3], [9, 9, 9], [255, 255, 255]], dtype=torch.uint8)
    torch.testing.assert_close(images[:4], wanted[:, :, None, None].expand_as(images[:4]))


# ---- the loader: what it refuses ----


def no_folder(root):
    return root / "nowhere", "not a folder; expected the four IDX files of MNIST"


def a_file(root):
    (root / "data.csv").write_text("1,2,3\n")
    return root / "data.csv", "not a folder; expected the four IDX files of MNIST"


def empty_folder(root):
    return root, "no data found; expected the four IDX files of MNIST"


def only_other_files(root):
    (root / "data.csv").write_text("1,2,3\n")
    return root, "no data found; expected the four IDX files of MNIST"


def missing_idx_file(root):
    write_mnist(root)
    (root / "t10k-labels-idx1-ubyte").unlink()
    return root / "t10k-labels-idx1-ubyte", "no such file, nor with .gz; expected the four IDX files"


def wrong_magic(root):
    write_mnist(root)
    path = root / "train-labels-idx1-ubyte"
    path.write_bytes(b"\0\0\x0d\1" + path.read_bytes()[4:])
    return path, "expected an IDX file of bytes (it begins with 00 00 08 01), got 00 00 0d 01"


def images_where_labels_belong(root):
    write_mnist(root)
    path = root / "train-labels-idx1-ubyte"
    path.write_bytes((root / "train-images-idx3-ubyte").read_bytes())
    return path, "(it begins with 00 00 08 01), got 00 00 08 03"


def empty_idx_file(root):
    write_mnist(root)
    (root / "train-images-idx3-ubyte").write_bytes(b"")
    return root / "train-images-idx3-ubyte", "got an empty file"


def truncated_idx(root):
    write_mnist(root)
    path = root / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    return path, "expected 12 x 28 x 28 bytes (none of them 0) after a header of 16, got 1000 bytes in all"


def truncated_idx_header(root):
    write_mnist(root)
    path = root / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:10])
    return path, "after a header of 16, got 10 bytes in all"


def too_long_idx(root):
    write_mnist(root)
    path = root / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")
    return path, "expected 6 bytes (none of them 0) after a header of 8, got 15 bytes in all"


def no_images_in_idx(root):
    write_idx(root, "train", *digits(12))
    write_idx(root, "t10k", *digits(0))
    return root / "t10k-images-idx3-ubyte", "expected 0 x 28 x 28 bytes (none of them 0)"


def truncated_gzip(root):
    write_mnist(root, zipped=True)
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-500])
    return path, "expected a complete gzip file; "


def damaged_gzip(root):
    write_mnist(root, zipped=True)
    path = root / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    return path, "expected a complete gzip file; "


def more_labels_than_images(root):
    write_mnist(root)
    (root / "train-labels-idx1-ubyte").write_bytes(idx(digits(13)[1]))
    return root / "train-labels-idx1-ubyte", "expected 12 labels, as many as train-images-idx3-ubyte has; got 13"


def idx_of_two_sizes(root):
    write_idx(root, "train", *digits(12, size=28))
    write_idx(root, "t10k", *digits(6, size=32))
    return root, "expected test images of 28 x 28 as in the training set, found 32 x 32"


def label_only_in_test(root):
    write_idx(root, "train", *digits(12, classes=3))
    write_idx(root, "t10k", *digits(6, classes=4))
    return root, "expected every class of the test set in the training set too; 3 is not"


def class_folder_only_in_test(root):
    write_images(root / "train", {"cat": 2, "dog": 2})
    write_images(root / "test", {"cat": 1, "emu": 1})
    return root, "expected every class of the test set in the training set too; emu is not"


def one_class(root):
    write_images(root, {"cat": 4})
    return root, "expected two classes or more, found only cat"


def one_image_in_a_class(root):
    write_images(root, {"cat": 4, "dog": 1})
    return root / "dog", "expected two images or more, one of them for testing; found 1"


def class_folder_without_images(root):
    write_images(root, {"cat": 4})
    (root / "dog").mkdir()
    (root / "dog" / "dog.txt").write_text("woof")
    return root / "dog", "no images (.bmp .gif "


def empty_test_folder(root):
    write_images(root / "train", {"cat": 2, "dog": 2})
    (root / "test").mkdir()
    return root / "test", "no data found; expected"


def not_an_image(root):
    write_images(root, {"cat": 4, "dog": 4})
    (root / "cat" / "9.png").write_bytes(b"not an image at all")
    return root / "cat" / "9.png", "expected an image that Pillow can read; cannot identify image file"


def truncated_image(root):
    write_images(root, {"cat": 4, "dog": 4}, size=(64, 64))
    path = root / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:2000])
    return path, "expected an image that Pillow can read; "


def sixteen_bit_image(root):
    write_images(root, {"cat": 4, "dog": 4})
    Image.new("I;16", (8, 8), 4000).save(root / "cat" / "9.png")
    return root / "cat" / "9.png", "expected an image that Pillow can read; got more than 8 bits per channel"


REFUSED = [
    no_folder,
    a_file,
    empty_folder,
    only_other_files,
    missing_idx_file,
    wrong_magic,
    images_where_labels_belong,
    empty_idx_file,
    truncated_idx,
    truncated_idx_header,
    too_long_idx,
    no_images_in_idx,
    truncated_gzip,
    damaged_gzip,
    more_labels_than_images,
    idx_of_two_sizes,
    label_only_in_test,
    class_folder_only_in_test,
    one_class,
    one_image_in_a_class,
    class_folder_without_images,
    empty_test_folder,
    not_an_image,
    truncated_image,
    sixteen_bit_image,
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(vision, tmp_path, capsys, case):
    path, expected = case(tmp_path)
    folder = path if case in (no_folder, a_file) else tmp_path
    with pytest.raises(SystemExit) as stopped:
        vision.main(["--data-dir", str(folder)])
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert f": {path}: " in output.err
    assert expected in output.err
