"""Records of an event file with their checksums, many at a time: TensorBoard's reader takes 0.1 s for a megabyte."""

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected
_CHUNK = 64  # bytes that go through the table one after the other
_BATCH = 8 * 2**20  # bytes of records that are checked together
_ALL = 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    """The records of a file up to the first that is damaged or not whole yet.

    Args:
        path: Of an event file: of each record its length, the length's checksum, its bytes, their checksum.
    """
    with path.open("rb") as file:
        batch, sums, size = list[bytes](), list[int](), 0
        while (one := _next(file)) is not None:
            batch.append(one[0])
            sums.append(one[1])
            size += len(one[0])
            if size >= _BATCH:
                yield from (whole := _whole(batch, sums))
                if len(whole) < len(batch):
                    return
                batch, sums, size = [], [], 0
        yield from _whole(batch, sums)


def _next(file: BinaryIO) -> tuple[bytes, int] | None:
    head = file.read(12)
    if len(head) < 12:
        return None
    length, checked = struct.unpack("<QI", head)
    if _masked(_checksum(head[:8])) != checked:
        return None
    data = file.read(length)
    end = file.read(4)
    return (data, struct.unpack("<I", end)[0]) if len(data) == length and len(end) == 4 else None


def _whole(batch: Sequence[bytes], sums: Sequence[int]) -> Sequence[bytes]:
    found = checksums(batch)
    bad = [i for i, (crc, told) in enumerate(zip(found.tolist(), sums, strict=True)) if _masked(crc) != told]
    return batch[: bad[0]] if bad else batch


def _masked(crc: int) -> int:
    """As TFRecord files hold it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & _ALL


def _checksum(data: bytes) -> int:
    """CRC-32C of a few bytes: sooner done than by arrays."""
    crc, table = _ALL, _bytewise()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _ALL


def checksums(batch: Sequence[bytes]) -> Words:
    """CRC-32C of each; those of as many chunks go together."""
    found = np.zeros(len(batch), np.uint32)
    alike: dict[int, list[int]] = {}
    for i, data in enumerate(batch):
        alike.setdefault(-(-max(4, len(data)) // _CHUNK), []).append(i)
    for chunks, places in alike.items():
        # Zeros in front change nothing where the register begins with zero; its ones go into the first four bytes.
        width = chunks * _CHUNK
        rows = np.frombuffer(b"".join(batch[i].rjust(width, b"\0") for i in places), np.uint8).reshape(-1, width).copy()
        for row, i in enumerate(places):
            first = min(4, len(batch[i]))
            rows[row, width - len(batch[i]) : width - len(batch[i]) + first] ^= 0xFF
        state = _through(rows.reshape(len(places), chunks, _CHUNK))
        short = np.array([max(0, 4 - len(batch[i])) for i in places])
        found[places] = _joined(state) ^ _ALL ^ np.where(short > 0, _ALL >> (8 * (4 - short)), 0).astype(np.uint32)
    return found


def _through(bytes_: NDArray[np.uint8]) -> Words:
    """The register after each chunk, from zero, (records, chunks)."""
    table, columns = _table(), np.ascontiguousarray(np.moveaxis(bytes_, 2, 0))
    state = np.zeros(bytes_.shape[:2], np.uint32)
    for column in columns:
        state = table[(state & 0xFF) ^ column] ^ (state >> 8)
    return state


def _joined(state: Words) -> Words:
    """One register for each record: the left of two neighbours is moved on by as many zeros as the right is long."""
    length = _CHUNK
    while state.shape[1] > 1:
        if state.shape[1] % 2:
            state = np.concatenate([np.zeros((len(state), 1), np.uint32), state], axis=1)
        left, tables = state[:, ::2], _zeros(length)
        moved = tables[0][left & 0xFF] ^ tables[1][left >> 8 & 0xFF] ^ tables[2][left >> 16 & 0xFF]
        state = moved ^ tables[3][left >> 24] ^ state[:, 1::2]
        length *= 2
    return state[:, 0]


@cache
def _table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


@cache
def _bytewise() -> tuple[int, ...]:
    return tuple(_table().tolist())


@cache
def _zeros(length: int) -> Words:
    """What so many zero bytes make of each byte of the register, (4, 256)."""
    state = (np.arange(256, dtype=np.uint32)[None] << np.arange(0, 32, 8, dtype=np.uint32)[:, None]).astype(np.uint32)
    if length == _CHUNK:
        for _ in range(length):
            state = _table()[state & 0xFF] ^ (state >> 8)
        return state
    half = _zeros(length // 2)
    for _ in range(2):
        state = half[0][state & 0xFF] ^ half[1][state >> 8 & 0xFF] ^ half[2][state >> 16 & 0xFF] ^ half[3][state >> 24]
    return state
