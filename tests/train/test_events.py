"""TensorBoard's format, down to its checksums."""

from __future__ import annotations

import struct

import pytest

from mindmodel.train.events import EventFile, masked_crc


def unmasked(crc: int) -> int:
    crc = crc - 0xA282EAD8 & 0xFFFFFFFF
    return (crc << 15 | crc >> 17) & 0xFFFFFFFF


@pytest.mark.parametrize(
    "data, crc", [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"", 0)]
)
def test_the_checksum_is_crc32c(data, crc):
    """The check value of the polynomial, and RFC 3720's appendix B.4."""
    assert unmasked(masked_crc(data)) == crc


def records(path) -> list[bytes]:
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_a_new_run_begins_with_the_version_and_goes_on_with_scalars(tmp_path):
    events = EventFile(tmp_path / "events", first_step=1)
    events.add(300, {"loss": 1.5})
    version, scalars = records(events.path)
    assert version[9:] == b"\x1a\x0dbrain.Event:2"
    value = b"\x0a\x04loss\x15" + struct.pack("<f", 1.5)
    summary = bytes([0x0A, len(value)]) + value
    assert scalars[9:] == b"\x10\xac\x02\x2a" + bytes([len(summary)]) + summary
    events.close()


def test_a_run_that_goes_on_tells_tensorboard_what_to_drop(tmp_path):
    events = EventFile(tmp_path, first_step=5)
    assert records(events.path)[1][9:] == b"\x10\x05\x3a\x02\x08\x01"
    events.close()


def test_a_row_is_on_disk_when_it_was_added(tmp_path):
    events = EventFile(tmp_path, first_step=1)
    before = len(records(events.path))
    events.add(1, {"loss": 1.0, "lr": 0.1})
    assert len(records(events.path)) == before + 1
    events.close()
