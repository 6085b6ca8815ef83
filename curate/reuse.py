"""What was made before and what is asked for now: in which entries they differ, in words.

Nothing is used again that is not the same: other options, weights, code or bytes make it anew, or are refused. These
are the words that say which of them it was.
"""

import re
from collections.abc import Mapping

from curate.errors import one_line

__all__ = ["anew", "differences"]

_MOST = 5  # differences that are named


def differences(found: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """ "rate 0.001, not 0.002; ..." for the entries in which two mappings differ, hashes cut short; empty for none.

    What is not there is said in words: "no validation, not a71f307f...", "validation a71f307f..., not none".
    """
    keys = _differing(found, asked)
    named = [f"{_entry(key, found.get(key))}, not {_short(asked.get(key))}" for key in keys[:_MOST]]
    more = [f"and {len(keys) - _MOST} more"] if len(keys) > _MOST else []
    return one_line("; ".join(named + more))


def anew(label: str, found: Mapping[str, Mapping[str, object]], asked: Mapping[str, object]) -> str:
    """Why `label` is made anew although `found` (name -> entries) is there: how the nearest one differs.

    Empty if nothing is there, or the very same.
    """
    if not found or asked in found.values():
        return ""
    nearest = min(found, key=lambda name: len(_differing(found[name], asked)))
    return one_line(f"{label} is made anew: {nearest} has {differences(found[nearest], asked)}")


def _differing(found: Mapping[str, object], asked: Mapping[str, object]) -> list[str]:
    return [key for key in {**asked, **found} if found.get(key) != asked.get(key)]


def _entry(key: str, value: object) -> str:
    return f"no {key}" if value is None else f"{key} {_short(value)}"


def _short(value: object) -> object:
    """The first 8 digits of a hash, none for nothing; anything else as it is."""
    if value is None:
        return "none"
    return f"{value[:8]}..." if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,}", value) else value
