"""The curves of a training run: TensorBoard's event file in the run's folder and, if asked for, Weights & Biases."""

import io
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from curate.errors import UsageError
from curate.tensors import to_pixels

__all__ = ["Curves", "Picture", "draw"]

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class Curves(Protocol):
    """Called as `curves(step, {"train/loss": 0.1})`."""

    def __call__(self, step: int, values: "Mapping[str, float | Picture]") -> None: ...


@dataclass(frozen=True)
class Picture:
    """A point of a curve that is to be looked at."""

    png: bytes
    height: int  # px
    width: int

    @classmethod
    def sheet(cls, patches_BCHW: Tensor, columns: int) -> "Picture":
        """Patches (float, sRGB in [0, 1], what is beyond is cut off) in rows of `columns`, a pixel of white between."""
        rows = -(-len(patches_BCHW) // columns)
        height, width = patches_BCHW.shape[2:]
        sheet_HWC = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, np.uint8)
        for number, patch_CHW in enumerate(patches_BCHW.detach().cpu()):
            y, x = number // columns * (height + 1), number % columns * (width + 1)
            pixels_CHW = (patch_CHW.clamp(0, 1) * 255).round().to(torch.uint8)
            sheet_HWC[y : y + height, x : x + width] = to_pixels(pixels_CHW)
        file = io.BytesIO()
        Image.fromarray(sheet_HWC).save(file, "PNG")
        return cls(file.getvalue(), *sheet_HWC.shape[:2])


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
        writers.append(lambda step, values: run.log({name: _for_wandb(v) for name, v in values.items()}, step=step))
        closing.append(run.finish)
    if folder is not None:
        events = _Events(folder, start)
        writers.append(events.add)
        closing.append(events.close)

    def curves(step: int, values: Mapping[str, float | Picture]) -> None:
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

    def add(self, step: int, values: Mapping[str, float | Picture]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        def point(tag: str, value: float | Picture) -> Any:
            if not isinstance(value, Picture):
                return Summary.Value(tag=tag, simple_value=value)
            image = Summary.Image(height=value.height, width=value.width, colorspace=3, encoded_image_string=value.png)
            return Summary.Value(tag=tag, image=image)

        points = [point(tag, value) for tag, value in values.items()]
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


def _for_wandb(value: float | Picture) -> Any:
    if not isinstance(value, Picture):
        return value
    import wandb

    return wandb.Image(Image.open(io.BytesIO(value.png)))


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
