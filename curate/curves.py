"""The curves of a training run: TensorBoard's event file in the run's folder and, if asked for, Weights & Biases."""

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from curate.errors import UsageError

__all__ = ["Curves", "draw"]

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class Curves(Protocol):
    """Called as `curves(step, {"train/loss": 0.1})`."""

    def __call__(self, step: int, values: Mapping[str, float]) -> None: ...


@contextmanager
def draw(
    folder: Path | None, *, start: int = 0, project: str | None = None, name: str = "", settings: Mapping[str, Any]
) -> Iterator[Curves]:
    """Write the curves of a run that goes on after step `start`; points beyond it, of a killed run, are dropped.

    Without a folder nothing is written there. `project` names one of Weights & Biases, `name` the run in it (the same
    name goes on with the same run). Raises UsageError if wandb is asked for and not installed.
    """
    writers: list[Curves] = []
    closing = []
    if project is not None:
        run = _wandb(project, name, folder, settings)
        writers.append(lambda step, values: run.log(dict(values), step=step))
        closing.append(run.finish)
    if folder is not None:
        events = _Events(folder, start)
        writers.append(events.add)
        closing.append(events.close)

    def curves(step: int, values: Mapping[str, float]) -> None:
        for write in writers:
            write(step, values)

    try:
        yield curves
    finally:
        for close in closing:
            close()


class _Events:
    """TensorBoard's file, written here and now.

    Its own writer has a thread for that, and what befalls that, such as a full disk, is told late and as a traceback.
    """

    def __init__(self, folder: Path, start: int) -> None:
        """A new file, which sorts after those of `folder`: TensorBoard reads them in that order, whatever the clock."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        there = [int(match[1]) for path in folder.iterdir() if (match := _EVENTS.match(path.name))]
        number = max([int(time.time()), *(number + 1 for number in there)])
        self._path = folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))  # later points are dropped

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            error.filename = str(self._path)
            raise


def _wandb(project: str, name: str, folder: Path | None, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise UsageError("--wandb needs the package wandb: pip install 'curate[wandb]'") from None
    return wandb.init(
        project=project,
        id=name,
        name=folder.name if folder else name,
        dir=folder,
        config=dict(settings),
        resume="allow",
    )
