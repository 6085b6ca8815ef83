"""The page: one HTML file from a template that escapes all it is given, with its style, script and pictures in it.

Names come from other people's files. Each is one printable line (`one_line`) before it is escaped, so that no control
character, no line break and no reversed writing gets through; only markup made here is marked as such.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from curate import __version__
from curate.errors import one_line
from curate.reporting.figures import COLOURS
from curate.reporting.words import decimal, number, percent, plural

__all__ = ["DARK", "render"]

_FOLDER = Path(__file__).parent
DARK = {
    "ink": "#e5e8ed",
    "soft": "#9aa3b2",
    "line": "#333a46",
    "bar": "#4c5464",
    "paper": "#14171c",
    "c0": "#5ab4e6",
    "c1": "#f28c4b",
    "c2": "#3fc79f",
    "c3": "#e3a9c8",
    "c4": "#dcb63f",
    "c5": "#a5daf7",
    "wash": "#1f242c",
}


def render(content: Mapping[str, Any]) -> str:
    """The page with this content, which names what `page.html` shows."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,
    )
    script = (_FOLDER / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        **content,
        decimal=decimal,
        number=number,
        percent=percent,
        plural=plural,
        version=__version__,
        style=Markup(_style()),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _style() -> str:
    text = (_FOLDER / "page.css").read_text("utf-8")
    for place, colours in (("__LIGHT__", COLOURS), ("__DARK__", DARK)):
        text = text.replace(place, " ".join(f"--{role}: {colour};" for role, colour in colours.items()))
    return text
