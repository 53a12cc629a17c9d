"""Event files as TensorBoard reads them."""

from __future__ import annotations

import struct

from mindmodel.train.events import EventFile


def events_in(folder) -> list:
    """The events of the folder's only file. The framing is TFRecord's: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_a_new_run_begins_with_the_version_and_goes_on_with_scalars(tmp_path):
    events = EventFile(tmp_path / "events", first_step=1)
    events.add(300, {"loss": 1.5, "lr": 0.25})
    version, scalars = events_in(tmp_path / "events")
    assert version.file_version == "brain.Event:2"
    assert scalars.step == 300
    assert {value.tag: value.simple_value for value in scalars.summary.value} == {"loss": 1.5, "lr": 0.25}
    events.close()


def test_a_run_that_goes_on_tells_tensorboard_what_to_drop(tmp_path):
    events = EventFile(tmp_path, first_step=5)
    start = events_in(tmp_path)[1]
    assert start.step == 5 and start.session_log.status == start.session_log.START
    events.close()


def test_a_row_is_on_disk_when_it_was_added(tmp_path):
    events = EventFile(tmp_path, first_step=1)
    before = len(events_in(tmp_path))
    events.add(1, {"loss": 1.0})
    assert len(events_in(tmp_path)) == before + 1
    events.close()
