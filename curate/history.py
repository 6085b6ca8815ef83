"""What was asked before: a file of texts, one JSON string a line, the newest last, for nobody but its owner.

A place that cannot be read or written costs the history and nothing else.
"""

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from curate import files
from curate.errors import DataError, one_line

__all__ = ["History", "place"]

_ENTRIES = 2000  # that are kept
_BYTES = 4 << 20  # of the file's end that are looked at


def place() -> Path | None:
    """`sql_history` in the user's state folder, or what $CURATE_HISTORY says; None where that is empty."""
    named = os.environ.get("CURATE_HISTORY")
    if named is not None:
        return Path(named) if named else None
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if base.is_absolute():  # another one is to be ignored, says its specification
        return base / "curate" / "sql_history"
    with contextlib.suppress(RuntimeError):  # nobody's home
        return Path.home() / ".local" / "state" / "curate" / "sql_history"
    return None


class History:
    """`entries`, oldest first; `trouble`, if there is any, in one line.

    path None keeps nothing. The newest 2,000 stay in the file.
    """

    def __init__(self, path: Path | None) -> None:
        self.entries: list[str] = []
        self.trouble: str | None = None
        self._path = path
        if path is None:
            return
        try:
            self._open(path)
        except (OSError, DataError) as error:
            self._give_up(error)

    def add(self, text: str) -> None:
        """Keep one more, unless it is the last one again. Several processes may do so at a time."""
        if self._path is None or self.entries[-1:] == [text]:
            return
        self.entries.append(text)
        try:
            _append(self._path, _line(text))
        except OSError as error:
            self._give_up(error)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _append(path, b"")
        data = path.read_bytes() if path.stat().st_size <= _BYTES else _end(path)
        lines = data.splitlines()
        found = [_text(line) for line in lines]
        self.entries = [text for text in found if text is not None][-_ENTRIES:]
        if len(self.entries) < len(found) or path.stat().st_size > len(data):
            files.publish(path.resolve(), self._write)
        if damaged := found.count(None):
            self.trouble = f"{damaged} lines of the history '{one_line(path)}' were none, and are gone"

    def _write(self, file: BinaryIO) -> None:
        os.fchmod(file.fileno(), 0o600)
        file.writelines(map(_line, self.entries))

    def _give_up(self, error: OSError | DataError) -> None:
        reason = (isinstance(error, OSError) and error.strerror) or error
        self.trouble = f"no history: '{one_line(self._path)}': {reason}"
        self._path = None


def _append(path: Path, data: bytes) -> None:
    """Add bytes to a file that is the user's alone; made if it is not there. OSError where it is no file."""
    # Without O_NONBLOCK a pipe would wait for its reader.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a file")
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _end(path: Path) -> bytes:
    """The last whole lines of a file that is longer than any history."""
    with path.open("rb") as file:
        file.seek(-_BYTES, os.SEEK_END)
        return file.read().partition(b"\n")[2]


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _text(line: bytes) -> str | None:
    """The text that a line holds; None if it is none of ours."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None
