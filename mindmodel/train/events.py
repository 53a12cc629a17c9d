"""TensorBoard event files, on disk at once and without a thread: a killed run's are whole, a full disk is noticed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Mapping


class EventFile:
    """A new event file in a folder. TensorBoard shows those of a folder as one.

    Args:
        folder: made when it is missing.
        first_step: the step that comes next; above 1, TensorBoard drops what earlier files say of it and of later ones.

    Raises:
        OSError: as the system reports it; from `add` too.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # here, not at the top: it takes seconds, and breaks MindSpore's protobuf files when it is loaded before them
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if first_step > 1:
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=log))
        self._writer.flush()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event with all scalars of a step."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        summary = self._summary(value=values)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
