"""A picture of a result: one dot a run, as SVG text; and the page that other such pictures stand on."""

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["dots", "page"]

_WIDTH, _ROW, _LEFT, _TOP = 640, 22, 150, 34  # px
_COLOURS = ("#1b6ca8", "#c8553d", "#4c956c", "#7a5195", "#b08900")


def dots(groups: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> str:
    """An SVG page: a panel a group, on its own scale; in it a row a name, a dot a value and a bar at their mean."""
    parts = []
    top = 10
    for number, (title, rows) in enumerate(groups.items()):
        parts += _panel(title, rows, unit, top, _COLOURS[number % len(_COLOURS)])
        top += _TOP + _ROW * len(rows) + 30
    return page(_WIDTH, top, parts)


def page(width: int, height: int, parts: Sequence[str]) -> str:
    """An SVG page of so many px: `parts`, elements as text, on white ground."""
    size = f'width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect {size} fill="white"/>', *parts, "</svg>", ""])


def _panel(title: str, rows: Mapping[str, Sequence[float]], unit: str, top: int, colour: str) -> list[str]:
    values = [value for row in rows.values() for value in row]
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 0.5
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - 20)

    bottom = top + _TOP + _ROW * len(rows) - 8
    lines = [f'<text x="10" y="{top + 14}" font-weight="bold">{escape(title)}</text>']
    for tick in (low + margin, (low + high) / 2, high - margin):
        lines.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top + 24}" y2="{bottom}" stroke="#ddd"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:.2f}</text>')
    lines.append(f'<text x="{_WIDTH - 10}" y="{top + 14}" text-anchor="end">{escape(unit)}</text>')
    for number, (name, row) in enumerate(rows.items()):
        y = top + _TOP + _ROW * number
        centre = x(sum(row) / len(row))
        lines.append(f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<line x1="{centre:.1f}" x2="{centre:.1f}" y1="{y - 8}" y2="{y + 8}" stroke="{colour}"/>')
        lines += [f'<circle cx="{x(value):.1f}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.6"/>' for value in row]
    return lines
