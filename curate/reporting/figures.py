"""Figures: score curves, histograms, agreement, coverage; drawn by matplotlib, as SVG for the page and PNG for papers.

A figure for the page names its colours by role (`ink`, `c0`, ...), so that the page's style sheet can give them other
values on dark ground. Colours are Okabe and Ito's, which people with any colour vision can tell apart; lines of several
manifests differ in their dashes too.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from curate.bins import Spread
from curate.errors import short
from curate.reporting import ranks
from curate.reporting.words import decimal, number, power, slug

__all__ = [
    "COLOURS",
    "Figure",
    "agreement",
    "colour",
    "concentration",
    "curve",
    "histogram",
    "is_wide",
    "name_of",
    "scatter",
    "shares",
]

# Role -> colour on white paper. No two are alike, for the page finds them by value.
COLOURS = {
    "ink": "#1f2430",
    "soft": "#6b7280",
    "line": "#d5d8de",
    "bar": "#c3c8d1",
    "paper": "#fefefe",
    "c0": "#0072b2",
    "c1": "#d55e00",
    "c2": "#009e73",
    "c3": "#cc79a7",
    "c4": "#b58900",
    "c5": "#56b4e9",
}
_NAMES = ("blue", "orange", "green", "pink", "ochre", "light blue")  # c0 to c5
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (7, 2)), (0, (2, 2)))
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": COLOURS["ink"],
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["soft"],
    "axes.facecolor": COLOURS["paper"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": COLOURS["ink"],
    "figure.facecolor": COLOURS["paper"],
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
_SIZE = (5.4, 3.3)  # inches
_MARGINS = {"left": 0.145, "right": 0.965, "bottom": 0.135, "top": 0.97}
_PNG_DPI = 200
_BINS = 60  # of a histogram
_RANK_BINS = 100  # of the strips under a curve
_POINTS = 700  # of a scatter: few enough to stay light, many enough to show the cloud
_CURVE_POINTS = 300  # along a curve, and as many again towards each of its ends
_STRONGEST = 0.5  # opacity of a correlation of 1 or -1: ink on it can be read on light ground and on dark
_MARKERS = "^vsDP*"

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """One figure, drawn when it is asked for."""

    name: str  # file name without ending
    caption: str  # for those who cannot see it, too
    draw: Callable[[Drawing], None]
    size: tuple[float, float] = _SIZE  # inches

    def svg(self) -> str:
        """Markup to stand in a page: colours by role, text as text, no identifier that another figure has."""
        file = io.StringIO()
        self._save(file, {"svg.hashsalt": self.name}, format="svg", metadata={"Date": None})
        return _inline(file.getvalue(), self.name)

    def png(self) -> bytes:
        """The same for a paper: white ground, 200 dots an inch."""
        file = io.BytesIO()
        self._save(file, {}, format="png", dpi=_PNG_DPI, metadata={"Software": None})
        return file.getvalue()

    def _save(self, file: IO[Any], style: Any, **options: Any) -> None:
        with matplotlib.rc_context({**_STYLE, **style}), warnings.catch_warnings():
            # A label may use letters that matplotlib's own font lacks; a browser has them.
            warnings.filterwarnings("ignore", message="Glyph")
            drawing = Drawing(figsize=self.size)
            # Fixed margins: laying each figure out anew to fit its labels takes longer than drawing it.
            drawing.subplots_adjust(**_MARGINS)
            self.draw(drawing)
            drawing.savefig(file, **options)


def colour(index: int) -> str:
    """The colour of a manifest, by its place among those of a report."""
    return COLOURS[f"c{index % 6}"]


def name_of(index: int) -> str:
    """The same in a word."""
    return _NAMES[index % 6]


def is_wide(values: Floats) -> bool:
    """Whether a log axis shows more of these finite values."""
    return len(values) > 0 and Spread.of(values).wide


# ---- one score


def curve(label: str, score: Floats, candidates: Mask, chosen: Mapping[str, Mask]) -> Figure:
    """The sorted scores; shaded, each manifest that is one stretch of them; below, what each took of each rank."""
    order = ranks.descending(score, candidates)
    ordered = score[order]

    def draw(drawing: Drawing) -> None:
        rows = len(chosen)
        drawing.subplots_adjust(hspace=0.25)
        top, *strips = drawing.subplots(1 + rows, 1, sharex=True, height_ratios=[12] + [1] * rows, squeeze=False)[:, 0]
        places = _places(len(ordered))
        percent = 100 * (places + 0.5) / len(ordered)
        for index, mask in enumerate(chosen.values()):
            window = ranks.window(score, order, mask)
            if window is not None and window.unbroken:
                left, right = (100 * rank / len(ordered) for rank in (window.first, window.last + 1))
                top.axvspan(left, right, color=colour(index), alpha=0.14, lw=0)
                for edge in sorted({left, right} - {0.0, 100.0}):
                    top.axvline(edge, color=colour(index), ls=_dash(index), lw=0.9)
        top.plot(percent, ordered[places], color=COLOURS["ink"])
        _scale(top, "y", ordered)
        top.set_ylabel(_label(label), parse_math=False)
        top.grid(axis="y")
        top.set_xlim(0, 100)
        for index, (axes, (name, mask)) in enumerate(zip(strips, chosen.items(), strict=True)):
            edges, shares = ranks.share_by_rank(mask, order, _RANK_BINS)
            axes.stairs(shares, 100 * edges / len(ordered), fill=True, color=colour(index), lw=0)
            axes.set(ylim=(0, 1), yticks=[])
            axes.set_ylabel(_label(name, 12), rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="x", length=0 if index < rows - 1 else 3)
        (strips or [top])[-1].set_xlabel("patches, highest score first (%)")

    names = ", ".join(chosen)
    caption = f"{label} of {len(ordered)} patches, highest first; below, the share that {names} took at each rank"
    return Figure(f"curve-{slug(label)}", caption, draw, (_SIZE[0], _SIZE[1] + 0.16 * (len(chosen) - 1)))


def histogram(label: str, score: Floats, candidates: Mask, chosen: Mapping[str, Mask]) -> Figure:
    """How many patches have which score: all candidates, and those of each manifest."""
    finite = candidates & np.isfinite(score)

    def draw(drawing: Drawing) -> None:
        axes = drawing.subplots()
        values = score[finite]
        edges = Spread.of(values if len(values) else np.zeros(1)).edges(_BINS)
        everything = np.histogram(values, edges)[0]
        axes.stairs(everything, edges, fill=True, color=COLOURS["bar"], label="all candidates")
        for index, (name, mask) in enumerate(chosen.items()):
            counts = np.histogram(score[mask & np.isfinite(score)], edges)[0]
            if index == 0:
                axes.stairs(counts, edges, fill=True, color=colour(0), alpha=0.35)
            axes.stairs(counts, edges, color=colour(index), ls=_dash(index), lw=1.3, label=_label(name))
        _scale(axes, "x", values)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(_label(label), parse_math=False)
        _counts(axes, "patches")
        _legend(axes)

    caption = f"Histogram of {label}: all candidates, and the chosen of {', '.join(chosen)}"
    return Figure(f"histogram-{slug(label)}", caption, draw)


# ---- several scores


def agreement(labels: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> Figure:
    """Rank correlation of every score with every other."""

    def draw(drawing: Drawing) -> None:
        drawing.subplots_adjust(left=0.28, bottom=0.28, top=0.99, right=0.99)
        axes = drawing.subplots()
        values = np.array([[np.nan if value is None else value for value in row] for row in matrix])
        names = [_label(label, 20) for label in labels]
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            face, alpha = COLOURS["c0" if value >= 0 else "c1"], _STRONGEST * abs(value)
            if np.isnan(value):
                face, alpha = COLOURS["line"], 1.0
            axes.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=face, alpha=alpha, lw=0)
            axes.text(column, row, decimal(value, 2), ha="center", va="center", color=COLOURS["ink"])
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    side = min(8.0, 1.8 + 0.55 * len(labels))
    return Figure("agreement", f"Spearman's rank correlation between {', '.join(labels)}", draw, (side, side))


def scatter(one: str, other: str, x: Floats, y: Floats, chosen: Mapping[str, Mask]) -> Figure:
    """Two scores of a sample of the patches, each in the colour of the manifest that chose it."""
    there = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    sample = np.sort(np.random.default_rng(0).choice(there, min(_POINTS, len(there)), replace=False))

    def draw(drawing: Drawing) -> None:
        axes = drawing.subplots()
        for mask, ink, marker, label in _takers(chosen):
            if len(rows := sample[mask[sample]]):
                axes.plot(x[rows], y[rows], marker, ms=2.6, mew=0, alpha=0.6, color=ink, label=label)
        _scale(axes, "x", x[there])
        _scale(axes, "y", y[there])
        axes.set_xlabel(_label(one), parse_math=False)
        axes.set_ylabel(_label(other), parse_math=False)
        axes.grid()
        _legend(axes, markerscale=2)

    caption = f"{other} against {one}, {len(sample)} of {len(there)} patches"
    return Figure(f"scatter-{slug(one)}-{slug(other)}", caption, draw)


# ---- coverage


def concentration(patches: npt.NDArray[np.int64], chosen: Mapping[str, npt.NDArray[np.int64]]) -> Figure:
    """How unevenly a choice draws on the images: entries are counts of patches, and of chosen ones, of each image."""

    def draw(drawing: Drawing) -> None:
        axes = drawing.subplots()
        axes.plot([0, 100], [0, 100], color=COLOURS["soft"], lw=0.9, label="every image alike")
        for index, (name, counts) in enumerate(chosen.items()):
            order = np.argsort(-counts / patches, kind="stable")
            xs = 100 * np.r_[0, np.cumsum(patches[order])] / patches.sum()
            ys = 100 * np.r_[0, np.cumsum(counts[order])] / max(1, counts.sum())
            keep = _places(len(xs))
            axes.plot(xs[keep], ys[keep], color=colour(index), ls=_dash(index), label=_label(name))
        axes.set(xlim=(0, 100), ylim=(0, 101))
        axes.set_xlabel("all patches, most-taken images first (%)")
        axes.set_ylabel("chosen patches (%)")
        axes.grid()
        _legend(axes)

    caption = (
        "The share of the chosen patches that comes from the images most taken from. Were the same share taken of "
        "every image, it would be the straight line; the further above, the fewer images a choice lives on."
    )
    return Figure("concentration", caption, draw)


def shares(patches: npt.NDArray[np.int64], chosen: Mapping[str, npt.NDArray[np.int64]]) -> Figure:
    """Histogram of the share that a choice takes from each image."""

    def draw(drawing: Drawing) -> None:
        axes = drawing.subplots()
        edges = np.linspace(0, 100, 21)
        for index, (name, counts) in enumerate(chosen.items()):
            heights = np.histogram(100 * counts / patches, edges)[0]
            if index == 0:
                axes.stairs(heights, edges, fill=True, color=colour(0), alpha=0.35)
            axes.stairs(heights, edges, color=colour(index), ls=_dash(index), lw=1.3, label=_label(name))
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of an image's patches that was chosen (%)")
        _counts(axes, "images")
        _legend(axes)

    return Figure("shares", "How many images give which share of their patches.", draw)


# ---- what they share


def _dash(index: int) -> Any:
    return _DASHES[index % len(_DASHES)]


def _takers(chosen: Mapping[str, Mask]) -> list[tuple[Mask, str, str, str]]:
    """Who chose a patch, each with a colour, a marker and a label: nobody, one manifest alone, several."""
    count = np.sum(list(chosen.values()), axis=0)
    several = len(chosen) > 1
    nobody = "in neither" if len(chosen) == 2 else "in none" if several else f"not in {_label(next(iter(chosen)))}"
    takers = [(count == 0, COLOURS["soft"], "o", nobody)]
    for index, (name, mask) in enumerate(chosen.items()):
        marker = _MARKERS[index % len(_MARKERS)]
        takers.append((mask & (count == 1), colour(index), marker, f"{_label(name)}{' alone' if several else ''}"))
    return [*takers, (count > 1, COLOURS["ink"], "d", "in both" if len(chosen) == 2 else "in several")]


def _counts(axes: Axes, unit: str) -> None:
    """An upright axis of whole numbers."""
    axes.set_ylabel(unit)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.grid(axis="y")


def _label(text: str, limit: int = 28) -> str:
    return short(text, limit)


def _legend(axes: Axes, **options: float) -> None:
    for text in axes.legend(loc="best", **options).get_texts():
        text.set_parse_math(False)


def _scale(axes: Axes, axis: str, values: Floats) -> None:
    """A log axis where it shows more; ticks in plain writing."""
    line = axes.yaxis if axis == "y" else axes.xaxis
    if is_wide(values):
        (axes.set_yscale if axis == "y" else axes.set_xscale)("log")
        if axis == "y":
            axes.set_ylim(bottom=Spread.of(values).floor / 1.3)
        line.set_minor_locator(NullLocator())
        powers = Spread.of(values).floor < 1e-3  # of ten at every tick, and not at the small ones alone
        line.set_major_formatter(FuncFormatter(lambda value, _: power(value) if powers else number(value)))
        return
    # even ticks: 0.0005 stands beside 0.001
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}" if 1e-4 <= value < 1e-3 else number(value)))


def _places(count: int) -> npt.NDArray[np.int64]:
    """Positions to draw a sorted curve through: evenly spread, and densely at both ends, where it is steep."""
    even = np.linspace(0, count - 1, _CURVE_POINTS)
    ends = np.geomspace(1, count, _CURVE_POINTS) - 1
    return np.unique(np.r_[even, ends, count - 1 - ends].round().astype(np.int64))


def _inline(svg: str, name: str) -> str:
    """matplotlib's document as an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'(id="|"#|url\(#)', lambda match: f"{match[1]}{slug(name)}-", svg)
    svg = re.sub(r"<[^>]*>", lambda match: _smaller(match[0]), svg)  # and not what is written between them
    return re.sub(r"\s*\n\s*", " ", svg).strip()


def _smaller(element: str) -> str:
    """An element of SVG with its colours by their roles and numbers of two digits after the point."""
    for role, value in COLOURS.items():
        element = element.replace(value, f"var(--{role})")
    return re.sub(r"(\d\.\d\d)\d+", r"\1", element)
