"""Writes TensorBoard's event files without a thread, so that a failed write raises at once.

TensorBoard's own writer has a thread, which prints a stack trace and ends on a full disk.
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
    """An event file of a run. All methods raise `OSError` if it cannot be written."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Opens a new file in `folder`; steps after `first_step` in older files are hidden."""
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        if first_step:  # TensorBoard then drops later steps that older files hold
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, step=first_step + 1, session_log=restart))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends the scalars of a step by their tags, such as `train/loss`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        """Writes one event through to the system, so that nothing is lost if the run is killed."""
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
