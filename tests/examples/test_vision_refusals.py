"""What the loaders of the vision example refuse: IDX files and image folders with every kind of damage."""

import pytest
from helpers.write_images import digits, idx, refuses, write_cifar, write_idx, write_images, write_mnist
from PIL import Image


def no_folder(root):
    return root / "nowhere", "no such folder; expected the four IDX files of MNIST"


def a_file(root):
    (root / "data.csv").write_text("1,2,3\n")
    return root / "data.csv", "a file; give the folder of the data; expected the four IDX files of MNIST"


def an_image(root):
    write_images(root, {"cat": 2, "dog": 2})
    return root / "cat" / "0.png", "a file; give the folder of the data; expected the four IDX files of MNIST"


def parent_of_cifar(root):
    write_cifar(folder(root, "cifar-10-batches-py"))
    return root, f"found cifar-10-batches-py/data_batch_1; give the folder that has it, {root}/cifar-10-batches-py"


def parent_of_binary_cifar(root):
    write_cifar(folder(root, "cifar-10-batches-bin"), binary=True)
    return (
        root,
        f"found cifar-10-batches-bin/data_batch_1.bin; give the folder that has it, {root}/cifar-10-batches-bin",
    )


def folder_of_torchvision(root):
    write_mnist(folder(root, "MNIST/raw"), zipped=True)
    write_mnist(root / "MNIST" / "raw")  # torchvision keeps both
    return root, f"found MNIST/raw/t10k-images-idx3-ubyte; give the folder that has it, {root}/MNIST/raw"


def mnist_of_torchvision(root):
    write_mnist(folder(root, "raw"), zipped=True)
    return root, f"found raw/t10k-images-idx3-ubyte.gz; give the folder that has it, {root}/raw"


def training_and_testing(root):
    for half in ("training", "testing"):
        write_images(root / half, {"cat": 2, "dog": 2})
    return root, "found testing and training where classes were expected; name the parts of the data train and test"


def train_and_val_of_bare_images(root):
    write_images(root, {"train": 4, "val": 2, "labels": 1})
    return root, "found train and val where classes were expected; name the parts of the data train and test"


def train_alone(root):
    write_images(root / "train", {"cat": 2, "dog": 2})
    return root, "found train where classes were expected; name the parts of the data train and test"


def folder(root, name):
    (root / name).mkdir(parents=True)
    return root / name


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
    an_image,
    parent_of_cifar,
    parent_of_binary_cifar,
    folder_of_torchvision,
    mnist_of_torchvision,
    training_and_testing,
    train_and_val_of_bare_images,
    train_alone,
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
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(tmp_path, capsys, monkeypatch, case):
    refuses(case, tmp_path, capsys, monkeypatch)
