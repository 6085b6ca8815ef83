"""What a person and a program see: JSON, quiet."""

import io
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from curate import display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def speaking() -> Iterator[None]:
    yield
    display.quiet(False)


# Quiet, JSON


def test_quiet_leaves_answers_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    display.quiet()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with display.progress("score", "patches") as tell:
        tell(1, 2, "note")
    display.note("a note")
    display.answer("an answer")
    assert terminal.getvalue() == "" and capsys.readouterr().out == "an answer\n"


@dataclass(frozen=True)
class Inner:
    path: Path
    value: float


def test_a_record_is_json_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    display.record({"inner": [Inner(Path("a/b"), math.nan)], "pair": ("x", None), "inf": math.inf})
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"inner": [{"path": "a/b", "value": None}], "pair": ["x", None], "inf": None}
