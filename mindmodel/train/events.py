"""TensorBoard event files, written at once and without a thread: a killed run's are readable, a full disk is noticed.

Source: TFRecord's framing, and the messages Event, Summary and SessionLog of TensorFlow's event.proto and summary.proto.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Mapping

CASTAGNOLI = 0x82F63B78  # CRC-32C's polynomial, bits reversed
MASK_DELTA = 0xA282EAD8
UINT32 = 0xFFFFFFFF

WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG = 1, 2, 3, 5, 7  # fields of Event
VALUE = 1  # field of Summary
TAG, SIMPLE_VALUE = 1, 2  # fields of Summary.Value
STATUS, START = 1, 1  # field of SessionLog, and its value when a process goes on from an earlier step
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (CASTAGNOLI if value & 1 else 0)
    return value


TABLE = tuple(_table_entry(byte) for byte in range(256))


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord masks it."""
    crc = UINT32
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= UINT32
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & UINT32


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _message(field: int, content: bytes) -> bytes:
    return _key(field, BYTES) + _varint(len(content)) + content


def _scalar(name: str, value: float) -> bytes:
    """One Summary.Value."""
    return _message(VALUE, _message(TAG, name.encode()) + _key(SIMPLE_VALUE, FIXED32) + struct.pack("<f", value))


class EventFile:
    """A new event file in a folder. TensorBoard shows those of a folder as one.

    Args:
        folder: made when it is missing.
        first_step: the step that comes next; above 1, TensorBoard drops what earlier files say of it and of later ones.

    Raises:
        OSError: as the system reports it; from `add` too.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(self.path, "wb", buffering=0)
        self._append(_message(FILE_VERSION, b"brain.Event:2"))
        if first_step > 1:
            log = _message(SESSION_LOG, _key(STATUS, VARINT) + _varint(START))
            self._append(_key(STEP, VARINT) + _varint(first_step) + log)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event with all scalars of a step."""
        values = b"".join(_scalar(name, value) for name, value in scalars.items())
        self._append(_key(STEP, VARINT) + _varint(step) + _message(SUMMARY, values))

    def _append(self, content: bytes) -> None:
        event = _key(WALL_TIME, FIXED64) + struct.pack("<d", time.time()) + content
        length = struct.pack("<Q", len(event))
        write_all(self._file, length + _packed_crc(length) + event + _packed_crc(event))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _packed_crc(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc(data))


def write_all(file, data: bytes) -> None:
    """Write to an unbuffered file, which takes only a part when the disk is nearly full; the next attempt then fails."""
    while data:
        data = data[file.write(data) :]
