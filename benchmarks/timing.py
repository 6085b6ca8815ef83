"""Side by side: the median seconds of several things by turns, the peak of memory of a child, the machine's name."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from curate import pool

__all__ = ["alternate", "drop_from_page_cache", "machine", "peak_memory"]

_PEAK = Path(__file__).parent / "peak.py"


def alternate(
    works: Sequence[Callable[[], object]], repeats: int, before: Callable[[], object] = lambda: None
) -> list[float]:
    """Median seconds of each; one after the other, `repeats` times over. `before` each, uncounted."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, seconds, strict=True):
            before()
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def peak_memory(*arguments: str | Path) -> float:
    """MB that a new process takes at most for a job of `peak.py`, resident."""
    done = subprocess.run([sys.executable, _PEAK, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def drop_from_page_cache(folder: Path) -> None:
    """So that the files below are read from the disk next time, where the file system heeds that."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def machine() -> str:
    """Processor, cores, GPU and versions, in one line."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    names = ("torch", "numpy", "opencv-python-headless", "pillow", "imagecodecs", "duckdb")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{_processor()}, {pool.workers()} cores, {gpu}; Python {platform.python_version()}, {versions}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
