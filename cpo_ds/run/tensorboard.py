"""Writes TensorBoard's event files without a thread, so that a failed write raises at once.

TensorBoard's own writer has a thread, which prints a stack trace and ends on a full disk.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
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

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Appends a text of a step, in Markdown."""
        content = TensorProto(
            dtype=DT_STRING, string_val=[text.encode("utf-8", "backslashreplace")]
        )
        content.tensor_shape.dim.add(size=1)
        plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=tag, metadata=plugin, tensor=content)
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def _write(self, event: Event) -> None:
        """Writes one event through to the system, so that nothing is lost if the run is killed."""
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def as_markdown(samples: Sequence[Mapping[str, Any]]) -> str:
    """The texts of samples as blocks that Markdown leaves as they are."""
    blocks = []
    for sample in samples:
        lines = [f"{name}: {value}" for name, value in sample.items() if name != "step"]
        blocks.append("\n".join(f"    {line}" for text in lines for line in text.splitlines()))
    return "\n\n---\n\n".join(blocks)
