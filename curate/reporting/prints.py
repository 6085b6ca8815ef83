"""Prints: contact sheets and maps as PNG files for papers, with what a page would say around them."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from curate.errors import short
from curate.reporting.figures import COLOURS
from curate.reporting.pictures import PATCH_PX, png

__all__ = ["Bar", "Tile", "map_print", "sheet_print"]

_COLUMNS = 8
_GAP = 10  # px between pictures
_LINE = 16  # px, height of a line of text
_SMALL, _LARGE = 11, 15  # px, sizes of letters
_BAR = (160, 10)  # px, width and height of a map's scale


@dataclass(frozen=True)
class Tile:
    """One patch of a sheet."""

    picture: Image.Image
    lines: tuple[str, ...]  # below it
    out: bool  # whether it was left out
    marks: tuple[str, ...] = ()  # colours of the manifests that chose it


@dataclass(frozen=True)
class Bar:
    """The scale of a map."""

    label: str
    low: str
    high: str
    colours_N3: npt.NDArray[np.uint8]  # from low to high, as they are seen over a grey photograph


def sheet_print(title: str, words: str, tiles: Sequence[Tile]) -> bytes:
    """Pictures side by side on white, each over its lines, under a title; as a PNG file."""
    columns = max(3, min(_COLUMNS, len(tiles)))
    width = columns * (PATCH_PX + _GAP) + _GAP
    head = _wrapped(words, width - 2 * _GAP)
    top = _GAP + _LARGE + 8 + len(head) * _LINE + 6
    below = 4 + _LINE * max((len(tile.lines) for tile in tiles), default=0)
    pitch = PATCH_PX + below + _GAP
    sheet = Image.new("RGB", (width, top + -(-len(tiles) // columns) * pitch), COLOURS["paper"])
    draw = ImageDraw.Draw(sheet)
    _head(draw, title, head, width)
    for index, tile in enumerate(tiles):
        x, y = _GAP + index % columns * (PATCH_PX + _GAP), top + index // columns * pitch
        sheet.paste(tile.picture.resize((PATCH_PX, PATCH_PX)), (x, y))
        if tile.out:
            _corner(draw, x, y, "left out")
        for number, colour in enumerate(tile.marks):
            left = x + 4 + 14 * number
            draw.rectangle((left, y + PATCH_PX - 15, left + 10, y + PATCH_PX - 5), colour, "white")
        for number, line in enumerate(tile.lines):
            at = (x, y + PATCH_PX + 4 + number * _LINE)
            draw.text(at, _fitting(line, PATCH_PX), COLOURS["soft" if number else "ink"], _font(_SMALL))
    return png(sheet)


def map_print(
    title: str,
    words: str,
    pixels: npt.NDArray[np.uint8],
    lines: Iterable[tuple[int, int, int, int]],
    factor: float,
    bar: Bar,
) -> bytes:
    """A picture with lines drawn on it, over the scale of its colours, as a PNG file.

    Lines are in px of the picture before it was scaled by `factor`.
    """
    picture = Image.fromarray(pixels)
    over = ImageDraw.Draw(picture)
    scaled = [tuple(factor * place for place in line) for line in lines]
    for colour, width in (("white", 5), (COLOURS["c0"], 2)):
        for line in scaled:
            over.line(line, fill=colour, width=width)
    ends = ((bar.label, 8), (bar.low, 6), (bar.high, 6))
    below = _BAR[0] + sum(round(_font(_SMALL).getlength(text)) + after for text, after in ends)
    width = max(picture.width, below) + 2 * _GAP
    head = _wrapped(words, width - 2 * _GAP)
    top = _GAP + _LARGE + 8 + len(head) * _LINE + 6
    sheet = Image.new("RGB", (width, top + picture.height + 2 * _GAP + _LINE), COLOURS["paper"])
    draw = ImageDraw.Draw(sheet)
    _head(draw, title, head, width)
    sheet.paste(picture, (_GAP, top))
    x, y = _GAP, top + picture.height + _GAP
    for text, after in ends[:2]:
        draw.text((x, y), text, COLOURS["ink"], _font(_SMALL))
        x += round(_font(_SMALL).getlength(text)) + after
    ramp = Image.fromarray(np.broadcast_to(bar.colours_N3, (1, *bar.colours_N3.shape)).copy())
    sheet.paste(ramp.resize(_BAR, Image.Resampling.BILINEAR), (x, y + 2))
    draw.text((x + _BAR[0] + 6, y), bar.high, COLOURS["ink"], _font(_SMALL))
    return png(sheet)


def _head(draw: ImageDraw.ImageDraw, title: str, words: Iterable[str], width: int) -> None:
    draw.text((_GAP, _GAP), _fitting(title, width - 2 * _GAP, _LARGE), COLOURS["ink"], _font(_LARGE))
    for number, line in enumerate(words):
        draw.text((_GAP, _GAP + _LARGE + 8 + number * _LINE), line, COLOURS["soft"], _font(_SMALL))


def _corner(draw: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    width = round(_font(_SMALL).getlength(text)) + 8
    draw.rectangle((x, y + PATCH_PX - _LINE, x + width, y + PATCH_PX), COLOURS["paper"])
    draw.text((x + 4, y + PATCH_PX - _LINE + 1), text, COLOURS["ink"], _font(_SMALL))
    draw.rectangle((x, y, x + PATCH_PX - 1, y + PATCH_PX - 1), outline=COLOURS["soft"])


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of no more than a width in px, about."""
    return textwrap.wrap(text, max(20, int(width / (0.58 * _SMALL))))


def _fitting(text: str, width: int, size: int = _SMALL) -> str:
    """A line of no more than a width in px, cut in its middle."""
    limit = len(text)
    while limit > 3 and _font(size).getlength(short(text, limit)) > width:
        limit -= 1
    return short(text, limit)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own font, which is the same wherever it is installed."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
