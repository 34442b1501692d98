"""Records and their checksums are those of TensorBoard's own reader, up to the first that is damaged."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c
from written import run

from lightning_calib.tensorboard import event_records
from lightning_calib.tensorboard.event_records import checksums, records

SIZES = [0, 1, 2, 3, 4, 5, 8, 63, 64, 65, 127, 128, 129, 191, 192, 193, 1000, 4096, 20_011]


def test_checksums_are_those_of_the_standard() -> None:
    assert checksums([b"123456789"]).tolist() == [0xE3069283]
    random = np.random.default_rng(0)
    batch = [random.bytes(size) for size in SIZES for _ in range(3)] + [b"\0" * size for size in SIZES]
    assert checksums(batch).tolist() == [crc32c(one) for one in batch]
    assert checksums([]).tolist() == []


@pytest.mark.parametrize("batch", [1, 3000, 2**23])
def test_records_end_where_the_file_is_damaged_or_ends(
    tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_records, "_BATCH", batch)
    run(tmp_path, 12)
    (path,) = tmp_path.iterdir()
    whole, good = list(RawEventFileLoader(str(path)).Load()), path.read_bytes()
    assert list(records(path)) == whole
    place = sum(len(one) + 16 for one in whole[:7])
    for change in ("length", "bytes", "sum", "end"):
        data = bytearray(good)
        if change == "end":
            del data[place + 20 :]
        else:
            data[place + {"length": 1, "bytes": 20, "sum": len(whole[7]) + 13}[change]] ^= 1
        path.write_bytes(data)
        assert list(records(path)) == whole[:7], change
    path.write_bytes(b"")
    assert list(records(path)) == []
