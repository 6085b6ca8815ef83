"""Pictures of a search, as SVG text: how its shares moved, the network that it found, and who found what.

An operation's kind is its line's dash and its colour, its size the shade; a cell's outputs have one colour and one dash
too. So both can be told apart in grey.

Axes in names: T steps, L mixed layers, O operations, J inputs that a cell may take.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curate.errors import short
from curate.genotype import CELLS, CHOOSING, LAYERS, OPERATIONS, Genotype
from curate.plot import page
from curate.reporting.figures import COLOURS

__all__ = ["agreement", "architecture", "genotype"]

_WIDTH = 1080  # px
_LINE = 13  # px from one line of small text to the next
_INK, _SOFT, _FAINT = COLOURS["ink"], COLOURS["soft"], COLOURS["line"]

Floats = npt.NDArray[np.floating]
Point = tuple[float, float]


class _Pen(NamedTuple):
    colour: str
    dash: str = ""  # as SVG has it; nothing: an unbroken line

    def stroke(self, width: float) -> str:
        """Attributes of a line of so many px."""
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'fill="none" stroke="{self.colour}" stroke-width="{width}"{dash}'


_SHADES = {"conv": "#4292c6 #2171b5 #0b4a86 #06223f", "sep": "#d9731a #b04a08 #6e2c00", "dil": "#2c9a68 #0a5a38"}
_DASHES = {"conv": "", "sep": "7 3", "dil": "2 2"}
_KINDS = [name.partition("_")[0] for name in OPERATIONS]
_OPERATION = {
    name: _Pen(_SHADES[kind].split()[_KINDS[:place].count(kind)], _DASHES[kind])
    for place, (name, kind) in enumerate(zip(OPERATIONS, _KINDS, strict=True))
}
_OUTPUT = {  # of a cell
    cell: _Pen(COLOURS[f"c{cell - 1}"], dash) for cell, dash in enumerate(("", "7 3", "2 2", "9 3 2 3", "4 4"), start=1)
}


# ---- how the shares moved

_POINTS = 300  # along a line
_LEFT, _HEIGHT = 42, 156  # px: before a panel's lines, and of them
_GAP = 66  # px from the lines of one row of panels to those of the next


def architecture(
    steps: Sequence[int], alpha_TLO: Floats, betas: Mapping[int, Floats], warmup: int | None = None
) -> str:
    """An SVG page: a panel a mixed layer, and one a cell that chooses its inputs, with all shares over the steps.

    `alpha_TLO` and the values of `betas` (cell -> shares_TJ) are those after softmax, a row for each of `steps`, of
    which there is at least one. The strong lines end highest: one operation, two inputs. `warmup` is the step at which
    the architecture is first changed. Without `betas` there is one row of panels.
    """
    layers = [
        _Panel(f"layer {number + 1}", alpha_TLO[:, number], OPERATIONS, tuple(_OPERATION.values()), 1)
        for number in range(LAYERS)
    ]
    cells = [
        _Panel(f"inputs of cell {cell}", betas[cell], [f"cell {one}" for one in _OUTPUT], tuple(_OUTPUT.values()), 2)
        for cell in CHOOSING
        if cell in betas
    ]
    note = "Share of each operation in a mixed layer, and of each input of a cell, by step; the strong ones are chosen."
    key = "Operations: conv solid, sep dashed, dil dotted; the darker, the larger."
    parts = [_text(10, 20, note), _text(10, 20 + _LINE + 2, key, colour=_SOFT)]
    top = 82
    for row in filter(None, (layers, cells)):
        for place, panel in enumerate(row):
            # Layers compare with each other; cells do not, for the more inputs, the smaller the shares.
            scale = _Scale.of([other.shares_TO for other in (layers if row is layers else [panel])])
            parts += panel.drawn(steps, warmup, scale, _WIDTH * place // len(row), top, _WIDTH // len(row))
        top += _HEIGHT + _GAP
    return page(_WIDTH, top - _GAP + 28, parts)


class _Scale(NamedTuple):
    """Shares that the lines of one panel or more run between."""

    low: float
    high: float

    @classmethod
    def of(cls, shares: Sequence[Floats]) -> "_Scale":
        low = min(float(part.min()) for part in shares)
        high = max(float(part.max()) for part in shares)
        margin = max(0.05 * (high - low), 0.002)
        return cls(0.0 if low < high / 2 else low - margin, high + margin)


class _Panel(NamedTuple):
    title: str
    shares_TO: Floats
    names: Sequence[str]  # of the lines: at least as many as there are
    pens: Sequence[_Pen]
    choose: int

    def drawn(
        self, steps: Sequence[int], warmup: int | None, scale: _Scale, left: int, top: int, width: int
    ) -> list[str]:
        """Its elements; `left` is the panel's edge, `top` that of its lines."""
        first, last = steps[0], steps[-1]
        start, bottom = left + _LEFT, top + _HEIGHT
        wide = width - _LEFT - 14 - 7.5 * (max(map(len, self.names)) + 8)  # what the names and their shares leave

        def x(step: float) -> float:
            return start + wide * ((step - first) / (last - first) if last > first else 0.5)

        def y(share: float) -> float:
            return bottom - _HEIGHT * (share - scale.low) / (scale.high - scale.low)

        parts = [_text(start, top - 14, self.title, weight="bold")]
        for share in _ticks(scale.low, scale.high, 5):
            parts.append(_line([(start, y(share)), (start + wide, y(share))], _Pen(_FAINT), 1))
            parts.append(_text(start - 5, y(share) + 4, _percent(share), 10, "end", _SOFT))
        for step in _ticks(first, last, 4 if wide > 180 else 2, least=1):
            parts.append(_line([(x(step), bottom), (x(step), bottom + 4)], _Pen(_SOFT), 1))
            parts.append(_text(x(step), bottom + 15, f"{step:,.0f}", 10, "middle", _SOFT))
        if warmup is not None and first <= warmup <= last:
            parts.append(_line([(x(warmup), top), (x(warmup), bottom)], _Pen(_SOFT, "1 3"), 1.2))
            anchor = "start" if x(warmup) < start + wide / 2 else "end"
            parts.append(_text(x(warmup), top - 2, "warm-up ends", 9, anchor, _SOFT))

        ends = self.shares_TO[-1]
        chosen = np.argsort(-ends, kind="stable")[: self.choose]
        kept = np.unique(np.linspace(0, len(steps) - 1, _POINTS).round().astype(int))
        levels = _apart([y(float(share)) for share in ends], top, bottom - 6)
        for place in [*(place for place in range(len(ends)) if place not in chosen), *chosen]:  # strong ones on top
            name, pen, strong = self.names[place], self.pens[place], place in chosen
            points = [(x(steps[t]), y(float(self.shares_TO[t, place]))) for t in kept]
            parts.append(_line(points, pen, 3 if strong else 1.3, name))
            (end, height), level = points[-1], levels[place]
            parts.append(_dot(end, height, 4 if strong else 2.2, pen.colour))
            edge = start + wide
            parts.append(_line([(end, height), (edge + 6, level), (edge + 12, level)], _Pen(pen.colour), 0.6))
            label = f"{name} {_percent(float(ends[place]), 1)}"
            parts.append(_text(edge + 14, level + 4, label, 11, colour=pen.colour, weight="bold" if strong else ""))
        return parts


def _apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights for as many lines of text, none closer to the next than a line, as near as can be to those wanted."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    groups: list[list[float]] = []  # of neighbours that touch: where each would have the first line of all
    for rank, place in enumerate(order):
        groups.append([wanted[place] - rank * _LINE])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    room = bottom - (len(wanted) - 1) * _LINE
    starts = [min(max(fmean(group), top), room) for group in groups for _ in group]
    heights = {place: starts[rank] + rank * _LINE for rank, place in enumerate(order)}
    return [heights[place] for place in range(len(wanted))]


def _ticks(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """Round numbers from `low` to `high`, `least` or more apart: `most` and one at most. If these are one, that."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    size = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    size = max(size, least)
    return [round(size * count, 9) for count in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _percent(share: float, digits: int | None = None) -> str:
    return f"{100 * share:.{digits}f} %" if digits is not None else f"{round(100 * share, 6):g} %"


# ---- the network

_BOX = 32  # px, height of a box
_CELL = 74  # px, width of a cell
_FIRST = 198  # px, left edge of the first cell
_NEXT = 94  # px from one cell to the next


def genotype(found: Genotype, title: str = "") -> str:
    """An SVG page: which cells give to which, and below it what is in each cell."""
    highest = max(cell - one for cell, chosen in zip(CHOOSING, found.inputs, strict=True) for one in chosen)
    middle = 66 + _rise(highest) + _BOX // 2
    parts = [_text(10, 22, short(title, 100) or found.name, 14, weight="bold")]
    parts.append(_text(10, 40, "The network. Several inputs of a cell are joined by a 1x1 conv.", colour=_SOFT))
    parts += _network(found, middle)
    parts.append(
        _text(10, middle + 122, "Each of the six cells: the same operations, weights of its own.", colour=_SOFT)
    )
    parts += _inside(found.operations, middle + 190)
    return page(_WIDTH, middle + 304, parts)


def _rise(distance: int) -> int:
    """Px above the cells of an arc from one to another so far along; an arrow between neighbours is level."""
    return 0 if distance == 1 else 24 * distance - 18


def _network(found: Genotype, middle: int) -> list[str]:
    inputs: dict[int, tuple[int, ...]] = {1: (), 2: (1,), **dict(zip(CHOOSING, found.inputs, strict=True))}
    left = {cell: _FIRST + _NEXT * (cell - 1) for cell in inputs}
    top, bottom = middle - _BOX // 2, middle + _BOX // 2
    parts = []
    for cell, chosen in inputs.items():
        said = f"of {', '.join(map(str, chosen))}" if chosen else "of the conv"
        parts += _box(left[cell], middle, _CELL, f"cell {cell}", said, bold=True)

    far = {
        (one, cell): _OUTPUT[one] for cell, chosen in inputs.items() for one in chosen if cell - one > 1
    }  # by arcs that lie in each other: the longest starts first and ends last
    for (one, cell), pen in far.items():
        leaving = sorted((other for source, other in far if source == one), reverse=True)
        coming = sorted((other for other, target in far if target == cell), reverse=True)
        start = left[one] + _CELL / 2 + _port(leaving.index(cell), len(leaving))
        end = left[cell] + _port(coming.index(one), len(coming))
        rise = _rise(cell - one)
        path = f"M{start:.1f} {top}A{(end - start) / 2:.1f} {rise} 0 0 1 {end:.1f} {top}"
        parts.append(f'<path d="{path}" {pen.stroke(1.8)}>{_title(f"cell {one} to cell {cell}")}</path>')
        parts.append(_head((end, top - 1), (end, top), pen.colour))
    for cell, chosen in inputs.items():
        if cell - 1 in chosen:
            said = f"cell {cell - 1} to cell {cell}"
            parts += _arrow([(left[cell - 1] + _CELL, middle), (left[cell], middle)], _OUTPUT[cell - 1], said, 1.8)

    # Before and behind the cells
    image, conv, joint = 10, 76, _FIRST + _NEXT * CELLS + 8
    fused, total, up, sr = joint + 72, joint + 138, joint + 156, joint + 240
    parts += _box(image, middle, 40, "LR")
    parts += _arrow([(image + 40, middle), (conv, middle)], _Pen(_SOFT))
    parts += _box(conv, middle, 70, "conv 3x3")
    parts += _arrow([(conv + 70, middle), (left[1], middle)], _Pen(_SOFT), "conv to cell 1")
    bus = bottom + 24
    for cell in inputs:
        centre = left[cell] + _CELL / 2
        parts.append(_line([(centre, bottom), (centre, bus)], _Pen(_SOFT), 1.2, f"cell {cell} to the joint"))
        parts.append(_dot(centre, bus, 2.2, _SOFT))
    parts += _arrow([(left[1] + _CELL / 2, bus), (joint + 29, bus), (joint + 29, bottom)], _Pen(_SOFT))
    parts.append(_text(left[1] + _CELL / 2 + 8, bus - 5, "all six outputs", 10, colour=_SOFT))
    parts += _box(joint, middle, 58, "conv 1x1", "joins")
    parts += _arrow([(joint + 58, middle), (fused, middle)], _Pen(_SOFT))
    parts += _box(fused, middle, 48, "conv", "3x3")
    parts += _arrow([(fused + 48, middle), (total - 7, middle)], _Pen(_SOFT))
    parts += _plus(total, middle)
    skip = bus + 26
    parts += _arrow(
        [(conv + 35, bottom), (conv + 35, skip), (total, skip), (total, middle + 7)], _Pen(_SOFT), "conv to the sum"
    )
    parts.append(_text(left[1] + _CELL / 2 + 8, skip - 5, "the first maps, added", 10, colour=_SOFT))
    parts += _arrow([(total + 7, middle), (up, middle)], _Pen(_SOFT))
    parts += _box(up, middle, 68, "conv 3x3", "shuffle")
    parts += _arrow([(up + 68, middle), (sr, middle)], _Pen(_SOFT))
    parts += _box(sr, middle, 40, "SR")
    return parts


def _port(place: int, ports: int) -> float:
    """Px into half a cell's width of one of so many ends of lines."""
    return _CELL / 2 * (place + 1) / (ports + 1)


def _inside(operations: Sequence[str], middle: int) -> list[str]:
    """A cell: the operations in a row, what is set aside below it, and the way out to the right."""
    grey, bottom = _Pen(_SOFT), middle + _BOX // 2
    half = middle + 66  # middle of the boxes of the halves
    bus = half + _BOX // 2 + 18
    parts = [*_box(10, middle, 52, "input")]
    end = 62.0
    taps = [96.0 + 190 * number for number in range(LAYERS + 1)]
    for number, (tap, name) in enumerate(zip(taps, operations, strict=False), start=1):
        box, total = tap + 34, tap + 154
        parts += _arrow([(end, middle), (box, middle)], grey)
        parts.append(_dot(tap, middle, 2.6, _SOFT))
        parts += _box(box, middle, 86, name, f"layer {number}", bold=True, pen=_OPERATION[name])
        parts += _arrow([(box + 86, middle), (total - 7, middle)], grey)
        around = [(tap + 14, middle), (tap + 14, bottom - _BOX - 14), (total, bottom - _BOX - 14), (total, middle - 7)]
        parts.append(_dot(tap + 14, middle, 2.6, _SOFT))
        parts += _arrow(around, grey)
        parts += _plus(total, middle)
        end = total + 7
    parts.append(_line([(end, middle), (taps[-1], middle)], grey, 1.2))
    for number, tap in enumerate(taps):
        kernel = "conv 1x1" if number < LAYERS else "conv 3x3"
        parts += _arrow([(tap, middle), (tap, half - _BOX // 2)], grey)
        parts += _box(tap - 38, half, 76, kernel, "half the maps")
        parts.append(_line([(tap, half + _BOX // 2), (tap, bus)], grey, 1.2))
    joint = taps[-1] + 90
    parts += _arrow([(taps[0], bus), (joint + 29, bus), (joint + 29, half + _BOX // 2)], grey)
    parts += _box(joint, half, 58, "conv 1x1", "joins")
    parts += _arrow([(joint + 58, half), (joint + 86, half)], grey)
    parts += _box(joint + 86, half, 62, "ESA", "attention")
    parts += _arrow([(joint + 148, half), (joint + 176, half)], grey)
    parts += _box(joint + 176, half, 56, "output")
    return parts


# ---- who found what

_SEEN = 110  # px, width of an operation


def agreement(names: Sequence[str], operations: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """An SVG page: what each search found, a row a seed, under the names of what was searched on.

    `operations` has for each of `names` the three operations of every seed. The first name is the reference: marked
    is what equals the operation that most of its seeds have in that layer, of several the first of `OPERATIONS`.
    """
    reference = [_majority(found[layer] for found in operations[names[0]]) for layer in range(LAYERS)]
    start = 220
    parts = [_text(start + _SEEN * (layer + 0.5), 20, f"layer {layer + 1}", anchor="middle") for layer in range(LAYERS)]
    top = 30.0
    for name in names:
        parts.append(_text(10, top + 18, short(name, 20), weight="bold"))
        for seed, found in enumerate(operations[name]):
            middle = top + 14
            alike = [one == wanted for one, wanted in zip(found, reference, strict=True)]
            parts.append(_text(start - 8, middle + 4, f"seed {seed}", 10, "end", _SOFT))
            for layer, one in enumerate(found):
                left = start + _SEEN * layer + 2
                parts += _box(left, middle, _SEEN - 4, one, pen=_OPERATION[one], height=22)
                if alike[layer]:
                    parts.append(f'<circle cx="{left + 11}" cy="{middle:.1f}" r="4" {_Pen(_INK).stroke(2)}/>')
            parts.append(_text(start + _SEEN * LAYERS + 8, middle + 4, f"{sum(alike)} of {LAYERS}", 11, colour=_SOFT))
            top += 26
        top += 10
    parts.append(
        _text(10, top + 14, f"The ring marks what most searches on {short(names[0], 30)} found.", colour=_SOFT)
    )
    return page(start + _SEEN * LAYERS + 60, math.ceil(top) + 28, parts)


def _majority(found: Iterable[str]) -> str:
    counts = Counter(found)
    return max(OPERATIONS, key=lambda name: counts[name])


# ---- elements


def _text(
    x: float, y: float, text: str, size: int = 12, anchor: str = "start", colour: str = _INK, weight: str = ""
) -> str:
    more = "" if anchor == "start" else f' text-anchor="{anchor}"'
    more += f' font-weight="{weight}"' if weight else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{more}>{escape(text)}</text>'


def _title(text: str) -> str:
    """What a browser shows where the pointer rests on the element around it."""
    return f"<title>{escape(text)}</title>" if text else ""


def _line(points: Iterable[Point], pen: _Pen, width: float, title: str = "") -> str:
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{listed}" {pen.stroke(width)}>{_title(title)}</polyline>'


def _arrow(points: Sequence[Point], pen: _Pen, title: str = "", width: float = 1.2) -> list[str]:
    return [_line(points, pen, width, title), _head(points[-2], points[-1], pen.colour)]


def _head(before: Point, end: Point, colour: str) -> str:
    """The point of an arrow that comes from `before`, level or upright."""
    along = [math.copysign(1, b - a) if b != a else 0 for a, b in zip(before, end, strict=True)]
    base = [value - 7 * step for value, step in zip(end, along, strict=True)]
    across = (3.5 * along[1], 3.5 * along[0])
    corners = [end, (base[0] + across[0], base[1] + across[1]), (base[0] - across[0], base[1] - across[1])]
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" fill="{colour}"/>'


def _dot(x: float, y: float, radius: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def _plus(x: float, y: float) -> list[str]:
    pen = _Pen(_INK)
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" {pen.stroke(1.2)}/>'
    return [ring, _line([(x - 4, y), (x + 4, y)], pen, 1.2), _line([(x, y - 4), (x, y + 4)], pen, 1.2)]


def _box(
    left: float,
    middle: float,
    width: float,
    name: str,
    below: str = "",
    *,
    bold: bool = False,
    pen: _Pen | None = None,
    height: int = _BOX,
) -> list[str]:
    """A box with a name, and small words below that."""
    edge = (pen or _Pen(_INK)).stroke(2.2 if pen else 1).replace('fill="none"', 'fill="white"')
    place = f'x="{left:.1f}" y="{middle - height / 2:.1f}" width="{width}" height="{height}" rx="4"'
    parts = [f"<rect {place} {edge}/>"]
    if pen:
        parts.append(f'<rect {place} fill="{pen.colour}" fill-opacity="0.16"/>')
    centre, weight = left + width / 2, "bold" if bold else ""
    parts.append(_text(centre, middle + (-1 if below else 4), name, 11, "middle", weight=weight))
    if below:
        parts.append(_text(centre, middle + 11, below, 10, "middle", _SOFT))
    return parts
