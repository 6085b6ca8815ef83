"""Pictures of a search: what is drawn is what was found, every label can be read, any text is safe."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt
import pytest

from curate.genotype import CHOOSING, OPERATIONS, Genotype
from curate.nas import pictures

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("x")</script> & \x1b[31m\x00\ud800 ]]> \N{CJK UNIFIED IDEOGRAPH-8D85}' * 20
GENOTYPES = {
    "published": "dlsr",
    "diverse": "dlsr-div",
    "chain": "conv_1x1+conv_1x1+conv_1x1@2.3.4.5",
    "single": "conv_1x1+dil_5x5+conv_7x7@2.13.1.5",
    "dense": "sep_7x7+conv_3x3+dil_3x3@12.321.1234.54321",
}


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    result: npt.NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return result


class Searched(NamedTuple):
    steps: list[int]
    alpha_TLO: npt.NDArray[np.float64]
    betas: dict[int, npt.NDArray[np.float64]]

    def drawn(self, warmup: int | None = None) -> str:
        return pictures.architecture(self.steps, self.alpha_TLO, self.betas, warmup)


def searched(points: int, pace: float, every: int = 100) -> Searched:
    rng = np.random.default_rng(points)

    def walk(*shape: int) -> npt.NDArray[np.float64]:
        return softmax(np.cumsum(rng.normal(size=(points, *shape)) * pace, axis=0))

    return Searched([every * (t + 1) for t in range(points)], walk(3, 9), {cell: walk(cell - 1) for cell in CHOOSING})


def found_by(names: list[str], seeds: int) -> dict[str, list[list[str]]]:
    rng = np.random.default_rng(0)
    return {name: [[str(one) for one in rng.choice(OPERATIONS, 3)] for _ in range(seeds)] for name in names}


PAGES: dict[str, Callable[[], str]] = {
    "long": lambda: searched(2000, 0.05).drawn(20_000),
    "short": lambda: searched(40, 0.01).drawn(400),
    "three": lambda: searched(3, 0.5, every=1).drawn(),
    "one": lambda: searched(1, 1e-3).drawn(100),
    "still": lambda: Searched([0, 9], np.full((2, 3, 9), 1 / 9), {3: np.full((2, 2), 0.5)}).drawn(),
    "decided": lambda: Searched([0, 9], np.tile(np.eye(9)[:3], (2, 1, 1)), {}).drawn(),
    "agreement": lambda: pictures.agreement([HOSTILE, "b"], found_by([HOSTILE, "b"], 3)),
    "hostile": lambda: pictures.genotype(Genotype.parse("dlsr"), HOSTILE),
    **{
        name: lambda text=text: pictures.genotype(Genotype.parse(text))  # type: ignore[misc]
        for name, text in GENOTYPES.items()
    },
}


def elements(svg: str, kind: str) -> list[Element]:
    return list(ElementTree.fromstring(svg.encode()).iter(f"{SVG}{kind}"))


def words(svg: str) -> list[str]:
    return [text.text or "" for text in elements(svg, "text")]


def size(svg: str) -> tuple[float, float]:
    root = ElementTree.fromstring(svg.encode())
    return float(root.attrib["width"]), float(root.attrib["height"])


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def of_text(cls, text: Element) -> "Box":
        """As a wide typeface has it."""
        points = float(text.attrib["font-size"])
        wide = len(text.text or "") * points * (0.66 if "font-weight" in text.attrib else 0.58)
        left = float(text.attrib["x"]) - {"start": 0, "middle": wide / 2, "end": wide}[text.get("text-anchor", "start")]
        baseline = float(text.attrib["y"])
        return cls(left, baseline - 0.78 * points, left + wide, baseline + 0.22 * points)

    @classmethod
    def of_rect(cls, rect: Element) -> "Box":
        x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        return cls(x, y, x + width, y + height)

    def meets(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def lies_in(self, width: float, height: float) -> bool:
        return self.left >= 0 and self.top >= 0 and self.right <= width and self.bottom <= height

    def holds(self, x: float, y: float) -> bool:
        return self.left - 0.1 <= x <= self.right + 0.1 and self.top - 0.1 <= y <= self.bottom + 0.1


def boxes(svg: str) -> dict[str, Box]:
    """What is named on the first line of each box; of several with one name the first."""
    rects = [Box.of_rect(rect) for rect in elements(svg, "rect") if "x" in rect.attrib]
    found: dict[str, Box] = {}
    for text in elements(svg, "text"):
        for rect in rects:
            if rect.holds(float(text.attrib["x"]), float(text.attrib["y"])):
                found.setdefault(text.text or "", rect)
    return found


# ---- every picture


def digest() -> str:
    return hashlib.sha256("".join(page() for page in PAGES.values()).encode()).hexdigest()


@pytest.mark.parametrize("name", PAGES)
def test_no_label_lies_on_another_or_leaves_the_page(name: str) -> None:
    svg = PAGES[name]()
    width, height = size(svg)
    labels = [(text.text, Box.of_text(text)) for text in elements(svg, "text")]
    for text, box in labels:
        assert box.lies_in(width, height), text
    met = [(one, other) for (one, a), (other, b) in itertools.combinations(labels, 2) if a.meets(b)]
    assert met == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_drawn_beside_the_page(name: str) -> None:
    svg = PAGES[name]()
    width, height = size(svg)
    assert "nan" not in svg and "inf" not in svg
    drawn = [*elements(svg, "polyline"), *elements(svg, "polygon")]
    points = [point.split(",") for line in drawn for point in line.attrib["points"].split()]
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in points)
    rects = [Box.of_rect(rect) for rect in elements(svg, "rect") if "x" in rect.attrib]
    assert all(box.lies_in(width, height) for box in rects)
    assert points or rects
    arcs = [re.findall(r"-?[\d.]+", path.attrib["d"]) for path in elements(svg, "path")]  # M x y A rx ry ...
    assert all(float(y) - float(rise) >= 45 for _, y, _, rise, *_ in arcs)  # below the words


@pytest.mark.slow
def test_the_same_search_gives_the_same_bytes_in_another_process() -> None:
    made = "import test_nas_pictures as test; print(test.digest())"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", made], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{digest()}\n"


def test_text_is_text() -> None:
    svg = pictures.genotype(Genotype.parse("dlsr"), HOSTILE)
    assert elements(svg, "script") == [] and "\x1b" not in svg and "\x00" not in svg
    assert words(svg)[0].startswith('<script>alert("x")</script> & \\x1b') and len(words(svg)[0]) <= 100
    assert words(pictures.genotype(Genotype.parse("dlsr"), "a\nb"))[0] == "a\\nb"


def test_operations_can_be_told_apart_without_colour() -> None:
    def light(colour: str) -> float:
        red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    pens = pictures._OPERATION
    assert list(pens) == list(OPERATIONS)
    for one, other in itertools.combinations(OPERATIONS, 2):
        contrast = (light(pens[one].colour) + 0.05) / (light(pens[other].colour) + 0.05)
        if one[:4] == other[:4]:  # the larger, the darker
            assert pens[one].dash == pens[other].dash and contrast > 1.4, (one, other)
        else:
            assert pens[one].dash != pens[other].dash, (one, other)
    assert all(1.05 / (light(pen.colour) + 0.05) > 3 for pen in pens.values())
    assert len({pen.dash for pen in pictures._OUTPUT.values()}) == 5


# ---- how the shares moved


def lines(svg: str) -> Iterator[tuple[str, Element]]:
    """The lines of shares, in the order of the page, and what each is of."""
    for line in elements(svg, "polyline"):
        if (title := line.find(f"{SVG}title")) is not None:
            yield title.text or "", line


def strong(svg: str) -> list[str]:
    return [name for name, line in lines(svg) if float(line.attrib["stroke-width"]) > 2]


@pytest.mark.parametrize("points", [1, 2, 40, 2000])
def test_every_share_has_a_line_and_the_largest_are_strong(points: int) -> None:
    run = searched(points, 0.05)
    svg = run.drawn()
    names = [name for name, _ in lines(svg)]
    inputs = [f"cell {one}" for cell in CHOOSING for one in range(1, cell)]
    assert sorted(names) == sorted([*OPERATIONS * 3, *inputs])
    best = [OPERATIONS[at] for at in run.alpha_TLO[-1].argmax(-1)]
    chosen = [{f"cell {at + 1}" for at in np.argsort(run.betas[cell][-1])[-2:]} for cell in CHOOSING]
    found = strong(svg)
    assert found[:3] == best
    assert [set(found[at : at + 2]) for at in range(3, 11, 2)] == chosen and len(found) == 11
    assert [text for text in words(svg) if text.startswith(("layer", "inputs"))] == [
        *("layer 1", "layer 2", "layer 3"),
        *("inputs of cell 3", "inputs of cell 4", "inputs of cell 5", "inputs of cell 6"),
    ]


def test_labels_stand_in_the_order_of_the_last_shares() -> None:
    run = searched(40, 0.02)
    texts = elements(run.drawn(), "text")
    for layer in range(3):
        share = {name: f"{name} {100 * run.alpha_TLO[-1, layer, at]:.1f} %" for at, name in enumerate(OPERATIONS)}
        left = {text.text: text for text in texts if 360 * layer <= float(text.attrib["x"]) < 360 * (layer + 1)}
        rows = sorted(OPERATIONS, key=lambda name: float(left[share[name]].attrib["y"]))
        assert rows == [OPERATIONS[at] for at in np.argsort(-run.alpha_TLO[-1, layer])]


def shares(svg: str) -> list[tuple[str, list[float]]]:
    """Of each line of the layers, read at the axis of the first: name, percent at its points."""
    ticks = [text for text in elements(svg, "text") if text.get("text-anchor") == "end" and "%" in (text.text or "")]
    row = [(float((text.text or "").removesuffix(" %")), float(text.attrib["y"]) - 4) for text in ticks[:2]]
    (low, y_low), (high, y_high) = row
    heights = [
        (name, [float(point.split(",")[1]) for point in line.attrib["points"].split()])
        for name, line in itertools.islice(lines(svg), 27)
    ]
    return [(name, [low + (y - y_low) / (y_high - y_low) * (high - low) for y in ys]) for name, ys in heights]


def test_a_line_is_as_high_as_its_share() -> None:
    run = searched(12, 0.1)
    for at, (name, read) in enumerate(shares(run.drawn())):
        np.testing.assert_allclose(read, 100 * run.alpha_TLO[:, at // 9, OPERATIONS.index(name)], atol=0.05)


def test_a_long_line_is_thinned_and_ends_where_it_ended() -> None:
    run = searched(2000, 0.05)
    for at, (name, read) in enumerate(shares(run.drawn())):
        assert 250 < len(read) <= 300
        first, last = (100 * run.alpha_TLO[t, at // 9, OPERATIONS.index(name)] for t in (0, -1))
        assert read[0] == pytest.approx(first, abs=0.2) and read[-1] == pytest.approx(last, abs=0.2)


def test_without_connections_there_is_one_row() -> None:
    run = searched(5, 0.1)
    alone = run._replace(betas={}).drawn()
    assert size(alone)[1] < size(run.drawn())[1] and not [text for text in words(alone) if "inputs of" in text]
    assert len(list(lines(alone))) == 27


def test_the_end_of_the_warm_up_is_where_it_is_or_nowhere() -> None:
    run = searched(41, 0.1)  # steps 100 to 4100
    assert words(run.drawn(1100)).count("warm-up ends") == 7
    dotted = [line for line in elements(run.drawn(1100), "polyline") if line.get("stroke-dasharray") == "1 3"]
    start, end = (point.split(",") for point in dotted[0].attrib["points"].split())
    across = [float(point.split(",")[0]) for point in next(lines(run.drawn()))[1].attrib["points"].split()]
    assert len(dotted) == 7 and start[0] == end[0] and float(start[0]) == pytest.approx(across[10], abs=0.1)
    for warmup in (None, 0, 5000):
        assert "warm-up ends" not in words(run.drawn(warmup))


def test_ticks_are_round_and_differ() -> None:
    for low, high, most in [(0, 200_000, 4), (100, 400, 2), (1, 3, 4), (0, 1, 4), (100, 48_000, 4), (7, 12, 2)]:
        ticks = pictures._ticks(low, high, most, least=1)
        assert len({f"{tick:,.0f}" for tick in ticks}) == len(ticks) <= most + 1 and ticks
        assert all(low <= tick <= high and tick == int(tick) for tick in ticks)
    assert pictures._ticks(5, 5, 4, least=1) == [5]


@pytest.mark.parametrize("wanted", [[50.0] * 9, [0.0, 1, 2, 150], [150.0, 149, 148], [10.0, 80, 12], [70.0]])
def test_labels_are_pushed_apart_no_further_than_needed(wanted: list[float]) -> None:
    heights = pictures._apart(wanted, 0, 150)
    rows = sorted(heights)
    assert all(lower - upper >= pictures._LINE - 1e-9 for upper, lower in itertools.pairwise(rows))
    assert rows[0] >= 0 and rows[-1] <= 150
    assert np.array_equal(np.argsort(heights, kind="stable"), np.argsort(wanted, kind="stable"))
    for at, height in enumerate(wanted):
        if all(abs(height - other) >= 2 * len(wanted) * pictures._LINE for other in wanted[:at] + wanted[at + 1 :]):
            assert heights[at] == height


# ---- the network


def edges(svg: str) -> set[tuple[int, int]]:
    """Which cell's box each line leaves, and at which it ends, from where they lie."""
    named = boxes(svg)
    cells = {number: named[f"cell {number}"] for number in range(1, 7)}
    ends = []
    for path in elements(svg, "path"):
        x, y, _, _, _, _, _, far, back = re.findall(r"-?[\d.]+", path.attrib["d"])
        ends.append(((float(x), float(y)), (float(far), float(back))))
    for line in elements(svg, "polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        ends.append((points[0], points[-1]))  # type: ignore[arg-type]
    found = []
    for start, end in ends:
        sources = [cell for cell, box in cells.items() if box.holds(*start)]
        targets = [cell for cell, box in cells.items() if box.holds(*end)]
        found += [(source, target) for source in sources for target in targets]
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.parametrize("text", GENOTYPES.values())
def test_the_lines_between_cells_are_the_genotype_s(text: str) -> None:
    genotype = Genotype.parse(text)
    svg = pictures.genotype(genotype)
    inputs = {(one, cell) for cell, chosen in zip(CHOOSING, genotype.inputs, strict=True) for one in chosen}
    assert edges(svg) == {(1, 2)} | inputs
    titles = [title.text or "" for title in elements(svg, "title")]
    said = [tuple(map(int, re.findall(r"\d", title))) for title in titles if re.fullmatch(r"cell \d to cell \d", title)]
    assert len(said) == len(set(said)) and set(said) == edges(svg)
    assert {f"cell {cell} to the joint" for cell in range(1, 7)} | {"conv to cell 1", "conv to the sum"} <= set(titles)


@pytest.mark.parametrize("text", GENOTYPES.values())
def test_everything_in_the_network_is_named(text: str) -> None:
    genotype = Genotype.parse(text)
    drawn = words(pictures.genotype(genotype, "found"))
    assert drawn[0] == "found" and words(pictures.genotype(genotype))[0] == genotype.name
    assert [word for word in drawn if word in OPERATIONS] == list(genotype.operations)
    for cell, chosen in zip(CHOOSING, genotype.inputs, strict=True):  # in their order, which weights depend on
        assert drawn[drawn.index(f"cell {cell}") + 1] == f"of {', '.join(map(str, chosen))}"
    assert drawn.count("half the maps") == 4 and {"LR", "SR", "ESA", "shuffle"} <= set(drawn)


def test_arcs_that_lie_in_each_other_do_not_cross() -> None:
    svg = pictures.genotype(Genotype.parse(GENOTYPES["dense"]))
    spans = []
    for path in elements(svg, "path"):
        x, _, _, _, _, _, _, far, _ = map(float, re.findall(r"-?[\d.]+", path.attrib["d"]))
        spans.append((x, far))
    cells = [(2, one, cell) for cell in CHOOSING for one in range(1, cell - 1)]
    assert len(spans) == len(cells) == len(set(spans))
    for (_, one, cell), (start, end) in zip(cells, sorted(spans, key=lambda span: span[1]), strict=False):
        assert start < end, (one, cell)
    shared = [(a, b) for a, b in itertools.combinations(spans, 2) if abs(a[0] - b[0]) < 37 or abs(a[1] - b[1]) < 37]
    assert shared and all((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in shared)  # one within the other


# ---- who found what


def test_rings_stand_where_the_reference_s_most_were_found() -> None:
    full = [["conv_1x1", "sep_3x3", "dil_3x3"], ["conv_1x1", "sep_5x5", "dil_5x5"], ["conv_3x3", "sep_5x5", "conv_7x7"]]
    few = [["conv_1x1", "sep_5x5", "conv_7x7"], ["conv_5x5", "sep_3x3", "dil_5x5"]]
    svg = pictures.agreement(["full", "few"], {"few": few, "full": full})
    # conv_1x1, sep_5x5, and of three that were found once the first in the list of operations: conv_7x7
    assert [word for word in words(svg) if word.endswith("of 3")] == [
        *("1 of 3", "2 of 3", "2 of 3"),
        *("3 of 3", "0 of 3"),
    ]
    assert len(elements(svg, "circle")) == 8
    assert [word for word in words(svg) if word in OPERATIONS] == [one for row in full + few for one in row]
    assert [word for word in words(svg) if word in ("full", "few")] == ["full", "few"]
    rects = [Box.of_rect(rect) for rect in elements(svg, "rect") if "fill-opacity" in rect.attrib]
    rings = [(float(ring.attrib["cx"]), float(ring.attrib["cy"])) for ring in elements(svg, "circle")]
    marked = [any(rect.holds(*ring) for ring in rings) for rect in rects]
    wanted = ("conv_1x1", "sep_5x5", "conv_7x7")
    assert marked == [one == wanted[layer] for row in full + few for layer, one in enumerate(row)]
