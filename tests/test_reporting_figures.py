"""Figures stand in a page: colours by role, text as text; the same data give the same bytes."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Drawing
from PIL import Image

from curate.reporting import figures, page
from curate.reporting.figures import Figure, is_wide

HOSTILE = '<script>$x$ & "q" \x1b[31m\u202e\' \U0001f4f7'


def drawn(label: str = "srcnn", name: str = "refined") -> list[Figure]:
    rng = np.random.default_rng(0)
    score, other = rng.lognormal(-6, 2, 500), rng.uniform(0, 1, 500)
    score[:3] = np.nan
    everything, chosen = np.ones(500, bool), np.arange(500) % 2 == 0
    counts = np.array([10, 20, 5])
    return [
        figures.curve(label, score, everything, {name: chosen}),
        figures.histogram(label, score, everything, {name: chosen, "other": ~chosen}),
        figures.agreement([label, "b"], [[1.0, None], [-0.3, 1.0]]),
        figures.scatter(label, "b", score, other, {name: chosen}),
        figures.concentration(counts, {name: np.array([1, 20, 0])}),
        figures.shares(counts, {name: np.array([1, 20, 0])}),
    ]


@pytest.mark.parametrize("index", range(6))
def test_markup_is_one_element_with_colours_by_role(index: int) -> None:
    svg = drawn()[index].svg()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg") and root.get("viewBox") and root.get("width") is None
    assert "var(--ink)" in svg and "var(--c0)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg.replace("#ffffff", ""))
    assert "<style" not in svg and "http://www.w3.org/1999/02" not in svg
    assert drawn()[index].svg() == svg
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", svg))
    assert used <= set(re.findall(r'id="([^"]+)"', svg))


@pytest.mark.parametrize("index", range(6))
def test_names_are_text(index: int) -> None:
    svg = drawn(HOSTILE, HOSTILE)[index].svg()
    root = ET.fromstring(svg)
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    assert "\x1b" not in svg and "\u202e" not in svg
    if index < 4:
        assert "&lt;script" in svg


@pytest.mark.parametrize("index", range(6))
def test_a_paper_gets_a_png(index: int) -> None:
    figure = drawn()[index]
    image = Image.open(io.BytesIO(figure.png()))
    assert image.format == "PNG" and min(image.size) > 300
    assert figure.png() == figure.png()


def test_figures_of_a_page_share_no_identifier() -> None:
    ids = [set(re.findall(r'id="([^"]+)"', figure.svg())) for figure in drawn()]
    assert sum(map(len, ids)) == len(set.union(*ids))


@pytest.mark.parametrize("num", [10, 99, 426, 1000])
def test_shades_and_strips_are_where_the_chosen_ranks_are(num: int) -> None:
    """Of every manifest that is one stretch of the order; of one that is not, the strip alone."""
    score, everything = np.arange(num)[::-1].astype(float), np.ones(num, bool)
    ends = {"refined": (num // 20, int(0.549 * num)), "des": (0, num // 2 - 1), "asc": (num // 2, num - 1)}
    places = np.arange(num)
    chosen = {name: (places >= first) & (places <= last) for name, (first, last) in ends.items()}
    drawing = Drawing()
    figures.curve("s", score, everything, {**chosen, "broken": places % 3 != 1}).draw(drawing)
    top, *strips = drawing.axes
    expected = [[100 * first / num, 100 * (last + 1) / num] for first, last in ends.values()]
    shades = [(shade.get_x(), shade.get_x() + shade.get_width()) for shade in top.patches]
    assert np.allclose(shades, expected) and len(strips) == 4
    for strip, (left, right) in zip(strips, expected, strict=False):
        heights, edges, _ = strip.patches[0].get_data()
        taken = np.flatnonzero(heights)
        assert (edges[taken[0]], edges[taken[-1] + 1]) == pytest.approx((left, right))


def test_what_is_written_in_a_figure_is_not_rounded_as_its_coordinates_are() -> None:
    score, everything = np.linspace(0.0001, 0.0031, 400)[::-1], np.ones(400, bool)
    svg = figures.curve("s", score, everything, {"v1.23456": score > 0.002}).svg()
    written = re.findall(r">([^<>]+)</text>", svg)
    assert {"0.0005", "0.001", "0.0015", "v1.23456"} <= set(written)
    assert not re.search(r"\d\.\d{3}", "".join(re.findall("<[^>]*>", svg)))


def test_a_log_axis_is_for_positive_scores_far_apart() -> None:
    assert is_wide(np.geomspace(1e-6, 1, 100))
    assert not is_wide(np.linspace(1, 2, 100))
    assert not is_wide(np.linspace(-5, 5, 100))
    assert not is_wide(np.zeros(0))


def legend(figure: Figure) -> list[str]:
    drawing = Drawing()
    figure.draw(drawing)
    return [text.get_text() for text in drawing.axes[0].get_legend().get_texts()]


def test_a_scatter_says_who_chose_a_patch() -> None:
    x, rows = np.arange(8.0), np.arange(8)
    low, even, odd = rows < 4, rows % 2 == 0, rows % 2 == 1
    assert legend(figures.scatter("s", "t", x, x, {"low": low})) == ["not in low", "low"]
    two = {"low": low, "even": even}
    assert legend(figures.scatter("s", "t", x, x, two)) == ["in neither", "low alone", "even alone", "in both"]
    three = {**two, "odd": odd}
    assert legend(figures.scatter("s", "t", x, x, three)) == ["even alone", "odd alone", "in several"]
    drawing = Drawing()
    figures.scatter("s", "t", x, x, two).draw(drawing)
    assert [sorted(line.get_xdata()) for line in drawing.axes[0].get_lines()] == [[5, 7], [1, 3], [4, 6], [0, 2]]


@pytest.mark.parametrize("most", [1, 2, 3, 10, 26])
def test_counts_have_whole_ticks(most: int) -> None:
    counts = np.full(most, 10)
    everything = np.ones(most, bool)
    for figure in (
        figures.shares(counts, {"m": counts}),
        figures.histogram("s", np.ones(most), everything, {"m": everything}),
    ):
        drawing = Drawing()
        figure.draw(drawing)
        ticks = drawing.axes[0].get_yticks()
        assert len(ticks) > 1 and (ticks == ticks.round()).all()


def luminance(colour: npt.NDArray[np.float64]) -> float:
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [figures.COLOURS, page.DARK], ids=["light", "dark"])
def test_correlations_can_be_read_in_every_cell(theme: dict[str, str]) -> None:
    """WCAG's contrast of 4.5 at least; stronger correlations stand out more from the page."""
    values = [1.0, 0.62, 0.3, 0.0, -0.3, -0.8, -1.0]
    drawing = Drawing()
    figures.agreement([str(value) for value in values], [values] * len(values)).draw(drawing)
    roles = {colour: np.array(to_rgb(theme[role])) for role, colour in figures.COLOURS.items()}
    contrasts = []
    for cell, text in zip(drawing.axes[0].collections, drawing.axes[0].texts, strict=True):
        *face, alpha = cell.get_facecolor()[0]
        ground = alpha * roles[to_hex(face)] + (1 - alpha) * roles[figures.COLOURS["paper"]]
        light, dark = sorted([luminance(roles[text.get_color()]), luminance(ground)], reverse=True)
        contrasts.append((light + 0.05) / (dark + 0.05))
    assert min(contrasts) >= 4.5
    first = contrasts[: len(values)]
    assert first[0] < first[1] < first[2] < first[3] > first[4] > first[5] > first[6]


def test_scores_that_are_all_one_are_drawn() -> None:
    same, everything = np.full(10, 0.25), np.ones(10, bool)
    assert "<svg" in figures.curve("s", same, everything, {"m": everything}).svg()
    assert "<svg" in figures.histogram("s", same, everything, {"m": everything}).svg()
