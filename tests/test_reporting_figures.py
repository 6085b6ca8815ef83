"""Figures stand in a page: colours by role, text as text; the same data give the same bytes."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing
from PIL import Image

from curate.reporting import figures
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
        figures.scatter(label, "b", score, other, chosen, name),
        figures.concentration(counts, {name: np.array([1, 20, 0])}),
        figures.shares(counts, {name: np.array([1, 20, 0])}),
    ]


@pytest.mark.parametrize("index", range(6))
def test_markup_is_one_element_with_colours_by_role(index: int) -> None:
    svg = drawn()[index].svg()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg") and root.get("viewBox") and root.get("width") is None
    assert "var(--ink)" in svg and "var(--c0)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg.replace("#ffffff", "").replace("#1f2431", "")) or index == 2
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


def test_a_log_axis_is_for_positive_scores_far_apart() -> None:
    assert is_wide(np.geomspace(1e-6, 1, 100))
    assert not is_wide(np.linspace(1, 2, 100))
    assert not is_wide(np.linspace(-5, 5, 100))
    assert not is_wide(np.zeros(0))


def test_scores_that_are_all_one_are_drawn() -> None:
    same, everything = np.full(10, 0.25), np.ones(10, bool)
    assert "<svg" in figures.curve("s", same, everything, {"m": everything}).svg()
    assert "<svg" in figures.histogram("s", same, everything, {"m": everything}).svg()
