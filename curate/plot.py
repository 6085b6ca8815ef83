"""A picture of a result: one dot a run, as SVG text; and the page that other such pictures stand on."""

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["dots", "page", "rows"]

_WIDTH, _ROW, _LEFT, _TOP = 640, 22, 150, 34  # px
_NOTE = 230  # px, right of a panel whose rows have notes
_STEP = 8  # px between the dots of two series in a row
_COLOURS = ("#1b6ca8", "#c8553d", "#4c956c", "#7a5195", "#b08900")


def dots(groups: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> str:
    """An SVG page: a panel a group, on its own scale; in it a row a name, a dot a value and a bar at their mean."""
    parts = []
    top = 10
    for number, (title, group) in enumerate(groups.items()):
        colours = {"": _COLOURS[number % len(_COLOURS)]}
        parts += _panel(title, {name: {"": values} for name, values in group.items()}, unit, top, colours)
        top += _TOP + _ROW * len(group) + 30
    return page(_WIDTH, top, parts)


def rows(
    groups: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    unit: str,
    notes: Mapping[str, Mapping[str, str]],
    head: str,
) -> str:
    """As `dots`, where each row has several series, a colour each, and a note beside it.

    `groups` are title -> row -> series -> values, `notes` title -> row -> words, and `head` says what these are.
    """
    parts = []
    top = 10
    for title, group in groups.items():
        names = list(dict.fromkeys(name for series in group.values() for name in series))
        colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
        height = max(_ROW, _STEP * len(names) + 8)
        parts += _panel(title, group, unit, top, colours, height)
        parts.append(f'<text x="{_WIDTH}" y="{top + 14}" fill="#555">{escape(head)}</text>')
        for number, name in enumerate(group):
            y = top + _TOP + height * number + 4
            parts.append(f'<text x="{_WIDTH}" y="{y}" fill="#555">{escape(notes[title].get(name, ""))}</text>')
        x = _LEFT
        top += _TOP + height * len(group) + 24
        for name in names:
            parts.append(f'<circle cx="{x + 4}" cy="{top}" r="4" fill="{colours[name]}" fill-opacity="0.6"/>')
            parts.append(f'<text x="{x + 14}" y="{top + 4}">{escape(name)}</text>')
            x += 34 + 7 * len(name)
        top += 30
    return page(_WIDTH + _NOTE, top, parts)


def page(width: int, height: int, parts: Sequence[str]) -> str:
    """An SVG page of so many px: `parts`, elements as text, on white ground."""
    size = f'width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect {size} fill="white"/>', *parts, "</svg>", ""])


def _panel(
    title: str,
    group: Mapping[str, Mapping[str, Sequence[float]]],
    unit: str,
    top: int,
    colours: Mapping[str, str],
    height: int = _ROW,
) -> list[str]:
    """A title, an axis, and the rows of a group; `colours` of the series, in their order, `height` of a row."""
    values = [value for row in group.values() for series in row.values() for value in series]
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 0.5
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - 20)

    bottom = top + _TOP + height * len(group) - 8
    lines = [f'<text x="10" y="{top + 14}" font-weight="bold">{escape(title)}</text>']
    for tick in (low + margin, (low + high) / 2, high - margin):
        lines.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top + 24}" y2="{bottom}" stroke="#ddd"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:.2f}</text>')
    lines.append(f'<text x="{_WIDTH - 10}" y="{top + 14}" text-anchor="end">{escape(unit)}</text>')
    for number, (name, row) in enumerate(group.items()):
        middle = top + _TOP + height * number
        lines.append(f'<text x="{_LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>')
        half, pen = (8, 1) if len(colours) == 1 else (_STEP // 2, 2)
        for place, (series, colour) in enumerate(colours.items()):
            found = row.get(series, ())
            y = middle + _STEP * place - _STEP * (len(colours) - 1) // 2
            if found:
                centre = x(sum(found) / len(found))
                ends = f'x1="{centre:.1f}" x2="{centre:.1f}" y1="{y - half}" y2="{y + half}"'
                lines.append(f'<line {ends} stroke="{colour}" stroke-width="{pen}"/>')
            lines += [f'<circle cx="{x(one):.1f}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.6"/>' for one in found]
    return lines
