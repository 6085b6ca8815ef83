"""How long a question may take, and how much memory: for the command line, whose process is its own.

DuckDB keeps to its memory limit and heeds an interrupt between two batches of rows. But one function on one string does
neither (`levenshtein`, `lpad` of gigabytes), nor does its planner. So a question that an interrupt does not end is
ended with its process, and the kernel refuses the process more memory than it was given.
"""

import os
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from curate.errors import UsageError, one_line

__all__ = ["check", "memory", "resident", "size", "time"]

_GRACE = 2.0  # seconds between the first interrupt and the end of the process
_INTERRUPTS = 20  # in that time
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_ROOM = 1 << 30  # bytes beside DuckDB's own limit: for answers on their way, which it does not count


def check(seconds: float | None) -> None:
    """UsageError for a time that is none."""
    if seconds is not None and not 0 < seconds <= threading.TIMEOUT_MAX:
        raise UsageError(f"--timeout should be seconds above 0, found {seconds}")


@contextmanager
def time(seconds: float | None, interrupt: Callable[[], object]) -> Iterator[None]:
    """UsageError if what is inside takes longer than `seconds` and `interrupt` ends it; or else the process ends.

    It ends with the same line on standard error and the same exit code. None: no limit.
    """
    if seconds is None:
        yield
        return
    check(seconds)
    refusal = UsageError(f"the query took longer than {seconds:g} s and was stopped; --timeout SECONDS gives it longer")
    over, late = threading.Event(), threading.Event()

    def watch() -> None:
        if over.wait(seconds):
            return
        late.set()
        for _ in range(_INTERRUPTS):  # one that comes before DuckDB has begun is lost
            interrupt()
            if over.wait(_GRACE / _INTERRUPTS):
                return
        sys.stderr.write(f"curate: {refusal}\n")
        sys.stderr.flush()
        os._exit(refusal.exit_code)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except UsageError:
        if late.is_set():
            raise refusal from None
        raise
    finally:
        over.set()
        watcher.join()


def size(text: str, option: str) -> int:
    """Bytes, as a user writes them (`256MB`, `1.5 GB`). UsageError for what is none."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) *([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{option} should be a number of bytes such as 256MB or 1GB, found '{one_line(text)}'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def resident() -> int:
    """Bytes of memory that this process has now; where the system does not say, the most that it had."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _kilobytes(status, "VmRSS") * 1024


def _kilobytes(status: Path, name: str) -> int:
    (found,) = (line.split()[1] for line in status.read_text("utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(found)


def memory(size: int | None) -> None:
    """Let this process take no more than `size` bytes and 1 GB beyond what it has now; None: no limit."""
    if size is None:
        return
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: DuckDB's own limit has to do
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _kilobytes(status, "VmData") * 1024 + size + _ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))
