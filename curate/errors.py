"""The errors that curate raises for its users.

    CurateError            anything that the user can put right; the CLI prints it as one line
      UsageError           a mistake in what was asked: option, name, column, value, path   (exit code 2)
      DataError            what is on disk is not what it should be: moved, changed, damaged (exit code 1)
      AccessError          what is at a URL cannot be reached, or not with these credentials (exit code 1)

A message says what was asked, what was found and what would be right, in one line. Bugs of ours are assertions or
whatever Python raises, and keep their traceback.
"""

import re
from collections.abc import Iterable

__all__ = ["AccessError", "CurateError", "DataError", "UsageError", "counted", "listed", "meant", "one_line", "short"]

MAX_LISTED = 20  # names listed in a message before it is cut with "and N more"


class CurateError(Exception):
    """Base of every error that is the user's to mend. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(CurateError):
    """What was asked cannot be done: an unknown name, a value out of range, a path that is not what it should be."""

    exit_code = 2


class DataError(CurateError):
    """What was found on disk is damaged, incomplete, or belongs to something else."""


class AccessError(CurateError):
    """What is at a URL cannot be reached from here, or not with the credentials that are here."""


def one_line(text: object) -> str:
    """`text` as one printable line: line breaks, terminal escapes and the like are shown as `\\x1b`, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def short(text: object, limit: int) -> str:
    """`text` as one line of at most `limit` characters, cut in its middle."""
    line = one_line(text)
    if len(line) <= limit:
        return line
    head = (limit - 1) // 2
    return re.sub(r"\s+…", "…", f"{line[:head]}…") + line[len(line) - (limit - 1 - head) :]


def listed(names: Iterable[object]) -> str:
    """Sorted names as `a, b, c`, one printable line, cut after twenty; `nothing` for none."""
    items = sorted(map(one_line, names))
    if not items:
        return "nothing"
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more


def meant(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'srcnn'?` for a name that is nearly one of the valid ones, for the end of a message; or ''."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(valid), 1)
    return f"; did you mean '{one_line(near[0])}'?" if near else ""


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`, `0 patches`."""
    many = "es" if noun.endswith(("ch", "s", "sh", "x")) else "s"
    return f"{number} {noun}{'' if number == 1 else many}"
