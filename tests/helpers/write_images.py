"""Writers of tiny image data sets in the formats that examples/vision_data.py reads, and that module itself."""

import gzip
import pickle
import struct

import numpy as np
from helpers.run_example import example, refused
from PIL import Image

RANDOM = np.random.default_rng(0)
KINDS = {"images": 3, "labels": 1}
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def refuses(case, root, capsys, monkeypatch):
    """Runs examples/vision.py on what ``case`` has spoilt: one line, which names the path, and status 2."""
    path, expected = case(root)
    monkeypatch.chdir(root)
    folder = path if case.__name__ in ("no_folder", "a_file", "an_image") else root
    line = refused(example("vision"), ["--data-dir", str(folder)], capsys)
    assert f": {path}: " in line
    assert expected in line


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


def record(image, label):
    return bytes([label]) + image.tobytes()


def cifar(count, classes=10):
    images = RANDOM.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, [i % classes for i in range(count)]


def write_cifar(folder, binary=False, **fields):
    """Six batches of ten images; `fields` go into the pickles."""
    halves = {"train": cifar(50), "test": cifar(10)}
    for half, (images, labels) in halves.items():
        for i, name in enumerate(BATCHES[half]):
            part, names = images[10 * i : 10 * i + 10], labels[10 * i : 10 * i + 10]
            if binary:
                (folder / f"{name}.bin").write_bytes(b"".join(map(record, part, names)))
            else:
                batch = {b"batch_label": b"one of five", b"data": part.reshape(10, -1), b"labels": names, **fields}
                (folder / name).write_bytes(pickle.dumps(batch, protocol=3))
    return halves


def short(text):
    return b"U" + bytes([len(text)]) + text


def of_python_2(images, labels):
    """A batch as Python 2 and an old NumPy pickled it: text is bytes, and modules have their former names."""
    shape = b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    kind = (
        b"cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + short(b"|")
        + b"NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    pixels = b"T" + struct.pack("<I", images.size) + images.tobytes()
    array = new + b"(K\x01" + shape + kind + b"\x89" + pixels + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + numbers + b"u."
