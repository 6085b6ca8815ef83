"""A process in a terminal of its own.

It is begun without a fork of this process: a child of one with threads (torch's, DuckDB's) may die before its exec.
"""

import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAUNCH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C is a signal to whoever has this terminal
os.execvp(sys.argv[1], sys.argv[1:])
"""


def in_terminal(
    command: Sequence[str | Path], folder: Path | None, environment: Mapping[str, str], columns: int = 80
) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and our side of its terminal, which has 24 lines."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=dict(environment),
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours
