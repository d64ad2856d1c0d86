"""TensorBoard's event files, written at once, so that an error is raised where it is made.

TensorBoard's own writer has a thread that dies of a full disk with a stack trace.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """One run's event file in a folder. All methods raise `OSError` where it cannot be written."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Opens a new file; what older ones there hold after `first_step` counts no more."""
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        if first_step:
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, step=first_step + 1, session_log=restart))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends a step's scalars by their tags."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
