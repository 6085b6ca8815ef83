"""The curves of a training run: TensorBoard's event file in the run's folder and, if asked for, Weights & Biases."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from curate.errors import UsageError

__all__ = ["Curves", "draw"]


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
        from torch.utils.tensorboard.writer import SummaryWriter  # heavy: only where a run is written

        board = SummaryWriter(str(folder), purge_step=start + 1)

        def to_board(step: int, values: Mapping[str, float]) -> None:
            for tag, value in values.items():
                board.add_scalar(tag, value, step)

        writers.append(to_board)
        closing.append(board.close)

    def curves(step: int, values: Mapping[str, float]) -> None:
        for write in writers:
            write(step, values)

    try:
        yield curves
    finally:
        for close in closing:
            close()


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
